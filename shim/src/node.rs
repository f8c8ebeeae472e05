//! capsuled, asked by the shim: the attachments that a container's annotation names, and those that it had before.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use capsule_proto::node::{
    AttachNamedRequest, DeviceAnnotation, DevicesAtCreationRequest, DevicesAtCreationResponse, NodeClient,
    RestoreRequest,
};
use thiserror::Error;

use crate::{bundle::ATTACH, connection, registration};

/// How long capsuled may be away, as it is for a moment while it is upgraded.
const AWAY: Duration = Duration::from_secs(10);
/// How often it is tried.
const RETRY: Duration = Duration::from_millis(100);
/// Where capsuled serves its API, beside our socket, unless it is configured otherwise.
const API: &str = "capsuled.sock";
/// How long an attach may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a container does not get what it is to have.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Nobody answers.
    #[error("capsuled does not answer on {}, so {wanted} cannot be attached: start it", socket.display())]
    Unreachable {
        /// Where it should.
        socket: PathBuf,
        /// What the container is to have.
        wanted: &'static str,
        /// The last failure.
        #[source]
        source: ttrpc::Error,
    },
    /// It refused what the annotation names.
    #[error("annotation {ATTACH}: {0}")]
    Named(String),
    /// It cannot say what the container's devices ask for.
    #[error("{0}")]
    Devices(String),
    /// It is of a release before it could.
    #[error(
        "the capsuled of this node is older than the shim and knows of no devices at creation, which {} asks for: install the capsuled of the shim's release",
        .annotation
    )]
    Older {
        /// What names devices.
        annotation: String,
    },
    /// It refused to give back what the container had.
    #[error("{0}")]
    Again(String),
}

/// A call that did not come back with an answer.
enum Failure {
    Refused(String),
    Unknown,
    Unreachable(PathBuf, ttrpc::Error),
}

/// Has capsuled attach what `named`, the value of [`ATTACH`], names to a container of this shim, before its first
/// process runs.
///
/// # Errors
/// [`NodeError`]; then none of it is attached.
pub async fn attach_named(
    namespace: &str,
    container: &str,
    named: &str,
    created_with_devices: bool,
) -> Result<(), NodeError> {
    let request = AttachNamedRequest {
        namespace: namespace.to_owned(),
        container_id: container.to_owned(),
        attachments: named.to_owned(),
        created_with_devices,
        ..Default::default()
    };
    let call = |node: NodeClient, request| async move { node.attach_named(within(), &request).await };
    let asked = ask(&socket(), request, call).await;
    let answer =
        asked.map_err(|failure| failure.into_error(NodeError::Named, "what its annotation names"))?;
    log::info!("container {container}: attached {} before its start", answer.attached.join(", "));
    Ok(())
}

/// Has capsuled attach again what the container's last task had. `named` is the value of [`ATTACH`], if there is one.
///
/// # Errors
/// [`NodeError`]; then none of it is attached.
pub async fn restore(namespace: &str, container: &str, named: Option<&str>) -> Result<(), NodeError> {
    let request = RestoreRequest {
        namespace: namespace.to_owned(),
        container_id: container.to_owned(),
        attachments: named.unwrap_or_default().to_owned(),
        ..Default::default()
    };
    let call = |node: NodeClient, request| async move { node.restore(within(), &request).await };
    let asked = ask(&socket(), request, call).await;
    let answer =
        asked.map_err(|failure| failure.into_error(NodeError::Again, "what the container had before"))?;
    if !answer.restored.is_empty() {
        log::info!("container {container}: attached {} again before its start", answer.restored.join(", "));
    }
    Ok(())
}

/// What devices ask of the spec of a container that is being created: those of its annotations `devices` (key and value), and
/// those that its attachments bring, where it `takes_attachments`. `named` is the value of [`ATTACH`], if there is one. Nothing where
/// capsuled is of a release before it could say, and no annotation names devices.
///
/// # Errors
/// [`NodeError`].
pub async fn devices_at_creation(
    namespace: &str,
    container: &str,
    devices: &[(&str, &str)],
    named: Option<&str>,
    takes_attachments: bool,
) -> Result<Option<DevicesAtCreationResponse>, NodeError> {
    let annotation = |(key, value): &(&str, &str)| DeviceAnnotation {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
        ..Default::default()
    };
    let request = DevicesAtCreationRequest {
        namespace: namespace.to_owned(),
        container_id: container.to_owned(),
        devices: devices.iter().map(annotation).collect(),
        attachments: named.unwrap_or_default().to_owned(),
        takes_attachments,
        ..Default::default()
    };
    let call = |node: NodeClient, request| async move { node.devices_at_creation(within(), &request).await };
    match (ask(&socket(), request, call).await, devices.first()) {
        (Ok(answer), _) => Ok(Some(answer)),
        (Err(Failure::Unknown), None) => Ok(None),
        (Err(Failure::Unknown), Some((key, _))) => {
            Err(NodeError::Older { annotation: format!("annotation {key}") })
        }
        (Err(failure), named) => {
            let wanted = named.map_or("what its annotation names or it had before", |_| "its devices");
            Err(failure.into_error(NodeError::Devices, wanted))
        }
    }
}

