//! The calls of the engine, each: look, decide, change, in one transaction.

mod commit;
mod create;
mod layers;
mod lost;
mod remove;
mod share;
mod taken;

pub use self::{commit::Commit, create::Create};

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use self::{lost::Lost, remove::make_way, taken::plan_taken};
use super::{
    error::SnapshotError,
    idmap::IdMaps,
    index::Index,
    model::{Info, Kind, LabelUpdate, Usage},
    mounts::{Layout, Mount, plan_mounts},
    options::{Behaviour, OverlayOptions},
};
use crate::{
    dirs::Dirs,
    store::{
        Store, StoreError,
        snapshots::{Reader, Record, Writer},
    },
};

/// The label that tells where a snapshot's own changes are, if so configured (containerd,
/// `plugins/snapshots/overlay/overlay.go`, `upperdirKey`).
const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";

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
    behaviour: Behaviour,
    index: Index,
    lost: Lost,
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
    /// What the operator chose.
    pub behaviour: Behaviour,
}

/// The name of a snapshot's parent, if it has one.
fn parent_of(record: &Record) -> Option<&str> {
    Some(record.parent.as_str()).filter(|name| !name.is_empty())
}

fn not_found(key: &str) -> SnapshotError {
    SnapshotError::NotFound { key: key.to_owned() }
}

fn read_all(store: &Store) -> Result<Vec<(String, Record)>, StoreError> {
    store.read(|transaction| Reader::open(transaction)?.iter()?.collect())
}

fn index_of(records: Vec<(String, Record)>) -> Index {
    let index = Index::default();
    let committed = records.into_iter().filter(|(_, record)| record.kind() == Kind::Committed);
    let committed: HashMap<_, _> =
        committed.map(|(name, record)| (name, (record.id, record.parent))).collect();
    index.fill(committed);
    index
}

impl Snapshots {
    /// Opens the engine: reads the committed snapshots into memory, makes way for the next ones, makes anew the
    /// directories that a power cut took, and says which snapshots have lost theirs. What else has no snapshot stays until
    /// [`Snapshots::cleanup`].
    ///
    /// # Errors
    /// [`SnapshotError::NewerDirectories`]; when the store or the directories cannot be read.
    pub fn open(environment: Environment) -> Result<Self, SnapshotError> {
        let Environment { store, dirs, overlay, behaviour } = environment;
        let records = read_all(&store)?;
        // What no snapshot has counts too, so this comes before it is removed.
        let taken = plan_taken(&dirs.present()?, &records);
        make_way(&store, &dirs)?;
        taken.iter().for_each(|taken| taken.make_anew(&dirs));
        let lost =
            Lost::find(&dirs, records.iter().map(|(key, record)| (key.as_str(), record.id, record.kind())));
        let index = index_of(records);
        Ok(Self { inner: Arc::new(Inner { store, dirs, overlay, behaviour, index, lost }) })
    }

    fn plan(&self, key: &str, layout: &Layout) -> Result<Vec<Mount>, SnapshotError> {
        self.inner.lost.check(key, &[layout.id])?;
        self.inner.lost.check(key, &layout.parents)?;
        Ok(plan_mounts(&self.inner.dirs, &self.inner.overlay, layout))
    }

    /// The mapping that the mounts of a snapshot with these labels ask for.
    fn mounted_ids(&self, labelled: IdMaps) -> IdMaps {
        if self.inner.behaviour.remap_ids { labelled } else { IdMaps::default() }
    }

    /// What is told about a snapshot.
    fn info(&self, key: &str, record: &Record) -> Info {
        let mut info = record.info(key);
        if self.inner.behaviour.upperdir_label {
            let upper = self.inner.dirs.upper(record.id).display().to_string();
            info.labels = info.labels.with(UPPERDIR_LABEL, upper);
        }
        info
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NotMountable`] for a committed one.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let layout = self.inner.store.read(|transaction| {
            let reader = Reader::open(transaction)?;
            let record = reader.get(key)?.ok_or_else(|| not_found(key))?;
            if record.kind() == Kind::Committed {
                return Err(SnapshotError::NotMountable { key: key.to_owned() });
            }
            let ids = self.mounted_ids(IdMaps::of(&record.labels())?);
            Ok(Layout { kind: record.kind(), id: record.id, parents: reader.chain(&record.parent)?, ids })
        })?;
        self.plan(key, &layout)
    }

    /// What is known about a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn stat(&self, key: &str) -> Result<Info, SnapshotError> {
        self.inner.store.read(|transaction| {
            let record = Reader::open(transaction)?.get(key)?.ok_or_else(|| not_found(key))?;
            Ok(self.info(key, &record))
        })
    }

    /// Changes a snapshot's labels. Durable.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`]; [`SnapshotError::Invalid`] for what cannot be updated, for labels beyond the limits and
    /// for a malformed id mapping on a snapshot that can be mounted.
    pub fn update(&self, key: &str, update: &LabelUpdate) -> Result<Info, SnapshotError> {
        self.inner.store.write(|transaction| {
            let mut writer = Writer::open(transaction)?;
            let mut record = writer.get(key)?.ok_or_else(|| not_found(key))?;
            let labels = update.apply(record.labels())?;
            if record.kind() != Kind::Committed {
                IdMaps::of(&labels)?;
            }
            record.set_labels(labels, SystemTime::now());
            writer.put(key, &record)?;
            Ok(self.info(key, &record))
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
                if !visit(self.info(&key, &record)) {
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
            Kind::Active => {
                self.inner.lost.check(key, &[record.id])?;
                Ok(self.inner.dirs.usage(record.id)?)
            }
            Kind::View | Kind::Committed => Ok(record.usage()),
        }
    }
}
