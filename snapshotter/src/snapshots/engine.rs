//! The calls of the engine, each: look, decide, change, in one transaction.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    error::SnapshotError,
    index::Index,
    model::{Info, Key, Kind, LabelUpdate, Labels, Usage},
    mounts::{Mount, OverlayOptions, plan_mounts},
};
use crate::{
    dirs::{Dirs, Staged},
    store::{
        Store, StoreError,
        snapshots::{Reader, Record, Writer},
    },
};

/// The snapshot engine. Cheap to clone; all clones are one engine. Its calls block on the disk, except
/// [`Snapshots::layers`] and the pins.
#[derive(Clone, Debug)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    dirs: Dirs,
    overlay: OverlayOptions,
    index: Index,
}

/// What the engine works with.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The metadata.
    pub store: Store,
    /// The directories, made.
    pub dirs: Dirs,
    /// What every overlay needs here.
    pub overlay: OverlayOptions,
}

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

/// The name of a snapshot's parent, if it has one.
fn parent_of(record: &Record) -> Option<&str> {
    Some(record.parent.as_str()).filter(|name| !name.is_empty())
}

fn not_found(key: &str) -> SnapshotError {
    SnapshotError::NotFound { key: key.to_owned() }
}

impl Snapshots {
    /// Opens the engine: reads the committed snapshots into memory, and removes what a crash left behind.
    ///
    /// # Errors
    /// When the store or the directories cannot be read.
    pub fn open(environment: Environment) -> Result<Self, SnapshotError> {
        let Environment { store, dirs, overlay } = environment;
        let inner = Inner { store, dirs, overlay, index: Index::default() };
        let engine = Self { inner: Arc::new(inner) };
        engine.load_index()?;
        engine.cleanup()?;
        Ok(engine)
    }

    fn load_index(&self) -> Result<(), StoreError> {
        self.inner.store.read(|transaction| {
            let mut committed = Vec::new();
            for entry in Reader::open(transaction)?.iter()? {
                let (name, record) = entry?;
                if record.kind() == Kind::Committed {
                    committed.push((record.id, name, record.parent));
                }
            }
            // A parent is always older than its children, and ids only grow.
            committed.sort_unstable();
            for (id, name, parent) in committed {
                self.inner.index.insert(&name, id, Some(parent.as_str()).filter(|name| !name.is_empty()));
            }
            Ok(())
        })
    }

