//! The calls of the engine, each: look, decide, change, in one transaction.

mod commit;
mod create;
mod layers;
mod remove;

pub use create::Create;

use std::{sync::Arc, time::SystemTime};

use super::{
    error::SnapshotError,
    index::Index,
    model::{Info, Kind, LabelUpdate, Usage},
    mounts::{Mount, OverlayOptions, plan_mounts},
};
use crate::{
    dirs::Dirs,
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
}
