//! Commit: an active snapshot becomes a committed one, with what was written to it.

use std::time::SystemTime;

use super::{Snapshots, not_found, parent_of};
use crate::{
    snapshots::{
        error::SnapshotError,
        model::{Key, Kind, Labels},
    },
    store::{
        StoreError,
        snapshots::{Reader, Record, Writer},
    },
};

/// An active snapshot that is to be committed.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The name it gets, not in use.
    pub name: Key,
    /// Its key.
    pub key: String,
    /// The committed snapshot to put it on, if it was prepared on none: what was written then lies over that. Empty to
    /// leave its parent as it is.
    pub parent: String,
    /// Its labels, instead of those it had.
    pub labels: Labels,
}

impl Snapshots {
    /// Commits an active snapshot. When this returns, the snapshot with all its files survives a power cut.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], for the parent too, [`SnapshotError::NotActive`], [`SnapshotError::AlreadyExists`]
    /// for the name, [`SnapshotError::OtherParent`], [`SnapshotError::RebaseOnUncommitted`].
    pub fn commit(&self, commit: &Commit) -> Result<(), SnapshotError> {
        // Measured and made durable before the transaction: both take their time, and nobody else should wait.
        let id = self.inner.store.read(|transaction| {
            let reader = Reader::open(transaction)?;
            committable(commit, |key| reader.get(key)).map(|found| found.record.id)
        })?;
        self.inner.lost.check(&commit.key, &[id])?;
        let usage = self.inner.dirs.usage(id)?;
        self.inner.dirs.sync()?;
        let name = commit.name.as_str();
        let committed = self.inner.store.write(|transaction| {
            let mut writer = Writer::open(transaction)?;
            let Committable { mut record, parent } = committable(commit, |key| writer.get(key))?;
            if record.id != id {
                return Err(not_found(&commit.key)); // removed and made anew since it was measured
            }
            record.commit(commit.labels.clone(), usage, SystemTime::now());
            writer.delete(&commit.key)?;
            writer.put(name, &record)?;
            if let Some(parent) = parent {
                writer.link(parent, id, name)?;
            }
            // In the transaction's turn, so that the index sees changes in the order of the store.
            self.inner.index.insert(name, id, parent_of(&record));
            Ok(())
        });
        if let Err(SnapshotError::Store(StoreError::Commit(_))) = &committed {
            _ = self.inner.index.begin_remove(name, id); // nobody was told the name: nobody pins it
        }
        committed
    }
}

/// What a commit found to be right.
struct Committable {
    /// The snapshot, on its parent to be.
    record: Record,
    /// The parent's id.
    parent: Option<u64>,
}

/// The rules of Commit, in the order in which containerd's overlayfs finds fault (2.2 and newer for the parent:
/// `core/snapshots/storage/bolt.go`, `CommitActive`).
fn committable(
    commit: &Commit,
    get: impl Fn(&str) -> Result<Option<Record>, StoreError>,
) -> Result<Committable, SnapshotError> {
    let (name, key) = (commit.name.as_str(), commit.key.as_str());
    let mut record = get(key)?.ok_or_else(|| not_found(key))?;
    if get(name)?.is_some() {
        return Err(SnapshotError::AlreadyExists { key: name.to_owned() });
    }
    if record.kind() != Kind::Active {
        return Err(SnapshotError::NotActive { key: key.to_owned() });
    }
    if record.parent.is_empty() {
        record.parent.clone_from(&commit.parent);
    } else if !commit.parent.is_empty() && commit.parent != record.parent {
        return Err(SnapshotError::OtherParent { key: key.to_owned(), parent: record.parent });
    }
    let parent = match parent_of(&record) {
        Some(parent) => Some(committed_parent(parent, key, get)?),
        None => None,
    };
    Ok(Committable { record, parent })
}

/// The id of the parent that the snapshot `key` is committed on.
fn committed_parent(
    parent: &str,
    key: &str,
    get: impl Fn(&str) -> Result<Option<Record>, StoreError>,
) -> Result<u64, SnapshotError> {
    // The key is gone with the commit, so it is no parent to be found.
    let record = get(parent)?.filter(|_| parent != key).ok_or_else(|| not_found(parent))?;
    if record.kind() != Kind::Committed {
        return Err(SnapshotError::RebaseOnUncommitted { parent: parent.to_owned() });
    }
    Ok(record.id)
}
