//! A snapshotter that keeps nothing but a table in memory: behind containerd it shows what containerd itself costs, so
//! what no snapshotter can be faster than.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use capsule_proto::containerd::services::snapshots::v1::snapshots_server::{Snapshots, SnapshotsServer};
use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use capsule_proto::containerd::types::Mount;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};
use tonic::{Request, Response, Status, async_trait};

/// Infos in one message of List, as containerd's own service has them.
const BLOCK: usize = 100;

#[derive(Debug, Default)]
struct Nothing {
    table: Mutex<BTreeMap<String, Info>>,
}

/// Serves on `socket`, on a thread of its own, until this process ends.
pub fn start(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    listener.set_nonblocking(true).context("set up a socket")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let service = SnapshotsServer::from_arc(Arc::new(Nothing::default()));
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).context("take over a socket")?;
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.context("serve")
        })
    });
    Ok(())
}

/// Of no directory: nobody writes to it here.
fn mounts() -> Vec<Mount> {
    vec![Mount { r#type: "bind".to_owned(), source: "/run/nothing".to_owned(), ..Default::default() }]
}

impl Nothing {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut BTreeMap<String, Info>) -> Option<T>,
    ) -> Result<Response<T>, Status> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut table).map(Response::new).ok_or_else(|| Status::not_found("no such snapshot"))
    }

    fn insert(&self, name: String, parent: String, kind: Kind) -> Result<Vec<Mount>, Status> {
        let info = Info { name: name.clone(), parent, kind: kind.into(), ..Default::default() };
        self.with(|table| {
            table.insert(name, info);
            Some(mounts())
        })
        .map(Response::into_inner)
    }
}

#[async_trait]
impl Snapshots for Nothing {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, .. } = request.into_inner();
        let mounts = self.insert(key, parent, Kind::Active)?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, .. } = request.into_inner();
        let mounts = self.insert(key, parent, Kind::View)?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        self.with(|table| table.get(&key).map(|_| MountsResponse { mounts: mounts() }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { key, name, .. } = request.into_inner();
        self.with(|table| {
            let info = table.remove(&key)?;
            table.insert(name.clone(), Info { name, kind: Kind::Committed.into(), ..info });
            Some(())
        })
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.with(|table| table.remove(&key).map(drop))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        self.with(|table| table.get(&key).map(|info| StatSnapshotResponse { info: Some(info.clone()) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let info = request.into_inner().info;
        self.with(|table| {
            let info = info?;
            table.get_mut(&info.name)?.labels = info.labels.clone();
            Some(UpdateSnapshotResponse { info: Some(info) })
        })
    }

    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let infos: Vec<Info> = self.with(|table| Some(table.values().cloned().collect()))?.into_inner();
        let blocks: Vec<_> =
            infos.chunks(BLOCK).map(|infos| Ok(ListSnapshotsResponse { info: infos.to_vec() })).collect();
        Ok(Response::new(Box::pin(iter(blocks))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        self.with(|table| table.get(&key).map(|_| UsageResponse { size: 0, inodes: 0 }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
