//! Who the driver is, and whether it works.

use capsule_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{Service, Type, service},
};
use tonic::{Request, Response, Status, async_trait};

use super::{Driver, NAME, calls::Kind};

#[async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let answer = GetPluginInfoResponse {
            name: NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        self.call(Kind::Asks, "GetPluginInfo", "", async { Ok(answer) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let of = |kind: service::Type| PluginCapability {
            r#type: Some(Type::Service(Service { r#type: kind.into() })),
        };
        let capabilities =
            vec![of(service::Type::ControllerService), of(service::Type::VolumeAccessibilityConstraints)];
        let answer = GetPluginCapabilitiesResponse { capabilities };
        self.call(Kind::Asks, "GetPluginCapabilities", "", async { Ok(answer) }).await
    }

    /// Not ready while capsuled does not answer. That is no error: it would have the driver started again, which helps nobody.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let capsuled = self.capsuled.clone();
        let work = async move { Ok(ProbeResponse { ready: Some(capsuled.answers().await.is_ok()) }) };
        self.call(Kind::Asks, "Probe", "", work).await
    }
}
