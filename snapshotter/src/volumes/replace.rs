//! Another version in a volume that is mounted, and what becomes of the one before.
//!
//! The new file system goes beneath the old one at one path of the node first, by which the node's later mounts have it. All other mounts
//! of the old one, at paths of the node and in containers' namespaces, are replaced by clones of it, until none is found.

use std::{path::Path, sync::Arc, time::Duration};

use overlayfs_utils::{
    ContainerPath, DetachedMount, MountCopy, MountEntry, PinnedTask, ResolveError, block_at, find_copies,
    find_users, in_mount_namespace, swap,
};
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    VolumeError,
    engine::{Built, Volumes, lock},
    model::{Generation, Record, Volume, VolumeId},
    node::Node,
    records::failed,
};
use crate::{
    capsules::model::Version,
    uppers::{
        UpperError,
        model::{About, Over},
    },
};

/// How often mounts are looked for that came while others were replaced.
const PASSES: usize = 8;
/// How long a container's own file systems may hold one mount up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many mounts may be held up for longer, each with a thread of capsuled's, until no other is tried.
const HELD_UP: usize = 32;

/// What was done.
#[derive(Debug)]
pub struct Replaced {
    /// As it is now.
    pub volume: Volume,
    /// Which version it had.
    pub from: Option<Version>,
    /// How many mounts have the new one now that had not.
    pub mounts: usize,
    /// Mounts in containers that have the old one yet: something is mounted over them, or their namespace does not let them go.
    pub left: usize,
}

impl Volumes {
    /// Puts another version into a volume.
    ///
    /// # Errors
    /// [`VolumeError`]. Where mounts of the node could not be replaced, some may have the new version: a call for the same version goes on.
    pub async fn replace(&self, id: &VolumeId, version: &Version) -> Result<Replaced, VolumeError> {
        let _own = self.lock(id).await;
        let Some(record) = self.record(id) else { return self.replace_unmounted(id, version).await };
        let capsule = record.capsule.clone().ok_or_else(|| VolumeError::NoCapsule(id.clone()))?;
        if record.writable {
            return Err(match record.paths.first() {
                Some(at) => VolumeError::Written { id: id.clone(), path: at.path.to_string() },
                None => VolumeError::InUse(id.clone()),
            });
        }
        let resolved = self.0.capsules.resolve(&capsule, Some(version)).await?;
        let from = record.over().map(|over| over.version.clone());
        let (mut mounts, mut left) = (0, 0);
        if record.over().is_none_or(|over| over.digest != resolved.digest) {
            let built = self.build(id, Some(&resolved), None).await?;
            let over = built.generation.over.clone();
            if let Err(error) = self.begin(record, built).await {
                self.let_go(id, over.as_ref());
                return Err(error);
            }
            mounts = 1;
        }
        if let Some(record) = self.record(id).filter(|record| record.generations.len() > 1) {
            let swapped = self.swap_others(&record).await?;
            (mounts, left) = (mounts + swapped.0, swapped.1);
            let own = id.clone();
            self.blocking(id, move |this| this.prune(&own)).await?;
        }
        Ok(Replaced { volume: self.known(id).await?, from, mounts, left })
    }

    /// One that is mounted nowhere has it when it is mounted next.
    async fn replace_unmounted(&self, id: &VolumeId, version: &Version) -> Result<Replaced, VolumeError> {
        let own = id.clone();
        let there = self.blocking(id, move |this| Ok(this.0.uppers.volume(&own)?)).await?;
        let Some((about, _)) = there else { return Err(VolumeError::Unknown(id.clone())) };
        let over = about.over.clone().ok_or_else(|| VolumeError::NoCapsule(id.clone()))?;
        let resolved = self.0.capsules.resolve(&over.capsule, Some(version)).await?;
        let (own, about) = (id.clone(), About { over: Some(Over::from(&resolved)), ..about });
        self.blocking(id, move |this| {
            // What is being published was written over the version before.
            if this.0.uppers.is_volume_read(&own) {
                return Err(UpperError::VolumeRead(own).into());
            }
            Ok(this.0.uppers.tell_of_volume(&own, &about)?)
        })
        .await?;
        Ok(Replaced { volume: self.known(id).await?, from: Some(over.version), mounts: 0, left: 0 })
    }

    /// Puts what is built on record, and beneath the old file system at one path.
    async fn begin(&self, record: Record, built: Built) -> Result<(), VolumeError> {
        let id = record.id.clone();
        self.blocking(&id, move |this| {
            let node = Node::open()?;
            this.check_parts(&record, &built)?;
            let mut now = record.clone();
            now.generations.push(built.generation.clone());
            this.settle(now)?;
            let begun = this.place(&node, &record, &built);
            if begun.is_err() {
                this.restore(record);
            }
            begun
        })
        .await
    }

