//! A device plugin, as vendors have one on each node: it tells the kubelet of a device, and its name in CDI for a pod that asks for it.
//!
//! The messages are those of `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`, as far as they are used.

use std::convert::Infallible;
use std::path::Path;
use std::task::{Context as Task, Poll};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{StreamExt as _, once, pending};
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// The folder in which the kubelet looks for plugins, and listens for them.
const FOLDER: &str = "/var/lib/kubelet/device-plugins";
const SOCKET: &str = "example.sock";
const REGISTER: &str = "/v1beta1.Registration/Register";

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    devices_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct CdiDevice {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerAllocateResponse {
    #[prost(message, repeated, tag = "5")]
    cdi_devices: Vec<CdiDevice>,
}

#[derive(Clone, PartialEq, Message)]
struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    container_responses: Vec<ContainerAllocateResponse>,
}

/// A plugin that serves until it is dropped.
pub struct Plugin {
    _end: oneshot::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Plugin {
    /// Serves the device `KIND=0` of the kind `kind`, which is the resource's name too, and says so to the kubelet.
    pub fn start(kind: &'static str) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(Path::new(FOLDER).join(SOCKET)).context("listen for the kubelet")?
        };
        let (end, ended) = oneshot::channel();
        let (told, registered) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let serve = Server::builder()
                .add_service(Devices(kind))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async { _ = ended.await });
            let register = async { _ = told.send(register(kind).await) };
            // A pod that asks for the device finds that nobody serves it.
            _ = runtime.block_on(async { tokio::join!(serve, register) });
        });
        registered.recv().context("its thread has ended")?.context("register it")?;
        Ok(Self { _end: end, _thread: thread })
    }
}

async fn register(kind: &str) -> Result<()> {
    let connector = service_fn(|_: Uri| async {
        UnixStream::connect(Path::new(FOLDER).join("kubelet.sock")).await.map(TokioIo::new)
    });
    let channel: Channel =
        Endpoint::from_static("http://kubelet").connect_with_connector(connector).await.context("connect")?;
    let mut kubelet = tonic::client::Grpc::new(channel);
    kubelet.ready().await.context("wait for it")?;
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: SOCKET.to_owned(),
        resource_name: kind.to_owned(),
    };
    let codec = ProstCodec::<RegisterRequest, Empty>::default();
    kubelet.unary(Request::new(request), PathAndQuery::from_static(REGISTER), codec).await?;
    Ok(())
}

/// The service, of a kind of devices.
#[derive(Clone)]
struct Devices(&'static str);

impl NamedService for Devices {
    const NAME: &'static str = "v1beta1.DevicePlugin";
}

impl Service<http::Request<Body>> for Devices {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let kind = self.0;
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                // No options, and nothing to be asked but these.
                "GetDevicePluginOptions" => {
                    let answer = service_fn(|_: Request<Empty>| async { Ok(Response::new(Empty {})) });
                    Grpc::new(ProstCodec::default()).unary(answer, request).await
                }
                "ListAndWatch" => {
                    let answer = service_fn(|_: Request<Empty>| async { Ok(Response::new(listed())) });
                    Grpc::new(ProstCodec::default()).server_streaming(answer, request).await
                }
                "Allocate" => {
                    let answer = service_fn(|asked: Request<AllocateRequest>| async move {
                        Ok(Response::new(allocated(kind, asked.into_inner())))
                    });
                    Grpc::new(ProstCodec::default()).unary(answer, request).await
                }
                _ => Status::unimplemented(method).into_http(),
            })
        })
    }
}

/// One device, which stays well.
fn listed() -> impl tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send {
    let device = Device { id: "0".to_owned(), health: "Healthy".to_owned() };
    once(Ok(ListAndWatchResponse { devices: vec![device] })).chain(pending())
}

fn allocated(kind: &str, asked: AllocateRequest) -> AllocateResponse {
    let of = |container: ContainerAllocateRequest| ContainerAllocateResponse {
        cdi_devices: container
            .devices_ids
            .iter()
            .map(|id| CdiDevice { name: format!("{kind}={id}") })
            .collect(),
    };
    AllocateResponse { container_responses: asked.container_requests.into_iter().map(of).collect() }
}
