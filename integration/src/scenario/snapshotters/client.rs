//! One client: one connection, one call at a time, as one containerd client or one container start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use capsule_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use capsule_proto::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use capsule_proto::containerd::types::Mount;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};

use super::subject::{CONTAINERD, Subject};

/// What the benchmark makes in containerd is here.
pub const NAMESPACE: &str = "bench";
/// What containerd's collector never takes.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// A connection of its own to a socket.
pub async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://snapshots");
    endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to {}", socket.display()))
}

/// A request in the benchmark's namespace, which holds what it makes in `lease`.
pub fn request<T>(message: T, lease: Option<&AsciiMetadataValue>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", AsciiMetadataValue::from_static(NAMESPACE));
    if let Some(lease) = lease {
        metadata.insert("containerd-lease", lease.clone());
    }
    request
}

/// A lease of containerd's: what clients of containerd hold new snapshots by.
#[derive(Debug, Clone)]
pub struct Lease {
    id: AsciiMetadataValue,
    leases: LeasesClient<Channel>,
}

impl Lease {
    /// Makes one.
    pub async fn create(id: &str) -> Result<Self> {
        let mut leases = LeasesClient::new(connect(Path::new(CONTAINERD)).await?);
        let message = CreateRequest { id: id.to_owned(), labels: HashMap::new() };
        leases.create(request(message, None)).await.with_context(|| format!("create the lease {id}"))?;
        Ok(Self { id: id.parse().context("a lease's id")?, leases })
    }

    /// Gives up what it holds and returns when containerd's collector has removed it all.
    pub async fn collect(mut self) -> Result<()> {
        let id = self.id.to_str().context("a lease's id")?.to_owned();
        let message = DeleteRequest { id, sync: true };
        self.leases.delete(request(message, None)).await.context("collect").map(drop)
    }
}

/// One client of a subject.
#[derive(Debug, Clone)]
pub struct Client {
    snapshots: SnapshotsClient<Channel>,
    snapshotter: String,
    lease: Option<AsciiMetadataValue>,
}

impl Client {
    /// Connects. Behind containerd, what is made is held by `lease`, or for ever when there is none.
    pub async fn connect(subject: &Subject, lease: Option<&Lease>) -> Result<Self> {
        Ok(Self {
            snapshots: SnapshotsClient::new(connect(&subject.socket()).await?),
            snapshotter: subject.snapshotter.name().to_owned(),
            lease: lease.map(|lease| lease.id.clone()),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        request(message, self.lease.as_ref())
    }

    fn labels(&self) -> HashMap<String, String> {
        match self.lease {
            Some(_) => HashMap::new(),
            None => HashMap::from([(ROOT_LABEL.to_owned(), "bench".to_owned())]),
        }
    }

    /// Prepare.
    pub async fn prepare(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: self.labels(),
        };
        let request = self.request(message);
        let answer = self.snapshots.prepare(request).await.with_context(|| format!("prepare {key}"))?;
        Ok(answer.into_inner().mounts)
    }

    /// View.
    pub async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: self.labels(),
        };
        let request = self.request(message);
        let answer = self.snapshots.view(request).await.with_context(|| format!("view {key}"))?;
        Ok(answer.into_inner().mounts)
    }

    /// Mounts.
    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>> {
        let message = MountsRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let request = self.request(message);
        let answer = self.snapshots.mounts(request).await.with_context(|| format!("mounts of {key}"))?;
        Ok(answer.into_inner().mounts)
    }

    /// Commit.
    pub async fn commit(&mut self, name: &str, key: &str) -> Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: self.labels(),
            ..Default::default()
        };
        let request = self.request(message);
        self.snapshots.commit(request).await.with_context(|| format!("commit {key}")).map(drop)
    }

    /// Remove.
    pub async fn remove(&mut self, key: &str) -> Result<()> {
        let message = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let request = self.request(message);
        self.snapshots.remove(request).await.with_context(|| format!("remove {key}")).map(drop)
    }

    /// Stat.
    pub async fn stat(&mut self, key: &str) -> Result<()> {
        let message = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let request = self.request(message);
        self.snapshots.stat(request).await.with_context(|| format!("stat {key}")).map(drop)
    }

    /// Usage, in bytes.
    pub async fn usage(&mut self, key: &str) -> Result<i64> {
        let message = UsageRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let request = self.request(message);
        let usage = self.snapshots.usage(request).await.with_context(|| format!("usage of {key}"))?;
        Ok(usage.into_inner().size)
    }

    /// How many snapshots List gives.
    pub async fn list(&mut self) -> Result<usize> {
        let message = ListSnapshotsRequest { snapshotter: self.snapshotter.clone(), filters: Vec::new() };
        let request = self.request(message);
        let mut stream = self.snapshots.list(request).await.context("list")?.into_inner();
        let mut count = 0;
        while let Some(block) = stream.message().await.context("list")? {
            count += block.info.len();
        }
        Ok(count)
    }

    /// Cleanup: directories that Remove left.
    pub async fn cleanup(&mut self) -> Result<()> {
        let message = CleanupRequest { snapshotter: self.snapshotter.clone() };
        let request = self.request(message);
        self.snapshots.cleanup(request).await.context("cleanup").map(drop)
    }
}

/// The directory on the node that an active snapshot's files are written to.
pub fn upper_of(mounts: &[Mount]) -> Option<PathBuf> {
    let mount = mounts.first()?;
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    Some(upper.unwrap_or(&mount.source).into())
}
