//! Prepare and View: a directory is made, then recorded and moved to its place in one transaction.

use std::time::SystemTime;

use super::{Snapshots, lost::Lost, not_found};
use crate::{
    dirs::Staged,
    snapshots::{
        error::SnapshotError,
        idmap::IdMaps,
        model::{Key, Kind, Labels},
        mounts::{Layout, Mount},
    },
    store::{
        StoreError,
        snapshots::{Record, Writer},
    },
};

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct Create {
    /// Its key, not in use.
    pub key: Key,
    /// A committed snapshot's name, or empty.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
}

impl Snapshots {
    /// Makes an active snapshot: what is written to its mounts can be committed. Durable; its directory, should a power
    /// cut take it before anything in it was made durable, is made anew when the engine is opened.
    ///
    /// # Errors
    /// [`SnapshotError::AlreadyExists`], [`SnapshotError::NotFound`] for the parent,
    /// [`SnapshotError::ParentNotCommitted`], [`SnapshotError::Invalid`] for a malformed id mapping in the labels.
    pub fn prepare(&self, create: &Create) -> Result<Vec<Mount>, SnapshotError> {
        self.create(Kind::Active, create)
    }

    /// As [`Snapshots::prepare`], but read-only and never to be committed.
    ///
    /// # Errors
    /// As [`Snapshots::prepare`].
    pub fn view(&self, create: &Create) -> Result<Vec<Mount>, SnapshotError> {
        self.create(Kind::View, create)
    }

    fn create(&self, kind: Kind, create: &Create) -> Result<Vec<Mount>, SnapshotError> {
        let ids = IdMaps::of(&create.labels)?;
        let mut staged = self.inner.dirs.stage(kind)?;
        if let Some((user, group)) = ids.owner() {
            staged.give_to(user, group)?;
        }
        let inserted = self.inner.store.write(|transaction| {
            let mut writer = Writer::open(transaction)?;
            insert(&mut writer, kind, create, &ids, &mut staged, &self.inner.lost)
        });
        // A commit that failed on the disk may still turn out to be there after a restart, and then needs its
        // directory; if it does not, the cleanup at start removes it.
        if matches!(inserted, Ok(_) | Err(SnapshotError::Store(StoreError::Commit(_)))) {
            staged.keep();
        }
        let (id, parents) = inserted?;
        self.plan(create.key.as_str(), &Layout { kind, id, parents, ids: self.mounted_ids(ids) })
    }
}

/// Records a new snapshot and places its directory. Gives its id and its parents', topmost first.
fn insert(
    writer: &mut Writer<'_>,
    kind: Kind,
    create: &Create,
    ids: &IdMaps,
    staged: &mut Staged,
    lost: &Lost,
) -> Result<(u64, Vec<u64>), SnapshotError> {
    let key = create.key.as_str();
    if !create.parent.is_empty() {
        let parent = writer.get(&create.parent)?.ok_or_else(|| not_found(&create.parent))?;
        if parent.kind() != Kind::Committed {
            return Err(SnapshotError::ParentNotCommitted { parent: create.parent.clone() });
        }
    }
    if writer.get(key)?.is_some() {
        return Err(SnapshotError::AlreadyExists { key: key.to_owned() });
    }
    let parents = writer.chain(&create.parent)?;
    lost.check(&create.parent, &parents)?;
    // All that may fail for this snapshot alone comes before the first write: others share the transaction.
    let id = writer.next_id()?;
    if let Some(parent) = parents.first()
        && ids.owner().is_none()
    {
        staged.inherit_owner(*parent)?;
    }
    staged.place(id)?;
    writer.take_id(id)?;
    writer.put(key, &Record::new(id, kind, &create.parent, create.labels.clone(), SystemTime::now()))?;
    if let Some(parent) = parents.first() {
        writer.link(*parent, id, key)?;
    }
    Ok((id, parents))
}