impl Failure {
    fn into_error(self, refused: fn(String) -> NodeError, wanted: &'static str) -> NodeError {
        match self {
            Self::Refused(message) => refused(message),
            Self::Unknown => refused("the capsuled of this node is older than the shim".to_owned()),
            Self::Unreachable(socket, source) => NodeError::Unreachable { socket, wanted, source },
        }
    }
}

fn socket() -> PathBuf {
    Path::new(registration::RUN).join("node.sock")
}

fn within() -> ttrpc::context::Context {
    ttrpc::context::with_duration(DEADLINE)
}

async fn ask<Q: Clone, T, F: Future<Output = Result<T, ttrpc::Error>>>(
    socket: &Path,
    request: Q,
    call: impl Fn(NodeClient, Q) -> F,
) -> Result<T, Failure> {
    use ttrpc::Error::{Eof, RemoteClosed, RpcStatus, Socket};
    let began = Instant::now();
    loop {
        match call(connect(socket).await?, request.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(RpcStatus(status)) if status.code() == ttrpc::Code::UNIMPLEMENTED => {
                return Err(Failure::Unknown);
            }
            Err(RpcStatus(status)) => return Err(Failure::Refused(status.message)),
            // It ended before it answered, as it may while it is upgraded. What it has attached by then is left as it is.
            Err(Eof | RemoteClosed | Socket(_)) if began.elapsed() < DEADLINE => {
                tokio::time::sleep(RETRY).await;
            }
            Err(source) => return Err(Failure::Unreachable(socket.to_owned(), source)),
        }
    }
}

async fn connect(socket: &Path) -> Result<NodeClient, Failure> {
    let (address, began) = (format!("unix://{}", socket.display()), Instant::now());
    let mut is_woken = false;
    loop {
        match connection::connect(&address).await {
            Ok(client) => return Ok(NodeClient::new(client)),
            Err(_) if began.elapsed() < AWAY => {
                if !std::mem::replace(&mut is_woken, true) {
                    wake(socket).await;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(source) => return Err(Failure::Unreachable(socket.to_owned(), source)),
        }
    }
}

/// A capsuled that has ended because nobody used it is started by whoever connects to its other socket, which systemd holds. One that
/// has a client there goes on for as long as it goes on without.
async fn wake(socket: &Path) {
    _ = tokio::net::UnixStream::connect(socket.with_file_name(API)).await; // what comes of it shows on our own socket
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, sync::Arc};

    use async_trait::async_trait;
    use capsule_proto::node::{AttachNamedResponse, Node, RestoreResponse, create_node};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    struct Capsuled;

    #[async_trait]
    impl Node for Capsuled {
        async fn attach_named(
            &self,
            _: &TtrpcContext,
            request: AttachNamedRequest,
        ) -> ttrpc::Result<AttachNamedResponse> {
            Ok(AttachNamedResponse { attached: vec![request.attachments], ..Default::default() })
        }

        async fn restore(&self, _: &TtrpcContext, _: RestoreRequest) -> ttrpc::Result<RestoreResponse> {
            Ok(RestoreResponse::default())
        }
    }

    #[tokio::test]
    async fn a_capsuled_that_ends_before_it_answers_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.sock");
        let first = UnixListener::bind(&socket).unwrap();
        let asking = tokio::spawn({
            let request = AttachNamedRequest { attachments: "tz".to_owned(), ..Default::default() };
            let socket = socket.clone();
            async move {
                let call =
                    |node: NodeClient, request| async move { node.attach_named(within(), &request).await };
                let asked = ask(&socket, request, call).await;
                asked.map_err(|_| "refused or away")
            }
        });
        let accepted = tokio::task::spawn_blocking(move || first.accept().unwrap());
        drop(accepted.await.unwrap());
        fs::remove_file(&socket).unwrap();
        let server = Server::new().bind(&format!("unix://{}", socket.display())).unwrap();
        let mut server = server.register_service(create_node(Arc::new(Capsuled)));
        server.start().await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap().attached, ["tz"]);
    }

    #[tokio::test]
    async fn a_capsuled_that_has_ended_is_woken_by_its_other_socket() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.sock");
        // As systemd has it.
        let held = UnixListener::bind(folder.path().join(API)).unwrap();
        let asking = tokio::spawn({
            let socket = socket.clone();
            async move {
                let call = |node: NodeClient, request| async move { node.restore(within(), &request).await };
                ask(&socket, RestoreRequest::default(), call).await.map_err(|_| "refused or away")
            }
        });
        tokio::task::spawn_blocking(move || held.accept().unwrap()).await.unwrap();
        let server = Server::new().bind(&format!("unix://{}", socket.display())).unwrap();
        let mut server = server.register_service(create_node(Arc::new(Capsuled)));
        server.start().await.unwrap();
        assert!(asking.await.unwrap().is_ok());
    }
}
