//! capsuled's snapshots, as containerd asks for them: one connection, used by one thread.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use capsule_proto::containerd::types::Mount;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use super::expect::{Kind, Snapshot, State};
use super::journal::{Call, Labels};

const SNAPSHOTTER: &str = "capsule";

/// What a snapshot's mounts say.
#[derive(Debug, Clone)]
pub struct Mounted {
    /// `overlay` or `bind`.
    pub kind: String,
    /// The options, as containerd passes them to the kernel.
    pub options: Vec<String>,
    /// The bind's source.
    pub source: PathBuf,
}

impl Mounted {
    fn from_wire(mounts: Vec<Mount>) -> Result<Self> {
        match <[Mount; 1]>::try_from(mounts) {
            Ok([mount]) => {
                Ok(Self { kind: mount.r#type, options: mount.options, source: mount.source.into() })
            }
            Err(other) => bail!("capsuled gave {} mounts instead of one", other.len()),
        }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// The directory that is written to (active), or the topmost one (view).
    pub fn top(&self) -> Result<PathBuf> {
        if self.kind == "bind" {
            return Ok(self.source.clone());
        }
        let lower = self.option("lowerdir").and_then(|lower| lower.split(':').next());
        self.option("upperdir")
            .or(lower)
            .map(PathBuf::from)
            .with_context(|| format!("no directory in {self:?}"))
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    snapshots: SnapshotsClient<Channel>,
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = tonic::metadata::MetadataValue::from_static("power");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

fn wire(labels: &Labels) -> HashMap<String, String> {
    labels.clone().into_iter().collect()
}

impl Client {
    /// Connects to the capsuled that listens on `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = runtime
            .block_on(Endpoint::from_static("http://capsuled").connect_with_connector(connector))
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self { runtime, snapshots: SnapshotsClient::new(channel) })
    }

    /// Makes a call; its refusal, when it was refused for what the state was. Other failures are errors.
    pub fn call(&mut self, call: &Call) -> Result<Option<String>> {
        match self.make(call) {
            Ok(()) => Ok(None),
            Err(status) => match status.code() {
                Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
                    Ok(Some(format!("{:?}: {}", status.code(), status.message())))
                }
                _ => Err(status).with_context(|| format!("{call:?}")),
            },
        }
    }

    fn make(&mut self, call: &Call) -> Result<(), Status> {
        let (runtime, snapshots) = (&self.runtime, &mut self.snapshots);
        let snapshotter = SNAPSHOTTER.to_owned();
        match call.clone() {
            Call::Create { key, parent, labels, view: false } => {
                let message = PrepareSnapshotRequest { snapshotter, key, parent, labels: wire(&labels) };
                runtime.block_on(snapshots.prepare(request(message))).map(drop)
            }
            Call::Create { key, parent, labels, view: true } => {
                let message = ViewSnapshotRequest { snapshotter, key, parent, labels: wire(&labels) };
                runtime.block_on(snapshots.view(request(message))).map(drop)
            }
            Call::Commit { key, name, labels, .. } => {
                let labels = wire(&labels);
                let parent = String::new();
                let message = CommitSnapshotRequest { snapshotter, name, key, labels, parent };
                runtime.block_on(snapshots.commit(request(message))).map(drop)
            }
            Call::Remove { key } => {
                let message = RemoveSnapshotRequest { snapshotter, key };
                runtime.block_on(snapshots.remove(request(message))).map(drop)
            }
            Call::Update { key, labels } => {
                let info = Info { name: key, labels: wire(&labels), ..Info::default() };
                let message = UpdateSnapshotRequest { snapshotter, info: Some(info), update_mask: None };
                runtime.block_on(snapshots.update(request(message))).map(drop)
            }
            Call::Cleanup => {
                let message = CleanupRequest { snapshotter };
                runtime.block_on(snapshots.cleanup(request(message))).map(drop)
            }
            Call::Deed(deed) => Err(Status::unimplemented(format!("{deed:?}"))),
        }
    }

    /// The mounts of an active snapshot or a view.
    pub fn mounts(&mut self, key: &str) -> Result<Mounted> {
        let message = MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let mounts = self.runtime.block_on(self.snapshots.mounts(request(message)));
        Mounted::from_wire(mounts.with_context(|| format!("mounts of {key}"))?.into_inner().mounts)
    }

    /// Files of a snapshot, as capsuled counted them.
    pub fn inodes(&mut self, key: &str) -> Result<i64> {
        let message = UsageRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let usage = self.runtime.block_on(self.snapshots.usage(request(message)));
        Ok(usage.with_context(|| format!("usage of {key}"))?.into_inner().inodes)
    }

    /// All snapshots.
    pub fn list(&mut self) -> Result<State> {
        let message = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: vec![] };
        let infos = self.runtime.block_on(async {
            let mut stream = self.snapshots.list(request(message)).await?.into_inner();
            let mut infos = Vec::new();
            while let Some(block) = stream.message().await? {
                infos.extend(block.info);
            }
            Ok::<_, Status>(infos)
        });
        infos.context("list")?.into_iter().map(from_wire).collect()
    }
}

fn from_wire(info: Info) -> Result<(String, Snapshot)> {
    let kind = match info.kind() {
        WireKind::View => Kind::View,
        WireKind::Active => Kind::Active,
        WireKind::Committed => Kind::Committed,
        WireKind::Unknown => bail!("{} is of no kind", info.name),
    };
    Ok((info.name, Snapshot { kind, parent: info.parent, labels: info.labels.into_iter().collect() }))
}
