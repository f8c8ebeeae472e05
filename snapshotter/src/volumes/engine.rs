//! Making, mounting, unmounting and removing volumes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use overlayfs_utils::{ContainerPath, DetachedMount, MountEntry, find_copies};
use tokio::{sync::OwnedMutexGuard, task::spawn_blocking};

use super::{
    VolumeError,
    build::{Means, prefix},
    model::{Generation, Record, Spec, Volume, VolumeId},
    mount::check_same,
    node::{Device, Node},
    records::{Records, failed},
};
use crate::{
    capsules::Capsules,
    config,
    snapshots::Snapshots,
    uppers::{
        NewVolume, UpperError, Uppers,
        model::{About, Over},
    },
};

/// How what all volumes' mounts are called begins.
const ALL: &str = "capsule-volume:";

/// The volumes of this node. Cheap to clone, shared.
#[derive(Clone)]
pub struct Volumes(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) capsules: Capsules,
    pub(super) snapshots: Snapshots,
    pub(super) uppers: Uppers,
    pub(super) records: Records,
    empty: PathBuf,
    /// Directories below which they may be mounted.
    below: Vec<PathBuf>,
    /// How many bytes one holds at most that goes with its mount.
    pub(super) ephemeral: u64,
    means: OnceLock<Means>,
    known: Mutex<BTreeMap<VolumeId, Record>>,
    /// One call at a time for each volume.
    locks: Mutex<HashMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// A mount of each file system that a volume had, so that its device number is not given to another while somebody uses it.
    pub(super) held: Mutex<Held>,
    /// Mounts in containers that somebody is at work on, by namespace and id: a container may let that wait for ever.
    pub(super) busy: Mutex<HashSet<(u64, u64)>>,
}

/// By volume and device number.
type Held = HashMap<(VolumeId, Device), DetachedMount>;

