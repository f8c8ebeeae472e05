//! Capsules for the pods of a cluster: custom resources ([`api`]), the controller that plans for all nodes ([`cluster`]), and the agent of one
//! ([`agent`]). Kubernetes is the engine: what is wanted and what is so are objects of its API, and nothing else is kept.

pub mod agent;
pub mod api;
pub mod cluster;

use std::time::Duration;

/// How long the API server may take for a call. Without a limit a connection that leads nowhere is waited for as long as TCP does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A call, for no longer than that.
async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service("the API server does not answer in 10 s".into())),
    }
}
