//! A driver as the DaemonSet has it, and a client of its services.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::csi::v1::controller_client::ControllerClient;
use capsule_proto::csi::v1::identity_client::IdentityClient;
use capsule_proto::csi::v1::node_client::NodeClient;
use capsule_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use capsule_proto::csi::v1::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, Volume, VolumeCapability,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use crate::scenario::http;
use crate::scenario::world::{Daemon, log_of, path, resident, until};

/// Where the kubelet has its plugins.
pub const ENDPOINT: &str = "/var/lib/kubelet/plugins/csi.resourcecapsules.io/csi.sock";
pub const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.resourcecapsules.io-reg.sock";
/// The node.
pub const NODE: &str = "node1";
/// By which key it says so.
pub const TOPOLOGY: &str = "topology.resourcecapsules.io/node";
const ADDRESS: &str = "127.0.0.1:9473";
const LOG: &str = "capsule-csi";

/// A driver, and one connection.
pub struct Driver {
    daemon: Daemon,
    runtime: Runtime,
    channel: Channel,
}

/// The command, without a capability, as its container has none.
pub fn command(more: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "capsule-controller", "csi"]);
    command.args(["--node", NODE, "--endpoint", ENDPOINT, "--listen", ADDRESS]);
    command.args(more).env("PATH", path()).env("RUST_LOG", "debug,h2=info,hyper=info,tower=info");
    command
}

pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

/// A connection to a socket, made when it is first needed.
pub fn connect(runtime: &Runtime, socket: &'static str) -> Channel {
    let _in = runtime.enter();
    let connector =
        tower::service_fn(move |_: Uri| async move { UnixStream::connect(socket).await.map(TokioIo::new) });
    Endpoint::from_static("http://csi").connect_with_connector_lazy(connector)
}

impl Driver {
    /// Starts one that the kubelet finds.
    pub fn start() -> Result<Self> {
        Self::start_by(&mut command(&["--registration", REGISTRATION, "--kubelet-endpoint", ENDPOINT]))
    }

    pub fn start_by(command: &mut Command) -> Result<Self> {
        for socket in [ENDPOINT, REGISTRATION] {
            let folder = Path::new(socket).parent().context("a folder")?;
            fs::create_dir_all(folder).context("create the kubelet's folders")?;
        }
        let mut daemon = Daemon::start(LOG, command)?;
        daemon.wait_until(|| {
            std::os::unix::net::UnixStream::connect(ENDPOINT).is_ok() && http::get(ADDRESS, "/readyz").is_ok()
        })?;
        let runtime = runtime()?;
        let channel = connect(&runtime, ENDPOINT);
        Ok(Self { daemon, runtime, channel })
    }

