//! Capsules for the pods of a cluster: custom resources ([`api`]), the controller that plans for all nodes ([`cluster`], [`rollout`], [`storage`]), and the
//! agent of one ([`agent`]). Kubernetes is the engine: what is wanted and what is so are objects of its API, and nothing else is kept.
//! Beside them the storage driver of one node ([`csi`]), which needs no Kubernetes.

pub mod agent;
pub mod api;
pub mod cluster;
pub mod csi;
mod events;
pub mod health;
pub mod lease;
pub mod meters;
pub mod rollout;
pub mod storage;
mod watch;

use std::time::Duration;

use kube::api::PatchParams;

/// How long the API server may take for a call. Without a limit a connection that leads nowhere is waited for as long as TCP does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A call, for no longer than that.
async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service("the API server does not answer in 10 s".into())),
    }
}

/// For a merge patch, by whom.
fn merged_by(manager: &str) -> PatchParams {
    PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() }
}
