//! Remove and Cleanup: first the record goes, then the directory.

use std::error::Error;

use super::{Snapshots, not_found, parent_of};
use crate::{
    dirs::{Dirs, Leftover},
    snapshots::{error::SnapshotError, model::Kind},
    store::{
        MEMBERS, Store, StoreError,
        snapshots::{Record, Writer},
    },
};

impl Snapshots {
    /// Removes a snapshot: first from the metadata, durably, then its directory, unless that is configured to be left
    /// for [`Snapshots::cleanup`], as a directory that cannot be removed now is.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::HasChildren`], [`SnapshotError::Pinned`].
    pub fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let id = self.forget(key)?;
        let dirs = &self.inner.dirs;
        // The next removal may need the space that this one makes, where Cleanup would come too late.
        let scarce = dirs.is_space_scarce();
        let now = !self.inner.behaviour.async_remove || scarce;
        let removed = if now { dirs.remove(id) } else { Ok(()) };
        // What it shared with others that are gone is on the disk until then.
        let swept = removed.and_then(|()| if scarce { dirs.sweep(false).map(drop) } else { Ok(()) });
        if let Err(error) = swept {
            let error: &dyn Error = &error;
            tracing::warn!(key, error, "snapshot is removed, its directory not yet");
        }
        Ok(())
    }

    fn forget(&self, key: &str) -> Result<u64, SnapshotError> {
        let mut hidden = None;
        let forgotten = self.inner.store.write(|transaction| {
            let mut writer = Writer::open(transaction)?;
            let record = writer.get(key)?.ok_or_else(|| not_found(key))?;
            if writer.has_children(record.id)? {
                return Err(SnapshotError::HasChildren { key: key.to_owned() });
            }
            self.inner
                .index
                .begin_remove(key, record.id)
                .map_err(|pinned| SnapshotError::Pinned { key: key.to_owned(), owner: pinned.owner })?;
            let record = hidden.insert(record);
            delete(&mut writer, key, record)?;
            Ok(record.id)
        });
        if let (Err(_), Some(record)) = (&forgotten, hidden)
            && record.kind() == Kind::Committed
        {
            self.inner.index.insert(key, record.id, parent_of(&record));
        }
        forgotten
    }

    /// Removes the directories that no snapshot has, and the shared files that no layer has any more. What cannot be removed is
    /// logged and left.
    ///
    /// # Errors
    /// When the store, the directory of snapshots or the pool of files cannot be read.
    pub fn cleanup(&self) -> Result<(), SnapshotError> {
        let (leftovers, _) = leftovers(&self.inner.store, &self.inner.dirs)?;
        self.inner.dirs.remove_leftovers(&leftovers);
        self.inner.dirs.sweep(false)?;
        Ok(())
    }

    /// The directories of removed snapshots as of now, to be removed when there is time, also beside calls of any kind
    /// and after this engine has been closed: no snapshot is ever given their names again.
    ///
    /// # Errors
    /// As [`Snapshots::cleanup`].
    pub fn leftovers(&self) -> Result<(Dirs, Vec<Leftover>), SnapshotError> {
        let (mut leftovers, next) = leftovers(&self.inner.store, &self.inner.dirs)?;
        leftovers.retain(|leftover| leftover.id.is_some_and(|id| id < next));
        Ok((self.inner.dirs.clone(), leftovers))
    }
}

/// What no snapshot has, and the id of the next snapshot.
fn leftovers(store: &Store, dirs: &Dirs) -> Result<(Vec<Leftover>, u64), SnapshotError> {
    // Alone, so that no snapshot is between its directory and its record.
    store.look_alone(|transaction| {
        let writer = Writer::open(transaction)?;
        Ok((dirs.leftovers(&writer.ids()?)?, writer.next_id()?))
    })
}

/// Removes the directories that are in the way of the next snapshots: those of which a crash took the record, or the
/// call. Those of removed snapshots can wait.
///
/// # Errors
/// [`SnapshotError::NewerDirectories`] when there are more of them than a crash can leave, and nothing is removed; or when
/// the store or the directory of snapshots cannot be read.
pub(super) fn make_way(store: &Store, dirs: &Dirs) -> Result<(), SnapshotError> {
    let (leftovers, next) = leftovers(store, dirs)?;
    let in_the_way: Vec<_> = leftovers.into_iter().filter(|l| l.id.is_none_or(|id| id >= next)).collect();
    let newest = in_the_way.iter().filter_map(|leftover| leftover.id).max();
    if let Some(newest) = newest.filter(|newest| newest - next >= UNRECORDED) {
        return Err(SnapshotError::NewerDirectories { newest, next, snapshots: dirs.snapshots() });
    }
    dirs.remove_leftovers(&in_the_way);
    Ok(())
}

/// More directories than this are never without a record: a commit has no more changes.
const UNRECORDED: u64 = MEMBERS as u64;

/// Deletes a record and its link.
fn delete(writer: &mut Writer<'_>, key: &str, record: &Record) -> Result<(), StoreError> {
    if let Some(parent) = writer.get(&record.parent)? {
        writer.unlink(parent.id, record.id)?;
    }
    writer.delete(key)
}
