//! What a client was told and what it still waits for: all that may be found after a death follows from it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use capsule_proto::containerd::services::snapshots::v1::{Info, Kind};

use super::tree::Digest;

/// Labels by key.
pub type Labels = HashMap<String, String>;

/// A snapshot that a client was told of.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub kind: Kind,
    pub parent: String,
    pub labels: Labels,
    /// Names its directory; unknown where no mount shows it (a view of a parent).
    pub id: Option<u64>,
    /// Its files, once they are written.
    pub content: Option<Digest>,
    /// What a listing said since it was last changed.
    pub listed: Option<Info>,
    /// Whether its files were compared with `content` since they were last changed or committed.
    pub audited: bool,
}

/// Snapshots by key or name.
pub type Snapshots = BTreeMap<String, Held>;

/// A call.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    },
    /// On `parent`, when the snapshot was prepared on nothing and it is not empty.
    Commit {
        name: String,
        key: String,
        parent: String,
        labels: Labels,
    },
    Update {
        key: String,
        labels: Labels,
    },
    Remove {
        key: String,
    },
    Mounts {
        key: String,
    },
    Usage {
        key: String,
    },
    Cleanup,
}

/// What the call does when it succeeds.
pub fn apply(snapshots: &mut Snapshots, op: &Op) {
    match op.clone() {
        Op::Create { kind, key, parent, labels } => {
            let held = Held { kind, parent, labels, id: None, content: None, listed: None, audited: false };
            snapshots.insert(key, held);
        }
        Op::Commit { name, key, parent, labels } => {
            let held = snapshots.remove(&key).unwrap();
            let parent = if held.parent.is_empty() { parent } else { held.parent };
            let committed =
                Held { kind: Kind::Committed, parent, labels, listed: None, audited: false, ..held };
            snapshots.insert(name, committed);
        }
        Op::Update { key, labels } => {
            let held = snapshots.get_mut(&key).unwrap();
            held.labels = labels;
            held.listed = None;
        }
        Op::Remove { key } => _ = snapshots.remove(&key).unwrap(),
        Op::Mounts { .. } | Op::Usage { .. } | Op::Cleanup => {}
    }
}

/// Whether a listing tells of exactly these snapshots; the times of those not changed since the last one count too.
pub fn tells_of(listing: &BTreeMap<String, Info>, snapshots: &Snapshots) -> bool {
    listing.len() == snapshots.len()
        && listing.iter().zip(snapshots).all(|((name, info), (key, held))| {
            name == key
                && info.kind() == held.kind
                && info.parent == held.parent
                && info.labels == held.labels
                && held.listed.as_ref().is_none_or(|before| before == info)
        })
}

/// What all clients share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Names that were committed by anyone: parents for everyone. Some are gone again.
    names: Mutex<Vec<String>>,
    /// Ids that any client saw, and what had them first.
    ids: Mutex<BTreeMap<u64, String>>,
    /// The process is being killed: calls may break from here on.
    pub dying: AtomicBool,
}

impl Shared {
    /// A name that others may build upon.
    pub fn publish(&self, name: &str) {
        let mut names = self.names.lock().unwrap();
        names.push(name.to_owned());
        let old = names.len().saturating_sub(24);
        names.drain(..old);
    }

    /// The names of late.
    pub fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().clone()
    }

    /// Notes the id of a new snapshot, which nothing may have had before.
    pub fn take_id(&self, id: u64, key: &str) {
        let before = self.ids.lock().unwrap().insert(id, key.to_owned());
        assert_eq!(before, None, "id {id} of {key} was used before");
    }

    /// Whether calls may break.
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::SeqCst)
    }
}
