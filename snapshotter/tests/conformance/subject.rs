//! A snapshotter to be tested, through its socket.

use std::{collections::HashMap, env, path::PathBuf};

use capsule_proto::containerd::{
    services::{
        snapshots::v1::{
            CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
            RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse,
            ViewSnapshotRequest, snapshots_client::SnapshotsClient, snapshots_server::SnapshotsServer,
        },
        version::v1::version_client::VersionClient,
    },
    types::Mount,
};
use capsuled::{
    dirs::Dirs,
    server,
    service::SnapshotsService,
    snapshots::{Behaviour, Environment, OverlayOptions, Snapshots},
    store::Store,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    service::Routes,
    transport::{Channel, Endpoint},
};

/// Keeps containerd's garbage collector away.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// Labels by key.
pub type Labels = HashMap<String, String>;

/// A snapshotter, and a prefix that keeps the scenarios of one containerd apart.
#[derive(Clone)]
pub struct Subject {
    client: SnapshotsClient<Channel>,
    snapshotter: String,
    prefix: String,
    /// The label that every snapshot of the scenario has.
    pub mark: String,
    /// The release of the containerd, (major, minor); none when it is our own service.
    release: Option<(u32, u32)>,
    _root: Option<std::sync::Arc<tempfile::TempDir>>,
}

async fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://snapshots").connect_with_connector(connector).await.unwrap()
}

/// Asks a containerd which release it is.
async fn read_release(channel: Channel) -> (u32, u32) {
    let version = VersionClient::new(channel).version(()).await.unwrap().into_inner().version;
    let mut numbers = version.trim_start_matches('v').split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// One or several labels.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Subject {
    /// Our service on a store, directories and a socket of its own.
    pub async fn ours(scenario: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("lib"));
        dirs.create().unwrap();
        let store = Store::open(&dirs.metadata()).unwrap();
        let overlay = OverlayOptions::read().unwrap();
        let behaviour = Behaviour { remap_ids: true, ..Behaviour::default() };
        let engine = Snapshots::open(Environment { store, dirs, overlay, behaviour }).unwrap();
        let socket = root.path().join("run/capsuled.sock");
        let listener = server::listen(&socket).unwrap();
        let routes = Routes::new(SnapshotsServer::new(SnapshotsService::new(engine)));
        tokio::spawn(server::serve(listener, routes, std::future::pending()));
        Self {
            client: SnapshotsClient::new(connect(socket).await),
            snapshotter: "capsule".to_owned(),
            prefix: String::new(),
            mark: scenario.to_owned(),
            release: None,
            _root: Some(std::sync::Arc::new(root)),
        }
    }

    /// The containerd that the environment names.
    pub async fn reference(scenario: &str) -> Self {
        let socket = env::var_os("CAPSULE_TEST_CONTAINERD").expect("CAPSULE_TEST_CONTAINERD names no socket");
        let channel = connect(socket.into()).await;
        Self {
            release: Some(read_release(channel.clone()).await),
            client: SnapshotsClient::new(channel),
            snapshotter: env::var("CAPSULE_TEST_SNAPSHOTTER").unwrap_or_else(|_| "overlayfs".to_owned()),
            prefix: format!("{scenario}-{}-", std::process::id()),
            mark: format!("{scenario}-{}", std::process::id()),
            _root: None,
        }
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

    /// Names that the filters select, sorted. `KEY(x)` in a filter stands for the full key of `x`, and every filter is
    /// narrowed to this scenario.
    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<String>, Status> {
        let own = format!("labels.\"{ROOT_LABEL}\"=={}", self.mark);
        let expand = |filter: &&str| {
            let filter = filter.replace("KEY(", &format!("\"{}", self.prefix)).replace(')', "\"");
            if filter.is_empty() { own.clone() } else { format!("{filter},{own}") }
        };
        let filters = filters.iter().map(expand).collect();
        let message = ListSnapshotsRequest { snapshotter: self.snapshotter.clone(), filters };
        let mut stream = self.client.list(Self::request(message)).await?.into_inner();
        let mut names = Vec::new();
        while let Some(block) = stream.message().await? {
            names.extend(block.info.iter().map(|info| self.name(&info.name)));
        }
        names.sort();
        Ok(names)
    }

    pub async fn usage(&mut self, key: &str) -> Result<UsageResponse, Status> {
        let message = UsageRequest { snapshotter: self.snapshotter.clone(), key: self.key(key) };
        Ok(self.client.usage(Self::request(message)).await?.into_inner())
    }
}
