//! A snapshotter to be tested, behind the API: which it is, no scenario can tell.

use std::{any::Any, collections::HashMap, env, sync::Arc};

use capsule_proto::containerd::{
    services::{
        snapshots::v1::{
            CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
            PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
            UsageRequest, UsageResponse, ViewSnapshotRequest,
            snapshots_client::SnapshotsClient,
            snapshots_server::{Snapshots as SnapshotsApi, SnapshotsServer},
        },
        version::v1::version_client::VersionClient,
    },
    types::Mount,
};
use capsuled::{
    dirs::Dirs,
    service::SnapshotsService,
    snapshots::{Behaviour, Environment, OverlayOptions, Snapshots},
    store::Store,
};
use tonic::{
    Request, Status,
    codegen::http,
    transport::{Channel, Error},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::{
    reference::Served,
    rig::{Daemon, Seeded, channel},
};

type Body = tonic::body::Body;
type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Error>;

/// Keeps containerd's garbage collector away.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// Largest message of containerd's clients and servers.
const MESSAGE_MAX: usize = 16 << 20;

/// Labels by key.
pub type Labels = HashMap<String, String>;

/// A snapshotter, and a prefix that keeps the scenarios of one containerd apart.
#[derive(Clone)]
pub struct Subject {
    client: SnapshotsClient<Transport>,
    snapshotter: String,
    prefix: String,
    /// The label that every snapshot of the scenario has.
    pub mark: String,
    /// The release of the containerd, (major, minor); none when there is none before the snapshotter.
    release: Option<(u32, u32)>,
    /// What ends with the subject.
    _kept: Arc<dyn Any + Send + Sync>,
}

/// One or several labels.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A service of this process, as a transport: through the API's messages, and no socket.
fn in_process(server: SnapshotsServer<impl SnapshotsApi>) -> Transport {
    BoxCloneSyncService::new(ServiceExt::<http::Request<Body>>::map_err(server, |never| match never {}))
}

fn over_socket(channel: Channel) -> Transport {
    BoxCloneSyncService::new(channel)
}

/// Asks a containerd which release it is.
async fn read_release(channel: Channel) -> (u32, u32) {
    let version = VersionClient::new(channel).version(()).await.unwrap().into_inner().version;
    let mut numbers = version.trim_start_matches('v').split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

impl Subject {
    fn new(transport: Transport, scenario: &str, kept: impl Any + Send + Sync) -> Self {
        Self {
            client: SnapshotsClient::new(transport).max_decoding_message_size(MESSAGE_MAX),
            snapshotter: "capsule".to_owned(),
            prefix: String::new(),
            mark: scenario.to_owned(),
            release: None,
            _kept: Arc::new(kept),
        }
    }

    /// The reference model in memory. It has no directories and gives no mounts.
    pub fn model(scenario: &str) -> Self {
        Self::new(
            in_process(SnapshotsServer::new(Served::default()).max_decoding_message_size(MESSAGE_MAX)),
            scenario,
            (),
        )
    }

    /// The engine over a store and directories on the disk, without a daemon.
    pub fn store(scenario: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("lib"));
        dirs.create().unwrap();
        let store = Store::open(&dirs.metadata()).unwrap();
        let overlay = OverlayOptions::read().unwrap();
        let behaviour = Behaviour { remap_ids: true, ..Behaviour::default() };
        let engine = Snapshots::open(Environment { store, dirs, overlay, behaviour }).unwrap();
        Self::new(in_process(SnapshotsService::new(engine).into_server()), scenario, root)
    }

    /// A capsuled process over its socket.
    pub fn daemon(scenario: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(root.path());
        Self::new(over_socket(channel(daemon.socket())), scenario, (daemon, root))
    }

    /// The containerd that the environment names.
    pub async fn containerd(scenario: &str) -> Self {
        let socket = env::var_os("CAPSULE_TEST_CONTAINERD").expect("CAPSULE_TEST_CONTAINERD names no socket");
        let snapshotter = env::var("CAPSULE_TEST_SNAPSHOTTER").unwrap_or_else(|_| "overlayfs".to_owned());
        let mark = format!("{scenario}-{}", Seeded::fresh_seed());
        let channel = channel(socket);
        let release = Some(read_release(channel.clone()).await);
        let subject = Self::new(over_socket(channel), &mark, ());
        Self { snapshotter, prefix: format!("{mark}-"), release, ..subject }
    }

    /// Whether it is a containerd older than that release, which need not know what came with it.
    pub fn is_older_than(&self, major: u32, minor: u32) -> bool {
        self.release.is_some_and(|release| release < (major, minor))
    }

    /// Whether there is a containerd before the snapshotter.
    pub fn is_containerd(&self) -> bool {
        self.release.is_some()
    }

    fn key(&self, name: &str) -> String {
        if name.is_empty() { String::new() } else { format!("{}{name}", self.prefix) }
    }

    fn name(&self, key: &str) -> String {
        key.strip_prefix(&self.prefix).unwrap_or(key).to_owned()
    }

    fn marked(&self, mut labels: Labels) -> Labels {
        labels.insert(ROOT_LABEL.to_owned(), self.mark.clone());
        labels
    }

    fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", "conformance".parse().unwrap());
        request
    }

    fn named(&self, info: Option<Info>) -> Info {
        let mut info = info.unwrap();
        info.name = self.name(&info.name);
        info.parent = self.name(&info.parent);
        info.labels.remove(ROOT_LABEL);
        info
    }

    pub async fn prepare(&mut self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (self.snapshotter.clone(), self.key(key), self.key(parent));
        let message = PrepareSnapshotRequest { snapshotter, key, parent, labels: self.marked(labels) };
        Ok(self.client.prepare(Self::request(message)).await?.into_inner().mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (self.snapshotter.clone(), self.key(key), self.key(parent));
        let message = ViewSnapshotRequest { snapshotter, key, parent, labels: self.marked(labels) };
        Ok(self.client.view(Self::request(message)).await?.into_inner().mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let message = MountsRequest { snapshotter: self.snapshotter.clone(), key: self.key(key) };
        Ok(self.client.mounts(Self::request(message)).await?.into_inner().mounts)
    }

    pub async fn commit(&mut self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        self.commit_on(name, key, "", labels).await
    }

    /// Commits on a parent that the snapshot was not prepared on.
    pub async fn commit_on(
        &mut self,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<(), Status> {
        let (snapshotter, parent) = (self.snapshotter.clone(), self.key(parent));
        let (name, key, labels) = (self.key(name), self.key(key), self.marked(labels));
        let message = CommitSnapshotRequest { snapshotter, name, key, labels, parent };
        self.client.commit(Self::request(message)).await.map(drop)
    }

    pub async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let message = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.key(key) };
        self.client.remove(Self::request(message)).await.map(drop)
    }

    pub async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let message = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.key(key) };
        let info = self.client.stat(Self::request(message)).await?.into_inner().info;
        Ok(self.named(info))
    }

    /// Updates labels; `paths` are the field mask.
    pub async fn update(&mut self, key: &str, labels: Labels, paths: &[&str]) -> Result<Info, Status> {
        let labels = if paths.is_empty() || paths.contains(&"labels") { self.marked(labels) } else { labels };
        let info = Info { name: self.key(key), parent: "doesnotexist".to_owned(), labels, ..Info::default() };
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let message = UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let info = self.client.update(Self::request(message)).await?.into_inner().info;
        Ok(self.named(info))
    }

    pub async fn cleanup(&mut self) -> Result<(), Status> {
        let message = CleanupRequest { snapshotter: self.snapshotter.clone() };
        self.client.cleanup(Self::request(message)).await.map(drop)
    }

    /// Names that the filters select, sorted. `KEY(x)` in a filter stands for the full key of `x`, and every filter is
    /// narrowed to this scenario.
    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<String>, Status> {
        let own = format!("labels.\"{ROOT_LABEL}\"=={}", self.mark);
        let expand = |filter: &&str| {
            let filter = filter.replace("KEY(", &format!("\"{}", self.prefix)).replace(')', "\"");
            if filter.is_empty() { own.clone() } else { format!("{filter},{own}") }
        };
        let filters = filters.iter().map(expand).collect();
        let mut names: Vec<String> =
            self.stream(filters).await?.concat().into_iter().map(|info| info.name).collect();
        names.sort();
        Ok(names)
    }

    /// What a listing of this scenario's snapshots says, message by message.
    pub async fn list_blocks(&mut self) -> Result<Vec<Vec<Info>>, Status> {
        let own = format!("labels.\"{ROOT_LABEL}\"=={}", self.mark);
        self.stream(vec![own]).await
    }

    /// How a listing with exactly this filter ends.
    pub async fn list_exactly(&mut self, filter: &str) -> Result<(), Status> {
        self.stream(vec![filter.to_owned()]).await.map(drop)
    }

    async fn stream(&mut self, filters: Vec<String>) -> Result<Vec<Vec<Info>>, Status> {
        let message = ListSnapshotsRequest { snapshotter: self.snapshotter.clone(), filters };
        let mut stream = self.client.list(Self::request(message)).await?.into_inner();
        let mut blocks = Vec::new();
        while let Some(block) = stream.message().await? {
            blocks.push(block.info.into_iter().map(|info| self.named(Some(info))).collect());
        }
        Ok(blocks)
    }

    pub async fn usage(&mut self, key: &str) -> Result<UsageResponse, Status> {
        let message = UsageRequest { snapshotter: self.snapshotter.clone(), key: self.key(key) };
        Ok(self.client.usage(Self::request(message)).await?.into_inner())
    }
}