    /// Kills it as `kill -9` does; another in its place.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        *self = Self::start()?;
        Ok(())
    }

    /// Ends it as the kubelet does; its sockets go.
    pub fn end(self) -> Result<()> {
        let Self { daemon, runtime, channel } = self;
        // Nobody would read on it that it is to be closed, and the driver waits for that.
        drop((channel, runtime));
        let pid = i32::try_from(daemon.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("end the driver")?;
        until("gone: the sockets", || Ok(!Path::new(ENDPOINT).exists() && !Path::new(REGISTRATION).exists()))
    }

    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    pub fn resident(&self) -> Result<String> {
        for socket in [ENDPOINT, REGISTRATION] {
            let meta = fs::symlink_metadata(socket).with_context(|| format!("look at {socket}"))?;
            let mode = meta.permissions().mode() & 0o777;
            ensure!(meta.file_type().is_socket() && mode == 0o600, "{socket}: mode {mode:o}");
        }
        Ok(format!("{} KiB of memory", resident(self.daemon.pid())?))
    }

    /// The answer to a call.
    pub fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(call).map(Response::into_inner)
    }

    pub fn both<T>(
        &self,
        calls: [impl Future<Output = Result<Response<T>, Status>>; 2],
    ) -> [Result<(), Status>; 2] {
        let [one, two] = calls;
        let (one, two) = self.runtime.block_on(async { tokio::join!(one, two) });
        [one.map(drop), two.map(drop)]
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let made = self.wait(async { self.controller().create_volume(request).await })?;
        made.volume.ok_or_else(|| Status::internal("no volume"))
    }

    pub fn delete(&self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.wait(async { self.controller().delete_volume(request).await }).map(drop)
    }

    pub fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.wait(async { self.node().node_publish_volume(request).await }).map(drop)
    }

    pub fn unpublish(&self, id: &str, path: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: path.to_owned() };
        self.wait(async { self.node().node_unpublish_volume(request).await }).map(drop)
    }

    /// What is counted, and that the log has each call that changes something once.
    pub fn counted(&self) -> Result<String> {
        let name = "pvc-counted";
        self.create(asked(name, Mode::SingleNodeWriter, &[]))?;
        self.delete(name)?;
        refused("no name", self.create(asked("", Mode::SingleNodeWriter, &[])), Code::InvalidArgument)?;
        let request = NodeGetVolumeStatsRequest {
            volume_id: name.to_owned(),
            volume_path: "/vol/counted".to_owned(),
            ..Default::default()
        };
        let stats = self.wait(async { self.node().node_get_volume_stats(request).await });
        refused("nothing", stats, Code::NotFound)?;
        let metrics = http::get(ADDRESS, "/metrics")?;
        for line in [
            "capsule_csi_calls_total{method=\"CreateVolume\",code=\"OK\"}",
            "capsule_csi_calls_total{method=\"CreateVolume\",code=\"InvalidArgument\"}",
            "capsule_csi_calls_total{method=\"NodeGetVolumeStats\",code=\"NotFound\"}",
            "capsule_csi_call_duration_seconds_count",
        ] {
            ensure!(metrics.contains(line), "no {line}: {metrics}");
        }
        http::get(ADDRESS, "/livez")?;
        let log = fs::read_to_string(log_of(LOG)).context("read the log")?;
        for method in ["CreateVolume", "DeleteVolume"] {
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| line.contains(name) && line.contains(&format!("method=\"{method}\"")))
                .collect();
            let has = |word: &str| lines.iter().all(|line| line.contains(word));
            ensure!(lines.len() == 1 && has("code=\"OK\"") && has("milliseconds="), "{method}: {lines:?}");
        }
        Ok(metrics.lines().find(|line| line.contains("CreateVolume")).unwrap_or_default().to_owned())
    }
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// A volume of 16 MiB, where it is written to.
pub fn asked(name: &str, mode: Mode, parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![capability(mode)],
        capacity_range: Some(CapacityRange { required_bytes: 16 << 20, limit_bytes: 0 }),
        parameters: map(parameters),
        ..CreateVolumeRequest::default()
    }
}

/// A volume at a path.
pub fn published(volume: &Volume, path: &str, mode: Mode) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        target_path: path.to_owned(),
        volume_capability: Some(capability(mode)),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

/// An inline volume, as the kubelet asks for it.
pub fn inline(id: &str, path: &str, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let pod = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "web"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
    ];
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: path.to_owned(),
        volume_capability: Some(capability(Mode::SingleNodeMultiWriter)),
        volume_context: map(&[&pod, attributes].concat()),
        ..Default::default()
    }
}

/// Fails unless the call was refused so; what was said.
pub fn refused<T>(what: &str, result: Result<T, Status>, code: Code) -> Result<String> {
    match result {
        Ok(_) => bail!("{what}: done, and not {code:?}"),
        Err(status) => {
            ensure!(status.code() == code, "{what}: {status} instead of {code:?}");
            ensure!(!status.message().is_empty(), "{what}: {code:?} without a word");
            Ok(status.message().to_owned())
        }
    }
}
