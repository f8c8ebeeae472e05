//! Which version a provisioned volume has now, by its PersistentVolume: its context says the one that it had when it was made, and never
//! another.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::{Api, Client};
use tokio::time::timeout;

use crate::storage::VERSION;

/// How PersistentVolumes that provisioners make are called.
const PROVISIONED: &str = "pvc-";
/// How long a pod waits for the API server.
const PATIENCE: Duration = Duration::from_secs(2);

/// The API server.
#[derive(Clone)]
pub struct Current {
    api: Api<PersistentVolume>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

impl Current {
    /// By this client.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }

    /// What the PersistentVolume of this name says; nothing where there is none, or the API server is away: then what is known goes.
    pub async fn version(&self, name: &str) -> Option<String> {
        if !name.starts_with(PROVISIONED) {
            return None;
        }
        let found = match timeout(PATIENCE, self.api.get_metadata_opt(name)).await {
            Ok(Ok(found)) => found?,
            Ok(Err(error)) => {
                tracing::warn!(volume = name, %error, "the API server: the version is the one that is known");
                return None;
            }
            Err(_) => {
                tracing::warn!(
                    volume = name,
                    "the API server has not answered: the version is the one that is known"
                );
                return None;
            }
        };
        let version = found.metadata.annotations.unwrap_or_default().remove(VERSION);
        version.filter(|version| !version.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Response, http};
    use kube::client::Body;

    use super::*;

    /// An API server that answers so.
    fn answering(code: u16, body: &'static str) -> Current {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/api/v1/persistentvolumes/pvc-1");
            Response::builder().status(code).body(Body::from(body.as_bytes().to_vec()))
        });
        Current::new(Client::new(service, "default"))
    }

    #[tokio::test]
    async fn the_annotation_says_it() {
        for (annotations, version) in [
            (r#"{"csi.resourcecapsules.io/version":"2"}"#, Some("2")),
            (r#"{"csi.resourcecapsules.io/version":""}"#, None),
            (r#"{"other":"2"}"#, None),
        ] {
            let object = format!(
                r#"{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{{"name":"pvc-1","annotations":{annotations}}}}}"#
            );
            let current = answering(200, object.leak());
            assert_eq!(current.version("pvc-1").await.as_deref(), version);
            // What nobody provisioned is not asked for.
            assert_eq!(current.version("other").await, None);
        }
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_know_or_fails_says_nothing() {
        let status =
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#;
        assert_eq!(answering(404, status).version("pvc-1").await, None);
        assert_eq!(answering(500, "broken").version("pvc-1").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_waited_for_a_little() {
        let service =
            tower::service_fn(|_: Request<Body>| std::future::pending::<http::Result<Response<Body>>>());
        let began = tokio::time::Instant::now();
        assert_eq!(Current::new(Client::new(service, "default")).version("pvc-1").await, None);
        assert_eq!(began.elapsed(), PATIENCE);
    }
}
