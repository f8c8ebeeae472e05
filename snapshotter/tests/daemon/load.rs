//! Clients that call without pause and tell of every call that failed.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, snapshots_client::SnapshotsClient,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    task::{JoinHandle, yield_now},
    time::timeout,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::site::{PATIENCE, Site};

pub type Client = SnapshotsClient<Channel>;

/// What the clients did.
#[derive(Debug, Default)]
pub struct Tally {
    pub calls: AtomicU64,
    pub again: AtomicU64,
    pub failures: Mutex<Vec<String>>,
    end: AtomicBool,
}

/// Clients at work.
pub struct Load {
    pub tally: Arc<Tally>,
    clients: Vec<JoinHandle<()>>,
}

/// A client whose connection is made with its first call, and again when it is lost.
pub fn client(socket: &Path) -> Client {
    let socket: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    SnapshotsClient::new(Endpoint::from_static("http://snapshots").connect_with_connector_lazy(connector))
}

impl Load {
    /// Starts `count` clients, each on a connection of its own.
    pub fn start(socket: &Path, count: usize) -> Self {
        let tally = Arc::new(Tally::default());
        let start = |number| tokio::spawn(work(client(socket), number, tally.clone()));
        Self { clients: (0..count).map(start).collect(), tally }
    }

    /// Ends the clients after the calls that they are at. Fails if a call failed, and says how many there were.
    pub async fn end(mut self, what: &str) -> u64 {
        self.tally.end.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.await.unwrap();
        }
        let failures = std::mem::take(&mut *self.tally.failures.lock().unwrap());
        let (calls, again) = (&self.tally.calls, &self.tally.again);
        let (calls, again) = (calls.load(Ordering::Relaxed), again.load(Ordering::Relaxed));
        println!("{what}: {calls} calls, {} failed, {again} made again before they left", failures.len());
        assert!(failures.is_empty(), "{what}: {} of {calls} failed: {failures:#?}", failures.len());
        calls
    }
}

/// A test that fails has no capsuled any more. Clients that went on would fail without a pause, and a runtime that ends
/// waits for them: the test would hang, and not say why it failed.
impl Drop for Load {
    fn drop(&mut self) {
        self.tally.end.store(true, Ordering::Relaxed);
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

async fn work(client: Client, number: usize, tally: Arc<Tally>) {
    let mut round = 0_u64;
    while !tally.end.load(Ordering::Relaxed) {
        round += 1;
        let key = format!("load-{number}-{round}");
        tally.call("prepare", || prepare(client.clone(), key.clone())).await;
        tally.call("stat", || stat(client.clone(), key.clone())).await;
        if round.is_multiple_of(8) {
            tally.call("list", || list(client.clone(), key.clone())).await;
        }
        tally.call("remove", || remove(client.clone(), key.clone())).await;
    }
}

impl Tally {
    /// Makes one call as a client of gRPC does: one that never left the client, because the connection was given up
    /// before, is made again on the next connection. gRPC calls that a transparent retry (gRPC proposal A6) and Go's
    /// client has it; tonic's has not.
    async fn call<F: Future<Output = Result<(), Status>>>(&self, name: &str, call: impl Fn() -> F) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        loop {
            match timeout(PATIENCE, call()).await {
                Ok(Ok(())) => return,
                Ok(Err(status)) if never_left(&status) => {
                    self.again.fetch_add(1, Ordering::Relaxed);
                    yield_now().await; // where an abandoned client ends
                }
                Ok(Err(status)) => return self.failed(format!("{name}: {status:?}")),
                Err(_) => return self.failed(format!("{name}: no answer in {} s", PATIENCE.as_secs())),
            }
        }
    }

    fn failed(&self, failure: String) {
        self.failures.lock().unwrap().push(failure);
    }
}

/// Whether the server has certainly not seen the request: it was waiting to be sent when its connection ended, or the
/// server's GOAWAY excludes it (RFC 9113 section 6.8).
fn never_left(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        let canceled = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let excluded = error
            .downcast_ref::<h2::Error>()
            .is_some_and(|e| e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR));
        if canceled || excluded {
            return true;
        }
        source = error.source();
    }
    false
}

fn capsule() -> String {
    "capsule".to_owned()
}

pub async fn prepare(mut client: Client, key: String) -> Result<(), Status> {
    let request = PrepareSnapshotRequest { snapshotter: capsule(), key, ..Default::default() };
    client.prepare(request).await.map(drop)
}

pub async fn stat(mut client: Client, key: String) -> Result<(), Status> {
    client.stat(StatSnapshotRequest { snapshotter: capsule(), key }).await.map(drop)
}

pub async fn remove(mut client: Client, key: String) -> Result<(), Status> {
    client.remove(RemoveSnapshotRequest { snapshotter: capsule(), key }).await.map(drop)
}

async fn list(mut client: Client, key: String) -> Result<(), Status> {
    let request = ListSnapshotsRequest { snapshotter: capsule(), filters: vec![format!("name=={key}")] };
    let mut stream = client.list(request).await?.into_inner();
    let mut found = 0;
    while let Some(block) = stream.message().await? {
        found += block.info.len();
    }
    if found == 1 { Ok(()) } else { Err(Status::not_found(format!("{found} snapshots listed"))) }
}

/// Every snapshot was removed: so are their directories, after a cleanup.
pub async fn assert_nothing_left(site: &Site) {
    client(&site.socket()).cleanup(CleanupRequest { snapshotter: capsule() }).await.unwrap();
    assert_eq!(std::fs::read_dir(site.path().join("lib/snapshots")).unwrap().count(), 0);
}

pub async fn commit(mut client: Client, key: &str) -> Result<(), Status> {
    let request = CommitSnapshotRequest {
        snapshotter: capsule(),
        name: format!("{key}-committed"),
        key: key.to_owned(),
        ..Default::default()
    };
    client.commit(request).await.map(drop)
}

/// Gives a snapshot one label, whose name is `l`.
pub async fn update(mut client: Client, key: String, value: String) -> Result<(), Status> {
    let labels = [("l".to_owned(), value)].into();
    let info = Some(Info { name: key, labels, ..Default::default() });
    client.update(UpdateSnapshotRequest { snapshotter: capsule(), info, update_mask: None }).await.map(drop)
}

/// The label `l` of a snapshot.
pub async fn label(mut client: Client, key: String) -> Result<String, Status> {
    let answer = client.stat(StatSnapshotRequest { snapshotter: capsule(), key }).await?.into_inner();
    Ok(answer.info.and_then(|info| info.labels.get("l").cloned()).unwrap_or_default())
}
