//! The storage driver `csi.resourcecapsules.io` of one node: the container storage interface, version 1.11 (Identity, Controller, Node),
//! over this node's capsuled.
//!
//! It keeps nothing: what a volume is, capsuled knows (`capsule.v1.Volumes`) or the volume's context says, so it can be killed and started
//! at any moment. It mounts nothing either: capsuled does, so it needs no privilege but the sockets. Each node's serves that node alone,
//! its Controller service too: what is written to a volume lies on the node where it was made, and a volume that is only read is the same on
//! each node that has its version.
//!
//! | room | what |
//! | --- | --- |
//! | [`identity`], [`controller`], [`node`] | the services |
//! | [`volumes`], [`listing`], [`snapshots`] | what the Controller service does |
//! | [`calls`] | each call to its end, counted, logged, and of one volume one at a time |
//! | [`capsuled`], [`current`] | what is asked of others |
//! | [`registration`], [`sockets`] | how the kubelet finds it |
//! | [`names`], [`parameters`], [`capabilities`], [`pages`] | pure |

mod authority;
mod calls;
mod capabilities;
mod capsuled;
mod controller;
mod current;
mod identity;
mod listing;
mod names;
mod node;
mod pages;
mod parameters;
mod registration;
mod snapshots;
mod sockets;
#[cfg(test)]
mod tests;
mod volumes;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use capsule_proto::csi::v1::{
    Topology, controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
};
use futures::TryStreamExt as _;
use kube::Client;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, Status, transport::Server};

use self::{
    authority::Corrected,
    calls::{Kind, Turns},
    capsuled::Capsuled,
    current::Current,
    names::VolumeId,
};
use crate::meters::Meters;

/// What it is called.
pub const NAME: &str = "csi.resourcecapsules.io";
/// By this key a node says which one it is, and a volume on which it lies.
pub const TOPOLOGY: &str = "topology.resourcecapsules.io/node";
/// The longest value that Kubernetes takes for it, in bytes: it becomes a label.
const TOPOLOGY_MAX: usize = 63;
/// How often capsuled is asked whether it answers.
const OFTEN: Duration = Duration::from_secs(5);
/// How long calls may go on when the driver is to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What the driver is told when it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is served; `unix:` before it is passed over.
    pub endpoint: PathBuf,
    /// capsuled's socket.
    pub socket: PathBuf,
    /// The node's name in the cluster.
    pub node: String,
    /// Where the kubelet finds it, if it is to: the registration's socket, and the driver's as the kubelet sees it.
    pub registration: Option<(PathBuf, PathBuf)>,
}

/// The driver: cheap to clone, shared.
#[derive(Debug, Clone)]
struct Driver {
    capsuled: Capsuled,
    node: String,
    meters: Meters,
    turns: Turns,
    current: Option<Current>,
}

impl Driver {
    /// Makes a call.
    async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        method: &'static str,
        about: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        calls::call(&self.meters, kind, method, about.to_owned(), work).await
    }

    /// Where this node is.
    fn topology(&self) -> Topology {
        Topology { segments: HashMap::from([(TOPOLOGY.to_owned(), self.node.clone())]) }
    }

    /// Whether that is this node. Keys are the same in capitals.
    fn is_here(&self, topology: &Topology) -> bool {
        topology.segments.iter().any(|(key, node)| key.eq_ignore_ascii_case(TOPOLOGY) && *node == self.node)
    }
}

/// Something that a call has to have.
fn required<'a>(what: &str, value: &'a str) -> Result<&'a str, Status> {
    match value {
        "" => Err(Status::invalid_argument(format!("{what} is missing"))),
        value => Ok(value),
    }
}

/// What the driver does not say that it has.
fn not_offered(what: &str) -> Status {
    Status::unimplemented(format!("this driver has no {what}, and does not say that it has"))
}

/// A volume that should be there.
fn not_there(id: &str) -> Status {
    Status::not_found(format!("there is no volume {id} on this node"))
}

/// The id of a volume that should be there. What is not of the form is no volume's.
fn known_id(sent: &str) -> Result<VolumeId, Status> {
    VolumeId::parse(required("volume_id", sent)?).ok_or_else(|| not_there(sent))
}

/// As CSI counts bytes.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Serves the driver until `ended`, or until the kubelet refuses it. With `client`, volumes that Kubernetes provisioned have the version
/// that their PersistentVolume says.
///
/// # Errors
/// A socket cannot be served, or the kubelet does not take the driver: it is to be started again.
pub async fn run(
    settings: Settings,
    client: Option<Client>,
    meters: Meters,
    ended: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    is_topology(&settings.node)?;
    let driver = Driver {
        capsuled: Capsuled::new(settings.socket),
        node: settings.node,
        meters,
        turns: Turns::default(),
        current: client.map(Current::new),
    };
    let endpoint = without_scheme(&settings.endpoint);
    let (listener, _served) = sockets::listen(&endpoint).await?;
    let (end, ending) = watch::channel(false);
    let router = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()));
    let incoming = UnixListenerStream::new(listener).map_ok(Corrected::new);
    let serving = router.serve_with_incoming_shutdown(incoming, told(ending.clone()));
    let mut serving = tokio::spawn(serving);
    tracing::info!(endpoint = %endpoint.display(), node = driver.node, "serves {NAME}");
    let registration = async {
        match settings.registration {
            Some((path, endpoint)) => registration::serve(&path, &endpoint).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        served = &mut serving => return served.context("the server")?.context("serve").map(drop),
        refused = registration => refused,
        () = looks(&driver) => Ok(()),
        () = ended => Ok(()),
    };
    _ = end.send(true); // nobody serves any more: all the better
    match tokio::time::timeout(DRAIN, serving).await {
        Ok(served) => served.context("the server")?.context("serve")?,
        Err(_) => tracing::warn!("calls that have not ended in {DRAIN:?} are broken off"),
    }
    outcome
}

/// Looks again and again whether capsuled answers.
async fn looks(driver: &Driver) {
    let mut was = None;
    loop {
        let answer = driver.capsuled.answers().await;
        driver.meters.set_ready(answer.is_ok());
        driver.meters.turned();
        match answer {
            Ok(()) if was != Some(true) => tracing::info!("capsuled answers"),
            Err(status) if was != Some(false) => tracing::warn!(error = status.message(), "capsuled"),
            _ => (),
        }
        was = Some(driver.meters.is_ready());
        tokio::time::sleep(OFTEN).await;
    }
}

async fn told(mut ending: watch::Receiver<bool>) {
    // An error is the sender gone, which ends as well.
    _ = ending.wait_for(|ends| *ends).await;
}

/// `CSI_ENDPOINT` is a URI for some who start drivers.
fn without_scheme(endpoint: &std::path::Path) -> PathBuf {
    let text = endpoint.to_string_lossy();
    match text.strip_prefix("unix:") {
        Some(path) => PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
        None => endpoint.to_owned(),
    }
}

/// The kubelet makes a label of it.
fn is_topology(node: &str) -> anyhow::Result<()> {
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    let is_value = node.len() <= TOPOLOGY_MAX
        && node.starts_with(is_edge)
        && node.ends_with(is_edge)
        && node.chars().all(|c| is_edge(c) || matches!(c, '-' | '_' | '.'));
    ensure!(
        is_value,
        "--node {node:?}: use letters, digits, '-', '_' and '.', with a letter or a digit first and last, {TOPOLOGY_MAX} bytes at most"
    );
    Ok(())
}
