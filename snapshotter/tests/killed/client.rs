//! One client: random calls, one at a time, each noted before it is made and again when it is answered.

use std::{path::PathBuf, sync::Arc, time::Duration};

use capsule_proto::containerd::{
    services::snapshots::v1::{
        CleanupRequest, CommitSnapshotRequest, Info, Kind, MountsRequest, PrepareSnapshotRequest,
        RemoveSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use super::{
    ledger::{Labels, Op, Shared, Snapshots, apply},
    rig::{self, Seeded, id_of},
    tree,
};

/// How long an answer, or the end of the daemon, may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// More snapshots than that, and a client removes more than it makes.
const CROWD: usize = 14;

/// What the answers of a call may be: success, a refusal, or either where it depends on what other clients did.
struct Expected {
    success: bool,
    refusals: &'static [Code],
}

const SUCCESS: Expected = Expected { success: true, refusals: &[] };

const fn refused(refusals: &'static [Code]) -> Expected {
    Expected { success: false, refusals }
}

/// A client. Its keys and names are its own; its parents may be anybody's.
pub struct Client {
    number: usize,
    random: Seeded,
    shared: Arc<Shared>,
    pub held: Snapshots,
    /// The call that was made and not answered.
    pub in_flight: Option<Op>,
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that were not told that the daemon had died.
    pub untold: u64,
    serial: u64,
}

/// The directory that an active snapshot's files go to.
pub fn upper(mount: &Mount) -> PathBuf {
    let option = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    option.unwrap_or(&mount.source).into()
}

impl Client {
    pub fn new(number: usize, seed: u64, shared: Arc<Shared>) -> Self {
        let random = Seeded::new(seed);
        let held = Snapshots::new();
        Self { number, random, shared, held, in_flight: None, answered: 0, untold: 0, serial: 0 }
    }

    /// What its keys and names begin with.
    pub fn prefix(&self) -> String {
        format!("campaign/{}/", self.number)
    }

    /// Makes calls until the daemon is gone.
    pub async fn run(&mut self, mut snapshotter: SnapshotsClient<Channel>) {
        loop {
            let op = self.choose();
            let expected = self.expect(&op);
            self.in_flight = Some(op.clone());
            let Ok(result) = timeout(PATIENCE, self.call(&mut snapshotter, &op)).await else {
                // Seen once in some 20,000 deaths: the connection was closed, and tonic had woken nobody.
                assert!(self.shared.is_dying(), "{op:?}: no answer after {PATIENCE:?}");
                rig::report(&format!("a call was not told that capsuled had died: {op:?}"));
                self.untold += 1;
                return;
            };
            match result {
                Ok(mounts) => {
                    assert!(expected.success, "{op:?} must be refused");
                    self.acknowledge(&op, mounts);
                }
                Err(status) if is_answer(&status) => {
                    assert!(expected.refusals.contains(&status.code()), "{op:?}: {status}");
                }
                Err(status) => {
                    assert!(self.shared.is_dying(), "{op:?}: {status}");
                    return;
                }
            }
            self.in_flight = None;
            self.answered += 1;
        }
    }

    fn acknowledge(&mut self, op: &Op, mounts: Vec<Mount>) {
        apply(&mut self.held, op);
        match op {
            Op::Create { kind: Kind::Active, key, .. } => {
                let upper = upper(&mounts[0]);
                let id = id_of(&upper);
                self.shared.take_id(id, key);
                tree::fill(&upper, &mut self.random).unwrap();
                let held = self.held.get_mut(key).unwrap();
                held.id = Some(id);
                held.content = Some(tree::digest(&upper).unwrap());
            }
            Op::Mounts { key } => {
                let held = &self.held[key];
                assert!(held.kind == Kind::View || held.id == Some(id_of(&upper(&mounts[0]))), "{key}");
            }
            Op::Commit { name, .. } => self.shared.publish(name),
            _ => {}
        }
    }

    fn fresh(&mut self) -> String {
        self.serial += 1;
        format!("{}{}", self.prefix(), self.serial)
    }

    fn labels(&mut self) -> Labels {
        let labels = [("owner".to_owned(), self.prefix()), ("l".to_owned(), self.random.next().to_string())];
        labels.into_iter().collect()
    }

    fn keys(&self, kind: Kind) -> Vec<String> {
        self.held.iter().filter(|(_, held)| held.kind == kind).map(|(key, _)| key.clone()).collect()
    }

    /// A key or name that it holds; one that nobody holds when there is none.
    fn any_key(&mut self) -> String {
        let keys: Vec<String> = self.held.keys().cloned().collect();
        self.random.pick(&keys).cloned().unwrap_or_else(|| self.fresh())
    }

    fn choose(&mut self) -> Op {
        let crowded = self.held.len() > CROWD;
        match self.random.below(100) {
            _ if crowded && self.random.chance(60) => Op::Remove { key: self.any_key() },
            0..35 => self.choose_create(),
            35..60 => self.choose_commit(),
            60..75 => Op::Remove { key: self.any_key() },
            75..85 => Op::Update { key: self.any_key(), labels: self.labels() },
            85..92 => Op::Mounts { key: self.any_key() },
            92..97 => Op::Usage { key: self.any_key() },
            _ => Op::Cleanup,
        }
    }

    fn choose_create(&mut self) -> Op {
        let parents = if self.random.chance(50) { self.shared.names() } else { self.keys(Kind::Committed) };
        let parent = match self.random.chance(30) {
            true => String::new(),
            false => self.random.pick(&parents).cloned().unwrap_or_default(),
        };
        let kind = if self.random.chance(25) { Kind::View } else { Kind::Active };
        let key = if self.random.chance(5) { self.any_key() } else { self.fresh() };
        Op::Create { kind, key, parent, labels: self.labels() }
    }

    fn choose_commit(&mut self) -> Op {
        let active = self.keys(Kind::Active);
        let key = match self.random.pick(&active) {
            Some(key) if !self.random.chance(5) => key.clone(),
            _ => self.any_key(),
        };
        let name = if self.random.chance(5) { self.any_key() } else { self.fresh() };
        let bare = self.held.get(&key).is_some_and(|held| held.parent.is_empty());
        let parents = if bare && self.random.chance(30) { self.shared.names() } else { Vec::new() };
        let parent = self.random.pick(&parents).cloned().unwrap_or_default();
        Op::Commit { name, key, parent, labels: self.labels() }
    }

    /// What the answer must be. A parent of another client may be gone, and another client may have built upon ours.
    fn expect(&self, op: &Op) -> Expected {
        match op {
            Op::Create { key, parent, .. } => {
                let foreign = !parent.is_empty() && !parent.starts_with(&self.prefix());
                let there = parent.is_empty() || self.held.contains_key(parent);
                match (self.held.contains_key(key), foreign) {
                    (true, true) => refused(&[Code::NotFound, Code::AlreadyExists]),
                    (false, true) => Expected { success: true, refusals: &[Code::NotFound] },
                    (_, false) if !there => refused(&[Code::NotFound]),
                    (true, false) => refused(&[Code::AlreadyExists]),
                    (false, false) => SUCCESS,
                }
            }
            Op::Commit { name, key, parent, .. } => match self.held.get(key) {
                None => refused(&[Code::NotFound]),
                Some(_) if self.held.contains_key(name) => refused(&[Code::AlreadyExists]),
                Some(held) if held.kind != Kind::Active => refused(&[Code::FailedPrecondition]),
                Some(_) if parent.is_empty() || self.held.contains_key(parent) => SUCCESS,
                Some(_) if parent.starts_with(&self.prefix()) => refused(&[Code::NotFound]),
                Some(_) => Expected { success: true, refusals: &[Code::NotFound] },
            },
            Op::Remove { key } => match self.held.get(key) {
                None => refused(&[Code::NotFound]),
                Some(_) if self.held.values().any(|held| held.parent == *key) => {
                    refused(&[Code::FailedPrecondition])
                }
                Some(held) if held.kind == Kind::Committed => {
                    Expected { success: true, refusals: &[Code::FailedPrecondition] }
                }
                Some(_) => SUCCESS,
            },
            Op::Mounts { key } if self.held.get(key).is_some_and(|held| held.kind == Kind::Committed) => {
                refused(&[Code::FailedPrecondition])
            }
            Op::Update { key, .. } | Op::Mounts { key } | Op::Usage { key } => match self.held.get(key) {
                Some(_) => SUCCESS,
                None => refused(&[Code::NotFound]),
            },
            Op::Cleanup => SUCCESS,
        }
    }

    async fn call(&self, snapshotter: &mut SnapshotsClient<Channel>, op: &Op) -> Result<Vec<Mount>, Status> {
        let capsule = "capsule".to_owned();
        match op.clone() {
            Op::Create { kind: Kind::View, key, parent, labels } => {
                let request = ViewSnapshotRequest { snapshotter: capsule, key, parent, labels };
                snapshotter.view(request).await.map(|reply| reply.into_inner().mounts)
            }
            Op::Create { key, parent, labels, .. } => {
                let request = PrepareSnapshotRequest { snapshotter: capsule, key, parent, labels };
                snapshotter.prepare(request).await.map(|reply| reply.into_inner().mounts)
            }
            Op::Mounts { key } => {
                let request = MountsRequest { snapshotter: capsule, key };
                snapshotter.mounts(request).await.map(|reply| reply.into_inner().mounts)
            }
            Op::Commit { name, key, parent, labels } => {
                let request = CommitSnapshotRequest { snapshotter: capsule, name, key, labels, parent };
                snapshotter.commit(request).await.map(|_| Vec::new())
            }
            Op::Update { key, labels } => {
                let info = Some(Info { name: key, labels, ..Info::default() });
                let request = UpdateSnapshotRequest { snapshotter: capsule, info, update_mask: None };
                snapshotter.update(request).await.map(|_| Vec::new())
            }
            Op::Remove { key } => {
                let request = RemoveSnapshotRequest { snapshotter: capsule, key };
                snapshotter.remove(request).await.map(|_| Vec::new())
            }
            Op::Usage { key } => {
                let request = UsageRequest { snapshotter: capsule, key };
                snapshotter.usage(request).await.map(|_| Vec::new())
            }
            Op::Cleanup => {
                let request = CleanupRequest { snapshotter: capsule };
                snapshotter.cleanup(request).await.map(|_| Vec::new())
            }
        }
    }
}

/// Whether the daemon said this, and not the transport that lost it.
fn is_answer(status: &Status) -> bool {
    use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    matches!(status.code(), NotFound | AlreadyExists | FailedPrecondition | InvalidArgument)
}
