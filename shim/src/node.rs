//! capsuled, asked by the shim: the attachments that a container's annotation names.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use capsule_proto::node::{AttachNamedRequest, NodeClient};
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
    let socket = Path::new(registration::RUN).join("node.sock");
    let client = connect(&socket, annotation).await?;
    let request = AttachNamedRequest {
        namespace: namespace.to_owned(),
        container_id: container.to_owned(),
        attachments: value.to_owned(),
        ..Default::default()
    };
    let answered = client.attach_named(ttrpc::context::with_duration(DEADLINE), &request).await;
    let answer = answered.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => NodeError::Refused { annotation, message: status.message },
        source => NodeError::Unreachable { socket, annotation, source },
    })?;
    log::info!("container {container}: attached {} before its start", answer.attached.join(", "));
    Ok(())
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
