//! Remove and Cleanup: first the record goes, then the directory.

use std::error::Error;

use super::{Snapshots, not_found, parent_of};
use crate::{
    dirs::Dirs,
    snapshots::{error::SnapshotError, model::Kind},
    store::{
        Store, StoreError,
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
        let now = !self.inner.behaviour.async_remove || dirs.is_space_scarce();
        if now && let Err(error) = dirs.remove(id) {
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

    /// Removes the directories that no snapshot has. One that cannot be removed is logged and left.
    ///
    /// # Errors
    /// When the store or the directory of snapshots cannot be read.
    pub fn cleanup(&self) -> Result<(), SnapshotError> {
        clean(&self.inner.store, &self.inner.dirs)
    }
}

/// See [`Snapshots::cleanup`].
pub(super) fn clean(store: &Store, dirs: &Dirs) -> Result<(), SnapshotError> {
    // Alone, so that no snapshot is between its directory and its record.
    let leftovers = store.look_alone(|transaction| {
        let known = Writer::open(transaction)?.ids()?;
        Ok::<_, SnapshotError>(dirs.leftovers(&known)?)
    })?;
    for path in leftovers {
        match dirs.remove_leftover(&path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed a leftover directory"),
            Err(error) => {
                let error: &dyn Error = &error;
                tracing::warn!(path = %path.display(), error, "leftover directory stays");
            }
        }
    }
    Ok(())
}

/// Deletes a record and its link.
fn delete(writer: &mut Writer<'_>, key: &str, record: &Record) -> Result<(), StoreError> {
    if let Some(parent) = writer.get(&record.parent)? {
        writer.unlink(parent.id, record.id)?;
    }
    writer.delete(key)
}
