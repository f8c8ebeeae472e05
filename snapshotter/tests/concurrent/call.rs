//! The calls of a client: chosen at random, made over the socket, and asked of the model.

use std::collections::BTreeMap;

use capsule_proto::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, ViewSnapshotRequest,
    snapshots_client::SnapshotsClient,
};
use tonic::{Code, Status, transport::Channel};

use super::{
    reference::{Kind, Labels, Reference, Refusal, Snapshot},
    rig::Seeded,
};

/// A call.
#[derive(Clone, Debug)]
pub enum Call {
    Create {
        kind: Kind,
        key: String,
        parent: String,
        label: String,
    },
    Commit {
        name: String,
        key: String,
        parent: String,
        label: String,
    },
    Remove {
        key: String,
    },
    /// Of the labels that the paths name.
    Update {
        key: String,
        label: String,
        paths: Vec<String>,
    },
    Stat {
        key: String,
    },
    Mounts {
        key: String,
    },
    List {
        filters: Vec<String>,
    },
}

/// Kind, parent and labels: what of a snapshot does not depend on the clock.
pub type Seen = (Kind, String, Labels);

/// What an answer tells: snapshots by key or name, or why not.
pub type Answer = Result<BTreeMap<String, Seen>, Refusal>;

/// Names that all clients use, and as many for each client alone.
const NAMES: u64 = 4;

fn labels(label: &str) -> Labels {
    [("l".to_owned(), label.to_owned()), ("m".to_owned(), format!("m{label}"))].into()
}

impl Call {
    /// Calls of that client. It often looks at what it has just tried to change.
    pub fn plan(random: &mut Seeded, client: usize, length: usize) -> Vec<Self> {
        let mut calls: Vec<Self> = Vec::new();
        while calls.len() < length {
            let look = calls.last().and_then(Self::changes).map(|key| Self::Stat { key: key.to_owned() });
            match look {
                Some(look) if random.chance(50) => calls.push(look),
                _ => calls.push(Self::choose(random, client)),
            }
        }
        calls
    }

    /// The key or name that it makes or removes.
    fn changes(&self) -> Option<&str> {
        match self {
            Self::Create { key, .. } | Self::Remove { key } => Some(key),
            Self::Commit { name, .. } => Some(name),
            Self::Update { .. } | Self::Stat { .. } | Self::Mounts { .. } | Self::List { .. } => None,
        }
    }

    /// Any call of that client.
    fn choose(random: &mut Seeded, client: usize) -> Self {
        let mut name = || match random.chance(60) {
            true => format!("shared/{}", random.below(NAMES)),
            false => format!("own-{client}/{}", random.below(NAMES)),
        };
        let (key, other) = (name(), name());
        let label = random.below(1000).to_string();
        let parent = if random.chance(40) { String::new() } else { other.clone() };
        match random.below(100) {
            0..28 => Self::Create { kind: Kind::Active, key, parent, label },
            28..38 => Self::Create { kind: Kind::View, key, parent, label },
            38..60 => {
                let parent = if random.chance(70) { String::new() } else { parent };
                Self::Commit { name: other, key, parent, label }
            }
            60..75 => Self::Remove { key },
            75..83 => {
                let paths: &[&str] = if random.chance(50) { &[] } else { &["labels.m"] };
                Self::Update { key, label, paths: paths.iter().map(|path| (*path).to_owned()).collect() }
            }
            83..91 => Self::Stat { key },
            91..95 => Self::Mounts { key },
            _ => {
                let filters: &[&str] = if random.chance(50) { &[] } else { &["kind==committed"] };
                Self::List { filters: filters.iter().map(|filter| (*filter).to_owned()).collect() }
            }
        }
    }

    /// The answer of the model, which the call changes.
    pub fn ask(&self, model: &mut Reference) -> Answer {
        let nothing = |()| BTreeMap::new();
        match self {
            Self::Create { kind, key, parent, label } => {
                model.create(*kind, key, parent, labels(label)).map(nothing)
            }
            Self::Commit { name, key, parent, label } => {
                model.commit(name, key, parent, labels(label)).map(nothing)
            }
            Self::Remove { key } => model.remove(key).map(nothing),
            Self::Update { key, label, paths } => {
                model.update(key, labels(label), paths).map(|snapshot| one(key, snapshot))
            }
            Self::Stat { key } => model.stat(key).map(|snapshot| one(key, snapshot)),
            Self::Mounts { key } => model.mounts(key).map(nothing),
            Self::List { filters } => {
                let found = model.list(filters)?.into_iter();
                Ok(found.flat_map(|(key, snapshot)| one(key, snapshot)).collect())
            }
        }
    }

    /// The answer of the daemon; a status when the connection broke.
    pub async fn make(&self, client: &mut SnapshotsClient<Channel>) -> Result<Answer, Status> {
        match self.send(client).await {
            Ok(infos) => Ok(Ok(infos.into_iter().map(seen).collect())),
            Err(status) => match status.code() {
                Code::NotFound => Ok(Err(Refusal::NotFound)),
                Code::AlreadyExists => Ok(Err(Refusal::AlreadyExists)),
                Code::FailedPrecondition => Ok(Err(Refusal::FailedPrecondition)),
                Code::InvalidArgument => Ok(Err(Refusal::InvalidArgument)),
                _ => Err(status),
            },
        }
    }

    async fn send(&self, client: &mut SnapshotsClient<Channel>) -> Result<Vec<Info>, Status> {
        let snapshotter = "capsule".to_owned();
        let given = |label: &str| labels(label).into_iter().collect();
        match self.clone() {
            Self::Create { kind: Kind::View, key, parent, label } => {
                let labels = given(&label);
                client.view(ViewSnapshotRequest { snapshotter, key, parent, labels }).await?;
            }
            Self::Create { key, parent, label, .. } => {
                let labels = given(&label);
                client.prepare(PrepareSnapshotRequest { snapshotter, key, parent, labels }).await?;
            }
            Self::Commit { name, key, parent, label } => {
                let labels = given(&label);
                client.commit(CommitSnapshotRequest { snapshotter, name, key, labels, parent }).await?;
            }
            Self::Remove { key } => _ = client.remove(RemoveSnapshotRequest { snapshotter, key }).await?,
            Self::Update { key, label, paths } => {
                let info = Some(Info { name: key, labels: given(&label), ..Info::default() });
                let update_mask = Some(prost_types::FieldMask { paths });
                let request = UpdateSnapshotRequest { snapshotter, info, update_mask };
                return Ok(client.update(request).await?.into_inner().info.into_iter().collect());
            }
            Self::Stat { key } => {
                let request = StatSnapshotRequest { snapshotter, key };
                return Ok(client.stat(request).await?.into_inner().info.into_iter().collect());
            }
            Self::Mounts { key } => _ = client.mounts(MountsRequest { snapshotter, key }).await?,
            Self::List { filters } => {
                let mut stream =
                    client.list(ListSnapshotsRequest { snapshotter, filters }).await?.into_inner();
                let mut infos = Vec::new();
                while let Some(block) = stream.message().await? {
                    infos.extend(block.info);
                }
                return Ok(infos);
            }
        }
        Ok(Vec::new())
    }
}

fn one(key: &str, snapshot: &Snapshot) -> BTreeMap<String, Seen> {
    [(key.to_owned(), (snapshot.kind, snapshot.parent.clone(), snapshot.labels.clone()))].into()
}

fn seen(info: Info) -> (String, Seen) {
    let kind = info.kind();
    (info.name, (kind, info.parent, info.labels.into_iter().collect()))
}
