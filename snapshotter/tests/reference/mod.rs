//! The reference model: what a snapshotter is, in memory and in few words. Written from containerd's documentation and
//! sources (`core/snapshots/snapshotter.go`, `core/metadata/snapshot.go` at v2.1.9) and not from ours; it shares no code
//! with the engine.
#![allow(dead_code, unused_imports)] // each test program uses its part

mod filter;
mod served;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

pub use capsule_proto::containerd::services::snapshots::v1::Kind;

pub use self::served::Served;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Most bytes of a label's key and value (`pkg/labels/validate.go`).
const LABEL_MAX: usize = 4096;

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub kind: Kind,
    pub parent: String,
    pub labels: Labels,
    pub created: SystemTime,
    pub updated: SystemTime,
}

/// Why a call is refused: containerd's word for the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
}

/// Snapshots by key or name: they share one space.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub snapshots: BTreeMap<String, Snapshot>,
    /// The last time that was given: no two changes have the same.
    clock: Option<SystemTime>,
}

/// Labels as they are kept: one without a value is none.
fn checked(labels: Labels) -> Result<Labels, Refusal> {
    let refused = |(key, value): (&String, &String)| {
        key.len() + value.len() > LABEL_MAX || (key.is_empty() && !value.is_empty())
    };
    match labels.iter().any(refused) {
        true => Err(Refusal::InvalidArgument),
        false => Ok(labels.into_iter().filter(|(_, value)| !value.is_empty()).collect()),
    }
}

impl Reference {
    fn now(&mut self) -> SystemTime {
        let later = self.clock.map(|last| last + Duration::from_nanos(1));
        let now = later.map_or_else(SystemTime::now, |later| later.max(SystemTime::now()));
        self.clock = Some(now);
        now
    }

    fn get(&self, key: &str) -> Result<&Snapshot, Refusal> {
        self.snapshots.get(key).ok_or(Refusal::NotFound)
    }

    /// A name that can be given: not empty, not taken.
    fn check_free(&self, key: &str) -> Result<(), Refusal> {
        match key {
            "" => Err(Refusal::InvalidArgument),
            key if self.snapshots.contains_key(key) => Err(Refusal::AlreadyExists),
            _ => Ok(()),
        }
    }

    /// Prepare and View.
    pub fn create(&mut self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<(), Refusal> {
        let labels = checked(labels)?;
        if !parent.is_empty() && self.get(parent)?.kind != Kind::Committed {
            return Err(Refusal::InvalidArgument);
        }
        self.check_free(key)?;
        let now = self.now();
        let snapshot = Snapshot { kind, parent: parent.to_owned(), labels, created: now, updated: now };
        self.snapshots.insert(key.to_owned(), snapshot);
        Ok(())
    }

    /// Commit, on `parent` when the snapshot was prepared on nothing (`core/snapshots/storage/bolt.go` at v2.2.0).
    pub fn commit(&mut self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), Refusal> {
        let labels = checked(labels)?;
        let mut committed = self.get(key)?.clone();
        self.check_free(name)?;
        if committed.kind != Kind::Active {
            return Err(Refusal::FailedPrecondition);
        }
        if committed.parent.is_empty() {
            committed.parent = parent.to_owned();
        } else if !parent.is_empty() && parent != committed.parent {
            return Err(Refusal::InvalidArgument);
        }
        if !committed.parent.is_empty() {
            match self.get(&committed.parent)?.kind {
                _ if committed.parent == key => return Err(Refusal::NotFound),
                Kind::Committed => {}
                _ => return Err(Refusal::FailedPrecondition),
            }
        }
        let now = self.now();
        (committed.kind, committed.labels) = (Kind::Committed, labels);
        (committed.created, committed.updated) = (now, now);
        self.snapshots.remove(key);
        self.snapshots.insert(name.to_owned(), committed);
        Ok(())
    }

    pub fn remove(&mut self, key: &str) -> Result<(), Refusal> {
        self.get(key)?;
        if self.snapshots.values().any(|snapshot| snapshot.parent == key) {
            return Err(Refusal::FailedPrecondition);
        }
        self.snapshots.remove(key);
        Ok(())
    }

    /// Update with the field paths of its mask.
    pub fn update(&mut self, key: &str, labels: Labels, paths: &[String]) -> Result<&Snapshot, Refusal> {
        let mut updated = self.get(key)?.labels.clone();
        if paths.is_empty() {
            updated.clone_from(&labels);
        }
        for path in paths {
            match path.split_once('.') {
                None if path == "labels" => updated.clone_from(&labels),
                Some(("labels", key)) => {
                    _ = updated.insert(key.to_owned(), labels.get(key).cloned().unwrap_or_default());
                }
                _ => return Err(Refusal::InvalidArgument),
            }
        }
        let (labels, now) = (checked(updated)?, self.now());
        let snapshot = self.snapshots.get_mut(key).ok_or(Refusal::NotFound)?;
        (snapshot.labels, snapshot.updated) = (labels, now);
        Ok(snapshot)
    }

    pub fn stat(&self, key: &str) -> Result<&Snapshot, Refusal> {
        self.get(key)
    }

    /// Whether a snapshot has mounts. Which, the model does not know: it has no directories.
    pub fn mounts(&self, key: &str) -> Result<(), Refusal> {
        match self.get(key)?.kind {
            Kind::Committed => Err(Refusal::FailedPrecondition),
            _ => Ok(()),
        }
    }

    /// Whether a snapshot has a usage.
    pub fn usage(&self, key: &str) -> Result<(), Refusal> {
        self.get(key).map(drop)
    }

    /// Those that any of the filters selects, by key; all when there are none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<(&str, &Snapshot)>, Refusal> {
        let filters: Vec<filter::Filter> =
            filters.iter().map(|text| filter::parse(text)).collect::<Result<_, _>>()?;
        let wanted = |(key, snapshot): &(&String, &Snapshot)| {
            filters.is_empty() || filters.iter().any(|filter| filter::selects(filter, key, snapshot))
        };
        Ok(self.snapshots.iter().filter(wanted).map(|(key, snapshot)| (key.as_str(), snapshot)).collect())
    }
}