    /// Makes an active snapshot: what is written to its mounts can be committed. Durable.
    ///
    /// # Errors
    /// [`SnapshotError::AlreadyExists`], [`SnapshotError::NotFound`] for the parent,
    /// [`SnapshotError::ParentNotCommitted`].
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
        create.labels.check_supported()?;
        let mut staged = self.inner.dirs.stage(kind)?;
        let inserted = self.inner.store.write_grouped(|transaction| {
            let mut writer = Writer::open(transaction)?;
            insert(&mut writer, kind, create, &mut staged)
        });
        // A commit that failed on the disk may still turn out to be there after a restart, and then needs its
        // directory; if it does not, the cleanup at start removes it.
        if matches!(inserted, Ok(_) | Err(SnapshotError::Store(StoreError::Commit(_)))) {
            staged.keep();
        }
        let (id, parents) = inserted?;
        Ok(self.plan(kind, id, &parents))
    }

    fn plan(&self, kind: Kind, id: u64, parents: &[u64]) -> Vec<Mount> {
        plan_mounts(&self.inner.dirs, self.inner.overlay, kind, id, parents)
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NotMountable`] for a committed one.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let (kind, id, parents) = self.inner.store.read(|transaction| {
            let reader = Reader::open(transaction)?;
            let record = reader.get(key)?.ok_or_else(|| not_found(key))?;
            if record.kind() == Kind::Committed {
                return Err(SnapshotError::NotMountable { key: key.to_owned() });
            }
            Ok((record.kind(), record.id, reader.chain(&record.parent)?))
        })?;
        Ok(self.plan(kind, id, &parents))
    }

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

    /// Removes a snapshot: first from the metadata, durably, then its directory. A directory that cannot be removed
    /// now is left for [`Snapshots::cleanup`].
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::HasChildren`], [`SnapshotError::Pinned`].
    pub fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let id = self.forget(key)?;
        if let Err(error) = self.inner.dirs.remove(id) {
            let error: &dyn Error = &error;
            tracing::warn!(key, error, "snapshot is removed, its directory not yet");
        }
        Ok(())
    }

    fn forget(&self, key: &str) -> Result<u64, SnapshotError> {
        let mut hidden = None;
        let forgotten = self.inner.store.write_grouped(|transaction| {
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

    /// What is known about a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn stat(&self, key: &str) -> Result<Info, SnapshotError> {
        self.inner.store.read(|transaction| {
            let record = Reader::open(transaction)?.get(key)?.ok_or_else(|| not_found(key))?;
            Ok(record.info(key))
        })
    }

    /// Changes a snapshot's labels. Durable.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or labels that are not supported.
    pub fn update(&self, key: &str, update: &LabelUpdate) -> Result<Info, SnapshotError> {
        self.inner.store.write_grouped(|transaction| {
            let mut writer = Writer::open(transaction)?;
            let mut record = writer.get(key)?.ok_or_else(|| not_found(key))?;
            let labels = update.apply(record.labels());
            labels.check_supported()?;
            record.set_labels(labels, SystemTime::now());
            writer.put(key, &record)?;
            Ok(record.info(key))
        })
    }

    /// Calls `visit` with every snapshot of one consistent state, by key, until it says to stop.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn walk(&self, mut visit: impl FnMut(Info) -> bool) -> Result<(), SnapshotError> {
        self.inner.store.read(|transaction| {
            for entry in Reader::open(transaction)?.iter()? {
                let (key, record) = entry?;
                if !visit(record.info(&key)) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Disk space of a snapshot without its parents: counted now for an active one, as of its commit otherwise.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self
            .inner
            .store
            .read(|transaction| Reader::open(transaction)?.get(key)?.ok_or_else(|| not_found(key)))?;
        match record.kind() {
            Kind::Active => Ok(self.inner.dirs.usage(record.id)?),
            Kind::View | Kind::Committed => Ok(record.usage()),
        }
    }

    /// Removes the directories that no snapshot has. One that cannot be removed is logged and left.
    ///
    /// # Errors
    /// When the store or the directory of snapshots cannot be read.
    pub fn cleanup(&self) -> Result<(), SnapshotError> {
        // In a write transaction, so that no snapshot is between its directory and its record.
        let leftovers = self.inner.store.write(|transaction| {
            let known = Writer::open(transaction)?.ids()?;
            Ok::<_, SnapshotError>(self.inner.dirs.leftovers(&known)?)
        })?;
        for path in leftovers {
            match self.inner.dirs.remove_leftover(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed a leftover directory"),
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::warn!(path = %path.display(), error, "leftover directory stays");
                }
            }
        }
        Ok(())
    }

    /// Overlay lower directories, topmost first, of the committed snapshot that containerd knows as `name` (a chain
    /// id) in its namespace `namespace`. From memory.
    pub fn layers(&self, namespace: &str, name: &str) -> Option<Vec<PathBuf>> {
        self.inner.index.chain(namespace, name).map(|chain| self.paths(&chain))
    }

    /// As [`Snapshots::layers`], and keeps the snapshot and all below it from being removed until
    /// [`Snapshots::unpin`], in one step. An owner may hold several; holding one twice is holding it once.
    pub fn pin(&self, namespace: &str, name: &str, owner: &str) -> Option<Vec<PathBuf>> {
        self.inner.index.pin(namespace, name, owner).map(|chain| self.paths(&chain))
    }

    /// Pins the snapshot whose directory is the first of `layers` (as [`Snapshots::layers`] gave them), for
    /// attachments found at start. False when that is no snapshot's directory.
    pub fn pin_layers(&self, layers: &[PathBuf], owner: &str) -> bool {
        let id = layers.first().and_then(|top| self.inner.dirs.parse_upper(top));
        if let Some(id) = id {
            self.inner.index.pin_id(id, owner);
        }
        id.is_some()
    }

    /// Lets `owner` hold the snapshots of `tops` (each the first of what [`Snapshots::layers`] gave) and nothing else,
    /// in one step. Gives back those that are no snapshot's directory.
    pub fn repin_layers<'a>(&self, tops: impl Iterator<Item = &'a Path>, owner: &str) -> Vec<&'a Path> {
        let (mut ids, mut unknown) = (Vec::new(), Vec::new());
        for top in tops {
            match self.inner.dirs.parse_upper(top) {
                Some(id) => ids.push(id),
                None => unknown.push(top),
            }
        }
        self.inner.index.repin(&ids, owner);
        unknown
    }

    /// Pins all committed snapshots of a containerd namespace, for an owner that cannot say yet which it needs.
    pub fn pin_all(&self, namespace: &str, owner: &str) {
        self.inner.index.pin_all(namespace, owner);
    }

    /// Drops every pin that `owner` holds.
    pub fn unpin(&self, owner: &str) {
        self.inner.index.unpin(owner);
    }

    fn paths(&self, chain: &[u64]) -> Vec<PathBuf> {
        chain.iter().map(|id| self.inner.dirs.upper(*id)).collect()
    }
}

/// Records a new snapshot and places its directory. Gives its id and its parents', topmost first.
fn insert(
    writer: &mut Writer<'_>,
    kind: Kind,
    create: &Create,
    staged: &mut Staged,
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
    // All that may fail for this snapshot alone comes before the first write: others share the transaction.
    let id = writer.next_id()?;
    if let Some(parent) = parents.first() {
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

/// Deletes a record and its link.
fn delete(writer: &mut Writer<'_>, key: &str, record: &Record) -> Result<(), StoreError> {
    if let Some(parent) = writer.get(&record.parent)? {
        writer.unlink(parent.id, record.id)?;
    }
    writer.delete(key)
}