    /// A directory of the volume may be mounted by itself (a subPath): the new version is to have it.
    fn check_parts(&self, record: &Record, built: &Built) -> Result<(), VolumeError> {
        let root = built.mount.root()?;
        let all = self.seen(&record.generations)?;
        for Seen { copy: MountCopy { entry, .. }, .. } in
            all.into_iter().filter(|one| one.is_node && !one.is_file)
        {
            let below = below(&entry);
            if below.as_os_str().is_empty() || root.open_below(below.as_os_str())?.is_some() {
                continue;
            }
            let Some(over) = &built.generation.over else { continue };
            return Err(VolumeError::Part {
                id: record.id.clone(),
                part: entry.root.display().to_string(),
                at: entry.mount_point.display().to_string(),
                capsule: over.capsule.clone(),
                version: over.version.to_string(),
            });
        }
        Ok(())
    }

    /// Puts the new file system at the first path of the node where that can be done.
    fn place(&self, node: &Node, record: &Record, built: &Built) -> Result<(), VolumeError> {
        let id = &record.id;
        for at in &record.paths {
            match node.block_at(id, &at.path)? {
                None => return node.attach(id, &built.mount, &at.path),
                Some(block) if record.generations.iter().any(|one| one.block.device == block.device) => {
                    if let Some(kept) = node.clone_below(id, &at.path, Path::new(""))? {
                        // Its peer yet: mounts in containers that are its slaves stay slaves until they are replaced.
                        lock(&self.0.held).insert((id.clone(), block.device), kept);
                    }
                    if node.swap(id, &built.mount, &at.path, block)? {
                        return Ok(());
                    }
                }
                Some(_) => {}
            }
        }
        Err(VolumeError::Unstable(id.clone()))
    }

    /// Replaces all mounts of what the volume had before by clones of what it has; how many, and how many stay as they are in containers.
    async fn swap_others(&self, record: &Record) -> Result<(usize, usize), VolumeError> {
        let Some((current, old)) = record.generations.split_last() else { return Ok((0, 0)) };
        let (mut swapped, mut left, mut of_node) = (0, 0, 0);
        for _ in 0..PASSES {
            (left, of_node) = (0, 0);
            let (this, olds) = (self.clone(), old.to_vec());
            let copies = self.blocking(&record.id, move |_| this.seen(&olds)).await?;
            let mut moved = 0;
            for Seen { copy, namespace, is_node, is_file } in copies {
                let (this, own, current, old) = (self.clone(), record.clone(), current.clone(), old.to_vec());
                let Some(busy) = self.begin_with(namespace, copy.entry.id).filter(|_| !is_file) else {
                    left += 1;
                    continue;
                };
                let work = spawn_blocking(move || {
                    let _until_the_end = busy;
                    this.swap_copy(&own, &current, &old, &copy)
                });
                match timeout(PATIENCE, work).await {
                    Ok(Ok(Ok(true))) => moved += 1,
                    Ok(Ok(Err(error))) if is_node => return Err(error),
                    other => {
                        if let Ok(Ok(Err(error))) = other {
                            let error: &dyn std::error::Error = &error;
                            tracing::warn!(id = %record.id, error, "a container's mount has the old version yet");
                        }
                        if is_node { of_node += 1 } else { left += 1 }
                    }
                }
            }
            swapped += moved;
            // What was not swapped is gone by now, or cannot be.
            if moved == 0 {
                break;
            }
        }
        if of_node > 0 {
            return Err(VolumeError::Unstable(record.id.clone()));
        }
        Ok((swapped, left))
    }

    /// False where it is not as it was a moment ago.
    fn swap_copy(
        &self,
        record: &Record,
        current: &Generation,
        old: &[Generation],
        copy: &MountCopy,
    ) -> Result<bool, VolumeError> {
        let node = Node::open()?;
        let mut base = None;
        for at in &record.paths {
            if node.block_at(&record.id, &at.path)?.is_some_and(|block| block.device == current.block.device)
            {
                base = Some(&at.path);
            }
        }
        let base = base.ok_or_else(|| VolumeError::Unstable(record.id.clone()))?;
        let Some(mount) = node.clone_below(&record.id, base, below(&copy.entry))? else { return Ok(false) };
        let failed = |source| VolumeError::Mount { id: record.id.clone(), source };
        mount.make_like(&copy.entry).map_err(failed)?;
        let devices: Vec<_> = old.iter().map(|one| one.block.device).collect();
        // It may have been held up for so long that the volume has yet another version.
        let is_current = || {
            let now = self.record(&record.id);
            now.and_then(|now| now.generations.last().map(|one| one.block.device))
                == Some(current.block.device)
        };
        swap_at(&record.id, &copy.task, &copy.entry.mount_point, &mount, &devices, is_current)
    }

    /// All mounts of these, and where they are. Blocks.
    fn seen(&self, of: &[Generation]) -> Result<Vec<Seen>, VolumeError> {
        let node = Node::open()?.namespace()?;
        let all = self.copies(of)?.into_iter().map(|copy| {
            let namespace = copy.task.mount_namespace().unwrap_or_default();
            let is_node = node == namespace;
            let is_file = is_node && is_file(&copy);
            Seen { copy, namespace, is_node, is_file }
        });
        Ok(all.collect())
    }

