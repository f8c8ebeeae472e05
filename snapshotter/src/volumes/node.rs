//! The node's own mounts: those that its first process sees, wherever capsuled itself runs.

use std::{os::fd::AsFd as _, path::Path};

use overlayfs_utils::{
    ContainerPath, Created, DetachedMount, LayerDir, MountPoint, PinnedTask, ResolveError, SuperBlock, Tree,
    Unmounted, attach, block_at, clone_at, detach_lazily, in_mount_namespace, swap,
};
use rustix::fs::StatVfs;

use super::{VolumeError, build::prefix, model::VolumeId};

/// How many mounts on top of each other are taken away from one path.
const DEEP: usize = 16;

/// The number of a file system: major, minor.
pub(super) type Device = (u32, u32);

/// The node.
#[derive(Debug)]
pub(super) struct Node(PinnedTask);

impl Node {
    pub(super) fn open() -> Result<Self, VolumeError> {
        Ok(Self(PinnedTask::open(1)?))
    }

    /// Its mount namespace.
    pub(super) fn namespace(&self) -> Result<u64, VolumeError> {
        Ok(self.0.mount_namespace()?)
    }

    /// The path without links, of what is there or could be.
    pub(super) fn canonical(
        &self,
        id: &VolumeId,
        path: &ContainerPath,
    ) -> Result<ContainerPath, VolumeError> {
        self.0.root().canonical(path).map_err(target(id))
    }

    /// What is mounted at a path; nothing where its directory is none, or is missing.
    pub(super) fn block_at(
        &self,
        id: &VolumeId,
        path: &ContainerPath,
    ) -> Result<Option<SuperBlock>, VolumeError> {
        let Some(point) = self.point(id, path)? else { return Ok(None) };
        self.inside(id, || block_at(&point))
    }

    fn point(&self, id: &VolumeId, path: &ContainerPath) -> Result<Option<MountPoint>, VolumeError> {
        match self.0.root().mount_point(path) {
            Ok(point) => Ok(Some(point)),
            Err(ResolveError::Missing(_)) => Ok(None),
            Err(source) => Err(target(id)(source)),
        }
    }

    /// Which of this volume's file systems are mounted at a path.
    pub(super) fn devices_at(&self, id: &VolumeId, path: &ContainerPath) -> Result<Vec<Device>, VolumeError> {
        let mounts = self.0.read_mounts()?;
        let here = mounts.entries().iter().filter(|entry| entry.mount_point == Path::new(path.as_str()));
        let own = here.filter(|entry| entry.source.starts_with(&prefix(id)));
        Ok(own.map(|entry| entry.device).collect())
    }

    /// Attaches a mount at a path, whose directory is made when it is not there.
    pub(super) fn attach(
        &self,
        id: &VolumeId,
        mount: &DetachedMount,
        path: &ContainerPath,
    ) -> Result<(), VolumeError> {
        in_mount_namespace(self.0.pidfd(), || {
            let (dir, created) = self.0.root().make_dirs(path).map_err(target(id))?;
            if dir.is_mount_root() {
                return Err(VolumeError::Occupied(path.as_ref().to_owned()));
            }
            attach(mount, dir.fd(), path.as_ref()).map_err(|source| {
                self.0.root().remove_created(&created);
                VolumeError::Mount { id: id.clone(), source }
            })
        })?
    }

    /// One more mount of what is mounted at a path, or of a directory of it, as it is mounted there; nothing when there is no such
    /// directory.
    pub(super) fn clone_below(
        &self,
        id: &VolumeId,
        path: &ContainerPath,
        below: &Path,
    ) -> Result<Option<DetachedMount>, VolumeError> {
        in_mount_namespace(self.0.pidfd(), || {
            let dir = self.0.root().resolve_plain(path).map_err(target(id))?;
            let root = LayerDir::from_fd(dir.into_fd(), path.as_ref().to_owned());
            let dir = match below.as_os_str().is_empty() {
                true => Some(root),
                false => root.open_below(below.as_os_str())?,
            };
            let cloned = dir.as_ref().map(Tree::clone_of).transpose();
            let cloned = cloned.map_err(|source| VolumeError::Mount { id: id.clone(), source })?;
            Ok(cloned.map(Tree::into_mount))
        })?
    }

    /// Puts a mount in the place of another at a path; false when that is not there any more.
    pub(super) fn swap(
        &self,
        id: &VolumeId,
        new: &DetachedMount,
        path: &ContainerPath,
        old: SuperBlock,
    ) -> Result<bool, VolumeError> {
        let Some(point) = self.point(id, path)? else { return Ok(false) };
        Ok(self.inside(id, || swap(new, &point, old.mount))? == Unmounted::Done)
    }

    /// Takes a volume's mounts away from a path, lazily; gives what keeps their file systems, so that their device numbers stay theirs.
    pub(super) fn detach(
        &self,
        id: &VolumeId,
        path: &ContainerPath,
        devices: &[Device],
    ) -> Result<Vec<(SuperBlock, DetachedMount)>, VolumeError> {
        let Some(point) = self.point(id, path)? else { return Ok(Vec::new()) };
        self.inside(id, || {
            let mut gone = Vec::new();
            for _ in 0..DEEP {
                let Some(block) = block_at(&point)?.filter(|block| devices.contains(&block.device)) else {
                    break;
                };
                let Some(kept) = clone_at(&point, block.mount)? else { break };
                kept.make_private()?;
                if detach_lazily(&point, block.mount)? == Unmounted::Done {
                    gone.push((block, kept));
                }
            }
            Ok(gone)
        })
    }

    /// Removes the directory at a path, if it is empty, and nothing is mounted there.
    pub(super) fn remove_dir(&self, path: &ContainerPath) {
        if let Ok(dir) = self.0.root().resolve_plain(path) {
            let made = Created { path: path.clone(), identity: dir.identity() };
            drop(dir);
            self.0.root().remove_created(&[made]);
        }
    }

    /// How full the file system at a path is.
    pub(super) fn statvfs(&self, id: &VolumeId, path: &ContainerPath) -> Result<StatVfs, VolumeError> {
        let dir = self.0.root().resolve_plain(path).map_err(target(id))?;
        rustix::fs::fstatvfs(dir.fd().as_fd()).map_err(|errno| VolumeError::Disk {
            step: "look at",
            path: path.as_ref().to_owned(),
            source: errno.into(),
        })
    }

    fn inside<T: Send>(
        &self,
        id: &VolumeId,
        work: impl FnOnce() -> Result<T, overlayfs_utils::MountError> + Send,
    ) -> Result<T, VolumeError> {
        in_mount_namespace(self.0.pidfd(), work)?
            .map_err(|source| VolumeError::Mount { id: id.clone(), source })
    }
}

fn target(id: &VolumeId) -> impl Fn(ResolveError) -> VolumeError {
    let id = id.clone();
    move |source| VolumeError::Target { id: id.clone(), source }
}
