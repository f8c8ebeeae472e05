//! How the kubelet finds the driver: a socket in its directory of registrations, at which it asks what is there, and says whether it takes
//! it. What `node-driver-registrar` does beside other drivers.

use std::path::Path;

use anyhow::{Context as _, bail};
use capsule_proto::csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use futures::TryStreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait, transport::Server};

use super::{NAME, authority::Corrected, sockets};

/// The kubelet takes any version 1 of CSI, and asks the driver itself for the rest.
const VERSION: &str = "1.0.0";

struct Registered {
    endpoint: String,
    refused: mpsc::UnboundedSender<String>,
}

#[async_trait]
impl Registration for Registered {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the kubelet has registered {NAME}");
        } else {
            // Nobody waits for it any more: the driver ends as it is.
            _ = self.refused.send(status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Has the kubelet find at `path` a driver that it reaches at `endpoint`. Returns when the kubelet does not take it, and never otherwise.
///
/// # Errors
/// Always: why it is not registered.
pub async fn serve(path: &Path, endpoint: &Path) -> anyhow::Result<()> {
    let (listener, _served) = sockets::listen(path).await?;
    let (refused, mut refusals) = mpsc::unbounded_channel();
    let endpoint = endpoint.to_str().context("--kubelet-endpoint: no UTF-8")?.to_owned();
    let service = RegistrationServer::new(Registered { endpoint, refused });
    let incoming = UnixListenerStream::new(listener).map_ok(Corrected::new);
    let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
    tokio::select! {
        served = serving => served.context("serve the registration")?,
        Some(error) = refusals.recv() => bail!("the kubelet has not registered {NAME}: {error}"),
    }
    bail!("the registration is not served any more")
}
