//! capsuled's API without the command line: for what is repeated too often for a program each time.

use std::path::Path;

use anyhow::{Context as _, Result};
use capsule_proto::capsule::v1::attachments_client::AttachmentsClient;
use capsule_proto::capsule::v1::build_request::Part;
use capsule_proto::capsule::v1::capsules_client::CapsulesClient;
use capsule_proto::capsule::v1::{
    AttachRequest, AttachmentSpec, BuildHeader, BuildRequest, ContainerRef, DetachRequest, MoveSpec,
    RollbackRequest, UpgradeRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

use super::world::CAPSULED_SOCKET;

/// One connection, used by one thread.
#[derive(Debug)]
pub struct Api {
    runtime: Runtime,
    attachments: AttachmentsClient<Channel>,
    capsules: CapsulesClient<Channel>,
}

impl Api {
    /// Connects to capsuled.
    pub fn connect() -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let connector = tower::service_fn(|_: Uri| async {
            UnixStream::connect(Path::new(CAPSULED_SOCKET)).await.map(TokioIo::new)
        });
        let channel = runtime
            .block_on(Endpoint::from_static("http://capsuled").connect_with_connector(connector))
            .with_context(|| format!("connect to {CAPSULED_SOCKET}"))?;
        let capsules = CapsulesClient::new(channel.clone());
        Ok(Self { runtime, attachments: AttachmentsClient::new(channel), capsules })
    }

    /// Publishes a version from a tar, or is refused.
    pub fn build(&mut self, header: BuildHeader, tar: Vec<u8>) -> std::result::Result<(), tonic::Status> {
        let parts = [Part::Header(header), Part::Tar(tar)].map(|part| BuildRequest { part: Some(part) });
        self.runtime.block_on(self.capsules.build(tokio_stream::iter(parts))).map(drop)
    }

    /// Attaches a version at its default target.
    pub fn attach(&mut self, container: &str, capsule: &str, version: &str) -> Result<()> {
        let spec =
            AttachmentSpec { capsule: capsule.to_owned(), version: version.to_owned(), ..Default::default() };
        let request =
            AttachRequest { container: reference(container), specs: vec![spec], ..Default::default() };
        self.runtime.block_on(self.attachments.attach(request)).context("attach").map(drop)
    }

    /// Moves to another version.
    pub fn upgrade(&mut self, container: &str, capsule: &str, version: &str) -> Result<()> {
        let request = UpgradeRequest {
            container: reference(container),
            specs: vec![a_move(capsule, version)],
            ..Default::default()
        };
        self.runtime.block_on(self.attachments.upgrade(request)).context("upgrade").map(drop)
    }

    /// Moves back.
    pub fn rollback(&mut self, container: &str, capsule: &str) -> Result<()> {
        let request = RollbackRequest { container: reference(container), specs: vec![a_move(capsule, "")] };
        self.runtime.block_on(self.attachments.rollback(request)).context("rollback").map(drop)
    }

    /// Detaches; refused while in use.
    pub fn detach(&mut self, container: &str, capsule: &str) -> Result<()> {
        let request = DetachRequest {
            container: reference(container),
            capsule: capsule.to_owned(),
            ..Default::default()
        };
        self.runtime.block_on(self.attachments.detach(request)).context("detach").map(drop)
    }
}

fn a_move(capsule: &str, version: &str) -> MoveSpec {
    MoveSpec { capsule: capsule.to_owned(), version: version.to_owned(), target: String::new() }
}

/// By its whole id and namespace, as a controller knows it.
fn reference(container: &str) -> Option<ContainerRef> {
    Some(ContainerRef { id: container.to_owned(), namespace: "default".to_owned() })
}
