//! What Prometheus and the kubelet ask a program over HTTP: metrics, and whether it lives. For reading only.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Of OpenMetrics 1.0, section 4.3.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
/// How many connections are served at once.
const CONNECTIONS: usize = 16;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is answered.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    kind: &'static str,
    text: String,
}

impl Answer {
    /// 200, `ok`.
    #[must_use]
    pub fn ok() -> Self {
        Self::plain(StatusCode::OK, "ok\n".to_owned())
    }

    /// 200, with metrics as OpenMetrics 1.0.
    #[must_use]
    pub fn metrics(text: String) -> Self {
        Self { status: StatusCode::OK, kind: OPEN_METRICS, text }
    }

    /// 503, with the reason.
    #[must_use]
    pub fn unavailable(why: &impl ToString) -> Self {
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why.to_string()))
    }

    /// 404, with what is there.
    #[must_use]
    pub fn not_found(paths: &str) -> Self {
        Self::plain(StatusCode::NOT_FOUND, format!("use {paths}\n"))
    }

    fn plain(status: StatusCode, text: String) -> Self {
        Self { status, kind: PLAIN, text }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.text)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        response
    }
}

/// Answers by path, until it is dropped. Only GET and HEAD get there.
pub async fn serve<F>(listener: TcpListener, answer: impl Fn(String) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Of one connection, or no descriptor is left: others may do.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (is_read, path) = (is_read(&request), request.uri().path().to_owned());
                let answer = answer.clone();
                async move {
                    Ok::<_, Infallible>(if is_read { answer(path).await.into_response() } else { refused() })
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), service);
            // The client's loss: there is nobody to tell.
            let _ended = served.await;
            drop(place);
        });
    }
}

fn is_read(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

fn refused() -> Response<Full<Bytes>> {
    let mut refused = Answer::plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned()).into_response();
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refused
}
