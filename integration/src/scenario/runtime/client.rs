//! containerd's own services, for what `ctr` cannot ask or hides the answer of: status codes, pids, times, events.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use capsule_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use capsule_proto::containerd::services::events::v1::events_client::EventsClient;
use capsule_proto::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use capsule_proto::containerd::services::tasks::v1::UpdateTaskRequest;
use capsule_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use hyper_util::rt::TokioIo;
use prost::Message;
use prost_types::Any;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::scenario::world::CONTAINERD_SOCKET;

/// containerd's namespace of all cases, which is that of `ctr`.
pub const NAMESPACE: &str = "default";
/// How long one call may take; only those that wait for an end take long.
const CALL: Duration = Duration::from_secs(120);

/// What containerd answers.
pub type Answer<T> = Result<T, Status>;

/// A connection to containerd, shared by all threads of a case. It lasts when containerd is started anew.
#[derive(Debug)]
pub struct Client {
    handle: Handle,
    channel: Channel,
    /// With it ends the thread on which connections live.
    _end: oneshot::Sender<()>,
}

impl Client {
    /// Connects when it is first used.
    pub fn connect() -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || runtime.block_on(ended));
        let connector = tower::service_fn(|_: Uri| async {
            UnixStream::connect(Path::new(CONTAINERD_SOCKET)).await.map(TokioIo::new)
        });
        let _inside = handle.enter();
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Ok(Self { handle: handle.clone(), channel, _end: end })
    }

    /// Waits for an answer.
    pub fn call<T>(&self, answer: impl Future<Output = Answer<Response<T>>>) -> Answer<T> {
        let limited = async { tokio::time::timeout(CALL, answer).await };
        match self.handle.block_on(limited) {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer after {CALL:?}"))),
        }
    }

    /// Update of the Task API, with resources as OCI has them.
    pub fn update_task(&self, id: &str, resources: &str) -> Answer<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.as_bytes().to_vec(),
        };
        let update = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            ..Default::default()
        };
        self.call(self.tasks().update(request(update)))
    }

    /// Runs something beside.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    /// The Tasks service.
    pub fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    /// The Containers service.
    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    /// The Snapshots service.
    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// The Introspection service.
    pub fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel.clone())
    }

    /// A call of a service of which there is no client here.
    pub fn ask<T: Message + Default + 'static>(
        &self,
        method: &'static str,
        message: impl Message + Default + 'static,
    ) -> Answer<T> {
        let mut grpc = Grpc::new(self.channel.clone());
        self.call(async move {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request(message), PathAndQuery::from_static(method), ProstCodec::default()).await
        })
    }

    /// The Events service.
    pub fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }
}

/// A request in the namespace of all cases.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(NAMESPACE));
    request
}

/// The status code, `Ok` for an answer.
pub fn code<T>(answer: &Answer<T>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}