/// A file system that is built, and on no record.
pub(super) struct Built {
    pub(super) mount: DetachedMount,
    pub(super) generation: Generation,
}

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volumes {
    /// Takes over those that an earlier run has mounted: what they have of versions is pinned. `run` ends with the kernel; `empty` is an
    /// empty directory; `limits` say where they may be mounted, and how large those are that go with their mounts.
    ///
    /// # Errors
    /// [`VolumeError`], where the records or the node's mounts cannot be read.
    pub fn open(
        capsules: Capsules,
        snapshots: Snapshots,
        uppers: Uppers,
        run: &Path,
        empty: PathBuf,
        limits: &config::Volumes,
    ) -> Result<Self, VolumeError> {
        let (records, known) = Records::open(run.join("volumes"))?;
        let this = Self(Arc::new(Inner {
            capsules,
            snapshots,
            uppers,
            records,
            empty,
            below: limits.below.clone(),
            ephemeral: limits.ephemeral,
            means: OnceLock::new(),
            known: Mutex::default(),
            locks: Mutex::default(),
            held: Mutex::default(),
            busy: Mutex::default(),
        }));
        if !known.is_empty() {
            this.take_over(known)?;
        }
        let written = this.0.uppers.volumes()?.into_iter();
        let ephemeral = written.filter(|(_, about)| about.as_ref().is_some_and(|about| about.ephemeral));
        for (id, _) in ephemeral.filter(|(id, _)| this.record(id).is_none()) {
            // Its mounts ended with the kernel, or came never to be; unless its record cannot be read.
            let mounts = find_copies(|entry| entry.source.starts_with(&prefix(&id)));
            if mounts.map_err(failed("read", Path::new("/proc")))?.is_empty()
                && let Err(error) = this.0.uppers.remove_volume(&id)
            {
                tracing::error!(%id, %error, "what was written to an ephemeral volume cannot be removed");
            }
        }
        Ok(this)
    }

    /// Of what is on record, that which is mounted: the rest ended while nobody looked.
    fn take_over(&self, known: BTreeMap<VolumeId, Record>) -> Result<(), VolumeError> {
        let node = Node::open()?.namespace()?;
        let copies = find_copies(|entry| entry.source.starts_with(ALL));
        let copies = copies.map_err(failed("read", Path::new("/proc")))?;
        for (id, mut record) in known {
            let is_of = |entry: &MountEntry, one: &Generation| {
                entry.device == one.block.device && entry.source == one.source
            };
            let mut used = Vec::new();
            for one in record.generations {
                let is_mounted = copies.iter().any(|copy| is_of(&copy.entry, &one));
                if is_mounted || self.is_used(&id, &one)? {
                    used.push(one);
                }
            }
            record.generations = used;
            let generations = record.generations.clone();
            record.paths.retain(|at| {
                copies.iter().any(|copy| {
                    copy.entry.mount_point == Path::new(at.path.as_str())
                        && generations.iter().any(|one| is_of(&copy.entry, one))
                        && copy.task.mount_namespace().is_ok_and(|namespace| namespace == node)
                })
            });
            for one in record.generations.iter().filter(|one| one.over.is_some()) {
                if !self.0.snapshots.pin_layers(&one.layers, &owner(&id, one.over.as_ref())) {
                    tracing::warn!(%id, "a version that a volume has is of no snapshot");
                }
            }
            self.settle(record)?;
        }
        Ok(())
    }

    /// Nobody else changes this volume until the guard is gone.
    pub(super) async fn lock(&self, id: &VolumeId) -> OwnedMutexGuard<()> {
        let own = {
            let mut locks = lock(&self.0.locks);
            locks.retain(|_, one| Arc::strong_count(one) > 1);
            Arc::clone(locks.entry(id.clone()).or_default())
        };
        own.lock_owned().await
    }

    /// What is on record of a volume.
    pub(super) fn record(&self, id: &VolumeId) -> Option<Record> {
        lock(&self.0.known).get(id).cloned()
    }

    /// All that is on record.
    pub(super) fn all(&self) -> Vec<Record> {
        lock(&self.0.known).values().cloned().collect()
    }

    /// Whether something ends that is to be followed without anybody asking.
    pub fn are_any_draining(&self) -> bool {
        lock(&self.0.known).values().any(Record::is_draining)
    }

    /// How many mounts there are at paths of the node, and how many volumes drain.
    pub fn count(&self) -> (usize, usize) {
        let known = lock(&self.0.known);
        let mounts = known.values().map(|record| record.paths.len()).sum();
        (mounts, known.values().filter(|record| record.is_draining()).count())
    }

    /// Puts it on record, on disk first; takes it off where nothing is left of it. An ephemeral one goes with that.
    pub(super) fn settle(&self, record: Record) -> Result<(), VolumeError> {
        if !record.generations.is_empty() {
            self.0.records.put(&record)?;
            lock(&self.0.known).insert(record.id.clone(), record);
            return Ok(());
        }
        lock(&self.0.held).retain(|(id, _), _| *id != record.id);
        if record.ephemeral && record.writable {
            self.0.uppers.remove_volume(&record.id)?;
        }
        self.0.records.remove(&record.id)?;
        lock(&self.0.known).remove(&record.id);
        Ok(())
    }

    /// Refuses a path without links where volumes may not be.
    pub(super) fn check_path(&self, path: &ContainerPath) -> Result<(), VolumeError> {
        let own: &Path = path.as_ref();
        if self.0.below.iter().any(|below| own.starts_with(below) && own != below) {
            return Ok(());
        }
        let below: Vec<_> = self.0.below.iter().map(|below| below.display().to_string()).collect();
        Err(VolumeError::Elsewhere(own.to_owned(), below.join(", ")))
    }

    /// Puts on record what was there before something failed, which is what its caller is told. What is on record and not mounted is
    /// forgotten at the next start.
    pub(super) fn restore(&self, before: Record) {
        let id = before.id.clone();
        if let Err(error) = self.settle(before) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(%id, error, "the record of a volume cannot be put back");
        }
    }

    /// How overlays are made here. Blocks the first time.
    pub(super) fn means(&self) -> Result<Means, VolumeError> {
        if let Some(means) = self.0.means.get() {
            return Ok(means.clone());
        }
        let by = overlayfs_utils::probe()?.layers_by;
        let userxattr = self.0.snapshots.are_marks_of_users();
        let means = Means { by, userxattr, empty: self.0.empty.clone() };
        Ok(self.0.means.get_or_init(|| means).clone())
    }

    /// Makes what a volume is written to. True beside it when it was there. One that is only read is looked up, and needs no making.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn create(&self, spec: &Spec) -> Result<(Volume, bool), VolumeError> {
        let _own = self.lock(&spec.id).await;
        if let Some(volume) = self.find(&spec.id).await? {
            check_same(spec, &volume)?;
            return Ok((volume, true));
        }
        let over = self.over(spec).await?;
        if !spec.writable {
            let since = std::time::SystemTime::now();
            let volume = Volume { over, since, ..Volume::new(&spec.id) };
            return Ok((volume, false));
        }
        let about = self.make(spec, over, false).await?;
        Ok((
            Volume::of(&spec.id, None, Some(&about)).ok_or_else(|| VolumeError::Unknown(spec.id.clone()))?,
            false,
        ))
    }

    pub(super) async fn make(
        &self,
        spec: &Spec,
        over: Option<Over>,
        ephemeral: bool,
    ) -> Result<About, VolumeError> {
        let (size, owner, permissions) = (spec.size, spec.owner, spec.permissions);
        let new = NewVolume { over, size, owner, permissions, ephemeral };
        let id = spec.id.clone();
        self.blocking(&spec.id, move |this| Ok(this.0.uppers.make_volume(&id, &new)?)).await
    }

    pub(super) async fn over(&self, spec: &Spec) -> Result<Option<Over>, VolumeError> {
        let Some(capsule) = &spec.capsule else { return Ok(None) };
        let resolved = self.0.capsules.resolve(capsule, spec.version.as_ref()).await?;
        Ok(Some(Over::from(&resolved)))
    }

    /// Takes it away from a path, and what is known of it where nothing is left.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn unmount(&self, id: &VolumeId, path: &ContainerPath) -> Result<(), VolumeError> {
        let _own = self.lock(id).await;
        let (own, path) = (id.clone(), path.clone());
        self.blocking(id, move |this| {
            let node = Node::open()?;
            let path = match node.canonical(&own, &path) {
                Ok(path) => path,
                // Nothing is there, then, nor a way to it.
                Err(VolumeError::Target { .. }) => return this.forget(&own, &path),
                Err(error) => return Err(error),
            };
            let devices = node.devices_at(&own, &path)?;
            for (block, kept) in node.detach(&own, &path, &devices)? {
                lock(&this.0.held).insert((own.clone(), block.device), kept);
            }
            if this.check_path(&path).is_ok() {
                node.remove_dir(&path);
            }
            this.forget(&own, &path)
        })
        .await
    }

    pub(super) fn forget(&self, id: &VolumeId, path: &ContainerPath) -> Result<(), VolumeError> {
        let Some(mut record) = self.record(id) else {
            lock(&self.0.held).retain(|(other, _), _| other != id);
            return Ok(());
        };
        record.paths.retain(|at| at.path != *path);
        let is_last = record.paths.is_empty();
        self.settle(record)?;
        if is_last { self.prune(id) } else { Ok(()) }
    }

    /// Removes one, with all that was written.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn remove(&self, id: &VolumeId) -> Result<Volume, VolumeError> {
        let _own = self.lock(id).await;
        let own = id.clone();
        self.blocking(id, move |this| {
            if let Some(record) = this.record(&own) {
                if let Some(at) = record.paths.first() {
                    return Err(VolumeError::Mounted { id: own, path: at.path.to_string() });
                }
                this.prune(&own)?;
                if this.record(&own).is_some() {
                    return Err(VolumeError::InUse(own));
                }
            }
            let about = match this.0.uppers.volume(&own) {
                Ok(None) => return Err(VolumeError::Unknown(own)),
                Ok(Some((about, _))) => Some(about),
                // What is known of it is damaged, and it goes all the same.
                Err(UpperError::About { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            this.0.uppers.remove_volume(&own)?;
            Ok(Volume::of(&own, None, about.as_ref()).unwrap_or_else(|| Volume::new(&own)))
        })
        .await
    }

    /// A volume, mounted or not; nothing when there is none.
    pub(super) async fn find(&self, id: &VolumeId) -> Result<Option<Volume>, VolumeError> {
        let own = id.clone();
        self.blocking(id, move |this| {
            let about = this.0.uppers.volume(&own)?.map(|(about, _)| about);
            Ok(Volume::of(&own, this.record(&own).as_ref(), about.as_ref()))
        })
        .await
    }

    /// The same, where there is one.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`].
    pub async fn known(&self, id: &VolumeId) -> Result<Volume, VolumeError> {
        self.find(id).await?.ok_or_else(|| VolumeError::Unknown(id.clone()))
    }

    /// Runs what blocks on a thread for that.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        id: &VolumeId,
        work: impl FnOnce(Self) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let this = self.clone();
        spawn_blocking(move || work(this)).await.map_err(|_| VolumeError::Thread(id.clone()))?
    }
}

/// Who pins the layers of a version that a volume has.
pub(super) fn owner(id: &VolumeId, over: Option<&Over>) -> String {
    let digest = over.map(|over| over.digest.to_string()).unwrap_or_default();
    format!("volume {id} {digest}")
}
