//! `capsule.node.v1`: what shims ask of capsuled, over ttrpc on a socket of root's own.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use capsule_proto::node::{
    AttachNamedRequest, AttachNamedResponse, DevicesAtCreationRequest, DevicesAtCreationResponse,
    Node as Wire, RestoreRequest, RestoreResponse, create_node,
};
use tokio::time::timeout;
use tonic::Status;
use tracing::Instrument as _;
use ttrpc::r#async::{Server, TtrpcContext};

use super::creation;
use crate::attachments::{
    Attachments, Moment,
    model::{Attachment, ContainerKey},
};
use crate::server::{Activity, Call};

/// Why the service is not there.
#[derive(Debug, thiserror::Error)]
pub enum NodeServiceError {
    /// Its socket, or its directory.
    #[error("prepare the shims' socket {path}")]
    Prepare {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Listening.
    #[error("serve shims on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: ttrpc::Error,
    },
}

/// How long calls at work may take once the service is to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The service, listening until it is stopped or dropped.
pub struct NodeService {
    server: Server,
}

impl NodeService {
    /// Serves on `path`, which is replaced if it is there: to be called by the one capsuled that serves its gRPC socket.
    /// The socket has mode 0600. `activity` is told of calls.
    ///
    /// # Errors
    /// [`NodeServiceError`].
    pub async fn serve(
        path: &Path,
        attachments: Attachments,
        activity: Activity,
    ) -> Result<Self, NodeServiceError> {
        let prepare = |source| NodeServiceError::Prepare { path: path.to_owned(), source };
        let listen = |source| NodeServiceError::Listen { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(prepare)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(prepare(error)),
            _ => {}
        }
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .map_err(listen)?
            .register_service(create_node(Arc::new(Answers { attachments, activity })));
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(prepare)?;
        server.start().await.map_err(listen)?;
        Ok(Self { server })
    }

    /// Takes no more calls and lets those at work finish, within bounds.
    pub async fn stop(mut self) {
        if timeout(DRAIN, self.server.shutdown()).await.is_err() {
            tracing::warn!("a shim's call is dropped: it has not ended in {} s", DRAIN.as_secs());
        }
    }
}

struct Answers {
    attachments: Attachments,
    activity: Activity,
}

#[async_trait]
impl Wire for Answers {
    async fn attach_named(
        &self,
        _: &TtrpcContext,
        request: AttachNamedRequest,
    ) -> ttrpc::Result<AttachNamedResponse> {
        let (attachments, call) = (self.attachments.clone(), self.activity.begin());
        let container = ContainerKey { namespace: request.namespace, id: request.container_id };
        let named = request.attachments;
        let moment = if request.created_with_devices { Moment::Created } else { Moment::Live };
        let attached =
            to_the_end(call, async move { attachments.attach_named(&container, &named, moment).await })
                .await?;
        Ok(AttachNamedResponse { attached: lines(&attached), ..Default::default() })
    }

    async fn restore(&self, _: &TtrpcContext, request: RestoreRequest) -> ttrpc::Result<RestoreResponse> {
        let (attachments, call) = (self.attachments.clone(), self.activity.begin());
        let container = ContainerKey { namespace: request.namespace, id: request.container_id };
        let named = request.attachments;
        let restored =
            to_the_end(call, async move { attachments.restore_named(&container, &named).await }).await?;
        Ok(RestoreResponse { restored: lines(&restored), ..Default::default() })
    }

    async fn devices_at_creation(
        &self,
        _: &TtrpcContext,
        request: DevicesAtCreationRequest,
    ) -> ttrpc::Result<DevicesAtCreationResponse> {
        let (attachments, _call) = (self.attachments.clone(), self.activity.begin());
        let container =
            ContainerKey { namespace: request.namespace.clone(), id: request.container_id.clone() };
        let asked = creation::creation(request);
        let found = attachments.devices_at_creation(&container, &asked).await;
        found.map(creation::at_creation).map_err(|error| status(&error.into()))
    }
}

/// To its end, also when the shim goes away in the middle.
async fn to_the_end<T: Send + 'static, E: Into<Status> + Send + 'static>(
    call: Call,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> ttrpc::Result<T> {
    let work = async move {
        let done = work.await;
        drop(call);
        done
    };
    match tokio::spawn(work.in_current_span()).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(status(&error.into())),
        Err(panic) => Err(status(&Status::internal(panic.to_string()))),
    }
}

fn lines(attachments: &[Attachment]) -> Vec<String> {
    let place = |a: &Attachment| if a.has_capsule() { format!(" at {}", a.target) } else { String::new() };
    attachments.iter().map(|a| format!("{}{}", a.label(), place(a))).collect()
}

/// The codes of both protocols are the same numbers.
fn status(status: &Status) -> ttrpc::Error {
    use protobuf::Enum;
    let code = ttrpc::Code::from_i32(status.code().into()).unwrap_or(ttrpc::Code::UNKNOWN);
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, status.message()))
}
