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

impl Snapshots {
    /// Commits the active snapshot `key` as `name`, with `labels` instead of those it had. When this returns, the
    /// snapshot with all its files survives a power cut.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NotActive`], [`SnapshotError::AlreadyExists`] for the name.
    pub fn commit(&self, name: &Key, key: &str, labels: &Labels) -> Result<(), SnapshotError> {
        labels.check_supported()?;
        // Measured and made durable before the transaction: both take their time, and nobody else should wait.
        let id = self.find_committable(name, key)?;
        let usage = self.inner.dirs.usage(id)?;
        self.inner.dirs.sync()?;
        let committed = self.inner.store.write_grouped(|transaction| {
            let mut writer = Writer::open(transaction)?;
            let mut record = committable(&writer, name, key)?;
            if record.id != id {
                return Err(not_found(key)); // removed and made anew since it was measured
            }
            record.commit(labels.clone(), usage, SystemTime::now());
            move_record(&mut writer, name, key, &record)?;
            // In the transaction's turn, so that the index sees changes in the order of the store.
            self.inner.index.insert(name.as_str(), id, parent_of(&record));
            Ok(())
        });
        if let Err(SnapshotError::Store(StoreError::Commit(_))) = &committed {
            _ = self.inner.index.begin_remove(name.as_str(), id); // nobody was told the name: nobody pins it
        }
        committed
    }

    fn find_committable(&self, name: &Key, key: &str) -> Result<u64, SnapshotError> {
        self.inner.store.read(|transaction| {
            let reader = Reader::open(transaction)?;
            let taken = reader.get(name.as_str())?.is_some();
            check_commit(reader.get(key)?, taken, name, key).map(|record| record.id)
        })
    }
}

/// The rules of Commit, in the order in which containerd's overlayfs finds fault.
fn check_commit(record: Option<Record>, taken: bool, name: &Key, key: &str) -> Result<Record, SnapshotError> {
    let record = record.ok_or_else(|| not_found(key))?;
    if taken {
        return Err(SnapshotError::AlreadyExists { key: name.as_str().to_owned() });
    }
    if record.kind() != Kind::Active {
        return Err(SnapshotError::NotActive { key: key.to_owned() });
    }
    Ok(record)
}

fn committable(writer: &Writer<'_>, name: &Key, key: &str) -> Result<Record, SnapshotError> {
    let taken = writer.get(name.as_str())?.is_some();
    check_commit(writer.get(key)?, taken, name, key)
}

/// Moves the record of a snapshot from its key to its name.
fn move_record(writer: &mut Writer<'_>, name: &Key, key: &str, record: &Record) -> Result<(), StoreError> {
    let parent = writer.chain(&record.parent)?.first().copied();
    writer.delete(key)?;
    writer.put(name.as_str(), record)?;
    match parent {
        Some(parent) => writer.link(parent, record.id, name.as_str()),
        None => Ok(()),
    }
}