    /// One mount, while nobody else is at work on it, and not too many are held up.
    fn begin_with(&self, namespace: u64, mount: u64) -> Option<Busy> {
        let key = (namespace, mount);
        let mut busy = lock(&self.0.busy);
        let may = busy.len() < HELD_UP && busy.insert(key);
        drop(busy);
        may.then(|| Busy { volumes: self.clone(), key })
    }

    /// All mounts of these, by device and name.
    pub(super) fn copies(&self, of: &[Generation]) -> Result<Vec<MountCopy>, VolumeError> {
        let is_one = |entry: &MountEntry| {
            of.iter().any(|one| entry.device == one.block.device && entry.source == one.source)
        };
        find_copies(is_one).map_err(failed("read", Path::new("/proc")))
    }

    /// Forgets what nobody uses any more of what a volume had; all of it where it is mounted nowhere.
    pub(super) fn prune(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let Some(mut record) = self.record(id) else { return Ok(()) };
        let keep = usize::from(!record.paths.is_empty());
        let ended = record.generations.len().saturating_sub(keep);
        let (old, rest) = record.generations.split_at(ended);
        let (mut still, mut gone) = (Vec::new(), Vec::new());
        for one in old {
            if self.is_used(id, one)? { still.push(one.clone()) } else { gone.push(one.clone()) }
        }
        if gone.is_empty() {
            return Ok(());
        }
        still.extend_from_slice(rest);
        record.generations = still;
        for one in &gone {
            lock(&self.0.held).remove(&(id.clone(), one.block.device));
        }
        self.settle(record)?;
        for one in &gone {
            self.let_go(id, one.over.as_ref());
        }
        Ok(())
    }

    /// Whether a mount of it is anywhere, or a process has something of it open. The latter is not asked where its device number is
    /// another's by now.
    pub(super) fn is_used(&self, id: &VolumeId, one: &Generation) -> Result<bool, VolumeError> {
        if !self.copies(std::slice::from_ref(one))?.is_empty() {
            return Ok(true);
        }
        if !lock(&self.0.held).contains_key(&(id.clone(), one.block.device)) {
            let others = find_copies(|entry| entry.device == one.block.device);
            if !others.map_err(failed("read", Path::new("/proc")))?.is_empty() {
                return Ok(false);
            }
        }
        let users = find_users(&[one.block], None).map_err(failed("read", Path::new("/proc")))?;
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        Ok(users.iter().flatten().any(|user| user.pid != own))
    }

    /// Looks after volumes whose other versions are still used, until the runtime ends.
    pub async fn watch(self) {
        loop {
            tokio::time::sleep(PATIENCE).await;
            for record in self.all() {
                if !record.is_draining() {
                    continue;
                }
                let (id, _own) = (record.id.clone(), self.lock(&record.id).await);
                if let Err(error) = self.look_after(&id).await {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(%id, error, "what a volume had before cannot be looked after");
                }
            }
        }
    }

    async fn look_after(&self, id: &VolumeId) -> Result<(), VolumeError> {
        if let Some(record) = self.record(id).filter(|one| one.generations.len() > 1 && !one.paths.is_empty())
        {
            self.swap_others(&record).await?;
        }
        let own = id.clone();
        self.blocking(id, move |this| this.prune(&own)).await
    }
}

/// A mount, and where it is.
struct Seen {
    copy: MountCopy,
    /// The mount namespace.
    namespace: u64,
    /// It is the node's own.
    is_node: bool,
    /// A file is bound by itself there, of the node's own: it stays what it is.
    is_file: bool,
}

/// Somebody is at work on a mount until this is dropped.
struct Busy {
    volumes: Volumes,
    key: (u64, u64),
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.volumes.0.busy).remove(&self.key);
    }
}

/// Whether a file is mounted there, rather than a directory. Of the node's own mounts: it looks.
fn is_file(copy: &MountCopy) -> bool {
    let path = copy.entry.mount_point.to_str().and_then(|path| ContainerPath::parse(path).ok());
    let found = path.map(|path| copy.task.root().resolve_plain(&path));
    matches!(found, Some(Err(ResolveError::NotADirectory(_))))
}

/// Which directory of the volume is mounted there.
fn below(entry: &MountEntry) -> &Path {
    entry.root.strip_prefix("/").unwrap_or(&entry.root)
}

/// Replaces what is mounted at a path of a process, if it is one of `devices`.
pub(super) fn swap_at(
    id: &VolumeId,
    task: &Arc<PinnedTask>,
    path: &Path,
    new: &DetachedMount,
    devices: &[(u32, u32)],
    is_current: impl Fn() -> bool + Sync,
) -> Result<bool, VolumeError> {
    let failed = |source| VolumeError::Mount { id: id.clone(), source };
    let Some(path) = path.to_str().and_then(|path| ContainerPath::parse(path).ok()) else { return Ok(false) };
    let Ok(point) = task.root().mount_point(&path) else { return Ok(false) };
    in_mount_namespace(task.pidfd(), || {
        let Some(block) = block_at(&point).map_err(failed)? else { return Ok(false) };
        if !devices.contains(&block.device) || !is_current() {
            return Ok(false);
        }
        let outcome = swap(new, &point, block.mount).map_err(failed)?;
        Ok(outcome == overlayfs_utils::Unmounted::Done)
    })?
}
