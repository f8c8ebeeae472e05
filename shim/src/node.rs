//! capsuled, asked by the shim: the attachments that a container's annotation names.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use capsule_proto::node::{AttachNamedRequest, AttachNamedResponse, NodeClient};
use thiserror::Error;
use ttrpc::r#async::Client;

use crate::registration;

/// How long capsuled may be away, as it is for a moment while it is upgraded.
const AWAY: Duration = Duration::from_secs(10);
/// How often it is tried.
const RETRY: Duration = Duration::from_millis(100);
/// How long an attach may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a container does not get what its annotation names.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Nobody answers.
    #[error(
        "capsuled does not answer on {}, so the attachments that the annotation {annotation} names cannot be made: start it",
        socket.display()
    )]
    Unreachable {
        /// Where it should.
        socket: PathBuf,
        /// The annotation.
        annotation: &'static str,
        /// The last failure.
        #[source]
        source: ttrpc::Error,
    },
    /// It refused.
    #[error("annotation {annotation}: {message}")]
    Refused {
        /// The annotation.
        annotation: &'static str,
        /// Why.
        message: String,
    },
}

/// Has capsuled attach what the value of `annotation` names to a container of this shim, before its first process runs.
///
/// # Errors
/// [`NodeError`]; then none of it is attached.
pub async fn attach_named(
    namespace: &str,
    container: &str,
    annotation: &'static str,
    value: &str,
) -> Result<(), NodeError> {
    let request = AttachNamedRequest {
        namespace: namespace.to_owned(),
        container_id: container.to_owned(),
        attachments: value.to_owned(),
        ..Default::default()
    };
    let answer = ask(Path::new(registration::RUN).join("node.sock"), annotation, &request).await?;
    log::info!("container {container}: attached {} before its start", answer.attached.join(", "));
    Ok(())
}

async fn ask(
    socket: PathBuf,
    annotation: &'static str,
    request: &AttachNamedRequest,
) -> Result<AttachNamedResponse, NodeError> {
    use ttrpc::Error::{Eof, RemoteClosed, RpcStatus, Socket};
    let began = Instant::now();
    loop {
        let client = connect(&socket, annotation).await?;
        match client.attach_named(ttrpc::context::with_duration(DEADLINE), request).await {
            Ok(answer) => return Ok(answer),
            Err(RpcStatus(status)) => return Err(NodeError::Refused { annotation, message: status.message }),
            // It ended before it answered, as it may while it is upgraded. What it has attached by then is left as it is.
            Err(Eof | RemoteClosed | Socket(_)) if began.elapsed() < DEADLINE => {
                tokio::time::sleep(RETRY).await;
            }
            Err(source) => return Err(NodeError::Unreachable { socket, annotation, source }),
        }
    }
}

async fn connect(socket: &Path, annotation: &'static str) -> Result<NodeClient, NodeError> {
    let (address, began) = (format!("unix://{}", socket.display()), Instant::now());
    loop {
        match Client::connect(&address).await {
            Ok(client) => return Ok(NodeClient::new(client)),
            Err(_) if began.elapsed() < AWAY => tokio::time::sleep(RETRY).await,
            Err(source) => {
                return Err(NodeError::Unreachable { socket: socket.to_owned(), annotation, source });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, sync::Arc};

    use async_trait::async_trait;
    use capsule_proto::node::{Node, create_node};
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
    }

    #[tokio::test]
    async fn a_capsuled_that_ends_before_it_answers_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.sock");
        let first = UnixListener::bind(&socket).unwrap();
        let asking = tokio::spawn({
            let request = AttachNamedRequest { attachments: "tz".to_owned(), ..Default::default() };
            let socket = socket.clone();
            async move { ask(socket, "a", &request).await }
        });
        let accepted = tokio::task::spawn_blocking(move || first.accept().unwrap());
        drop(accepted.await.unwrap());
        fs::remove_file(&socket).unwrap();
        let server = Server::new().bind(&format!("unix://{}", socket.display())).unwrap();
        let mut server = server.register_service(create_node(Arc::new(Capsuled)));
        server.start().await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap().attached, ["tz"]);
    }
}
