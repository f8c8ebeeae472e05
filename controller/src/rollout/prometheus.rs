//! Questions to Prometheus (its HTTP API, `/api/v1/query`), asked beside the controller's passes: a pass takes what has been answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Uri, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::sync::Notify;

/// How long between two questions of one rollout.
const EVERY: Duration = Duration::from_secs(10);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer: whether there is one is all that counts.
const LARGEST: usize = 1 << 20;

/// An answer: whether all is well, or why that is not known.
pub type Answer = Result<bool, String>;

/// The Prometheus that the controller was given, and what was asked of it, by rollout.
#[derive(Debug, Clone)]
pub struct Prometheus {
    server: Option<Uri>,
    asked: Arc<Mutex<BTreeMap<String, Asked>>>,
    /// Told of each answer.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    /// Until it is taken.
    answer: Option<Answer>,
}

impl Prometheus {
    /// That of this address: `http://HOST[:PORT][/PREFIX]`.
    #[must_use]
    pub fn new(server: Option<Uri>, changed: Arc<Notify>) -> Self {
        Self { server, asked: Arc::default(), changed }
    }

    /// What has been answered since this was called last. Asks again when it is time.
    pub fn answer(&self, rollout: &str, query: &str) -> Option<Answer> {
        let Some(server) = &self.server else {
            return Some(Err("the controller was given no Prometheus (--prometheus)".to_owned()));
        };
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = all.get_mut(rollout);
        if asked.as_ref().is_some_and(|asked| asked.at.elapsed() < EVERY) {
            return asked.and_then(|asked| asked.answer.take());
        }
        let answer = asked.and_then(|asked| asked.answer.take());
        all.insert(rollout.to_owned(), Asked { at: Instant::now(), answer: None });
        let (this, server, rollout, query) =
            (self.clone(), server.clone(), rollout.to_owned(), query.to_owned());
        tokio::spawn(async move {
            let answer = match tokio::time::timeout(PATIENCE, ask(&server, &query)).await {
                Ok(answer) => answer.map_err(|error| format!("{server}: {error}")),
                Err(_) => Err(format!("{server} does not answer in {PATIENCE:?}")),
            };
            let mut all = this.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(asked) = all.get_mut(&rollout) {
                asked.answer = Some(answer);
                this.changed.notify_one();
            }
        });
        answer
    }

    /// Forgets all rollouts but these.
    pub fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).retain(|rollout, _| is_kept(rollout));
    }
}

async fn ask(server: &Uri, query: &str) -> anyhow::Result<bool> {
    let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
    let uri: Uri =
        format!("{}/api/v1/query?query={query}", server.to_string().trim_end_matches('/')).parse()?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.get(uri).await?;
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    let body: Value = serde_json::from_slice(&body.to_bytes())
        .map_err(|_| anyhow::anyhow!("HTTP {status}, and no JSON"))?;
    read(&body)
}

/// A vector is an answer when it is not empty; a number when it is not zero.
fn read(body: &Value) -> anyhow::Result<bool> {
    if body["status"] != "success" {
        anyhow::bail!("{}", body["error"].as_str().unwrap_or("an answer without a status"));
    }
    let (kind, result) = (&body["data"]["resultType"], &body["data"]["result"]);
    match (kind.as_str(), result.as_array()) {
        (Some("vector"), Some(samples)) => Ok(!samples.is_empty()),
        (Some("scalar"), Some(sample)) => {
            let number = sample.get(1).and_then(Value::as_str).and_then(|number| number.parse::<f64>().ok());
            Ok(number.is_some_and(|number| number != 0.0))
        }
        _ => anyhow::bail!("neither a vector nor a number but {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_a_sample_or_a_number_other_than_zero() {
        let of = |kind: &str, result: Value| {
            read(&json!({ "status": "success", "data": { "resultType": kind, "result": result } }))
        };
        assert!(of("vector", json!([{ "metric": {}, "value": [1, "0"] }])).unwrap());
        assert!(!of("vector", json!([])).unwrap());
        assert!(of("scalar", json!([1, "0.5"])).unwrap());
        assert!(!of("scalar", json!([1, "0"])).unwrap());
        assert!(of("matrix", json!([])).unwrap_err().to_string().contains("matrix"));
        let refused = json!({ "status": "error", "error": "parse error" });
        assert_eq!(read(&refused).unwrap_err().to_string(), "parse error");
    }

    #[tokio::test]
    async fn it_is_asked_once_in_a_while_and_an_answer_is_taken_once() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}/prefix/", listener.local_addr().unwrap()).parse().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let body = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned()
        });
        let changed = Arc::new(Notify::new());
        let prometheus = Prometheus::new(Some(server), Arc::clone(&changed));
        assert_eq!(prometheus.answer("a", "up == 1"), None);
        changed.notified().await;
        assert_eq!(prometheus.answer("a", "up == 1"), Some(Ok(false)));
        assert_eq!(prometheus.answer("a", "up == 1"), None);
        assert_eq!(served.await.unwrap(), "GET /prefix/api/v1/query?query=up+%3D%3D+1 HTTP/1.1");
        let none = Prometheus::new(None, changed).answer("a", "up");
        assert!(none.unwrap().unwrap_err().contains("--prometheus"));
    }
}
