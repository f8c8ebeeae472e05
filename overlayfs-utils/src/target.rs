//! Paths in a container, resolved so that nothing the container planted leads out of it.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    path::ContainerPath,
    point::{MountId, MountPoint, is_mount_root, statx_mount},
};

/// How often a lookup is repeated that a concurrent rename or mount made inconclusive (`EAGAIN`, `openat2(2)`). Only a
/// container that renames in a loop reaches this.
const LOOKUP_TRIES: usize = 128;
/// Why a path in a container cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is nothing at the path.
    #[error("{0} does not exist in the container")]
    Missing(ContainerPath),
    /// It is there, and no directory.
    #[error("{0} is not a directory in the container: choose another target")]
    NotADirectory(ContainerPath),
    /// Its links lead nowhere, or through a magic link of procfs.
    #[error(
        "{0} leads through a link that is not followed (a loop, one that leads nowhere, or a link of procfs): name the directory itself"
    )]
    Link(ContainerPath),
    /// It is on a filesystem on which no capsule is mounted.
    #[error(
        "{path} is on {filesystem} in the container: a capsule is never mounted there, choose another target"
    )]
    KernelFilesystem {
        /// The path asked for.
        path: ContainerPath,
        /// The filesystem's name.
        filesystem: &'static str,
    },
    /// Something is at the path, where something was to be made.
    #[error("{0} exists in the container already: nothing is put in its place")]
    Exists(ContainerPath),
    /// Directories for it cannot be made: the filesystem is read-only.
    #[error(
        "{0} does not exist and cannot be made: the container's file system is read-only there; add the directory to the image"
    )]
    ReadOnly(ContainerPath),
    /// It resolves to a path that is no UTF-8, or was deleted or moved while it was looked at.
    #[error("{0} resolves to a path that cannot be recorded, or that keeps changing")]
    Unstable(ContainerPath),
    /// Another answer of the kernel.
    #[error("cannot {step} {path} in the container")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// The path.
        path: ContainerPath,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
}

/// A directory in a container, held open: whatever the container renames, this is the directory that was found.
#[derive(Debug)]
pub struct Resolved {
    fd: OwnedFd,
    path: ContainerPath,
    stat: Statx,
}

impl Resolved {
    /// The directory (`O_PATH`). It keeps its mount busy until it is dropped.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its path without links, from the container's root.
    #[must_use]
    pub fn path(&self) -> &ContainerPath {
        &self.path
    }

    /// The mount it is on.
    #[must_use]
    pub fn mount(&self) -> MountId {
        MountId::of(&self.stat)
    }

    /// Whether it is the root of that mount: something is mounted here.
    #[must_use]
    pub fn is_mount_root(&self) -> bool {
        is_mount_root(&self.stat)
    }

    /// Device (major, minor) and inode: two views of the same directory agree in them.
    #[must_use]
    pub fn identity(&self) -> (u32, u32, u64) {
        identity(&self.stat)
    }

    /// The descriptor, given away.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

pub(crate) fn identity(stat: &Statx) -> (u32, u32, u64) {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
}

/// A directory that [`ContainerRoot::make_dirs`] made, by path and identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Where.
    pub path: ContainerPath,
    /// Its device and inode.
    pub identity: (u32, u32, u64),
}

/// The root directory of a container, held open.
#[derive(Debug)]
pub struct ContainerRoot(OwnedFd);

impl ContainerRoot {
    /// Wraps a descriptor of the root: `/proc/PID/root`, or the root file system as the host has it mounted.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens a root by its path on the host.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// The directory (`O_PATH`).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Finds the directory at `path`, following the container's own links as a process in it would, never out of
    /// the root (`RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`).
    ///
    /// The links are followed once: what is recorded is the path without links, looked up again and found to be
    /// the same directory. The last component may be a link, as for a mount target of runc. Directories on procfs,
    /// sysfs and their like are refused. A filesystem that the container itself serves (FUSE) can hold the call up.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve(&self, path: &ContainerPath) -> Result<Resolved, ResolveError> {
        let found = match self.resolve_plain(path) {
            // A link on the way: `ELOOP`, or `ENOTDIR` for the last component.
            Err(ResolveError::Link(_) | ResolveError::NotADirectory(_)) => self.resolve_links(path)?,
            other => other?,
        };
        match kernel_filesystem(&found.fd) {
            Some(filesystem) => Err(ResolveError::KernelFilesystem { path: path.clone(), filesystem }),
            None => Ok(found),
        }
    }

    /// Finds the directory at `path` only if no component is a link.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve_plain(&self, path: &ContainerPath) -> Result<Resolved, ResolveError> {
        let fd = self.open_dir(path, ResolveFlags::NO_SYMLINKS)?;
        let stat = stat_of(fd.as_fd(), path)?;
        Ok(Resolved { fd, path: path.clone(), stat })
    }

    fn resolve_links(&self, path: &ContainerPath) -> Result<Resolved, ResolveError> {
        for _ in 0..LOOKUP_TRIES {
            let followed = self.open_dir(path, ResolveFlags::empty())?;
            let stat = stat_of(followed.as_fd(), path)?;
            let Some(plain) = self.path_of(followed.as_fd()) else { continue };
            match self.resolve_plain(&plain) {
                Ok(again) if again.identity() == identity(&stat) && again.mount() == MountId::of(&stat) => {
                    return Ok(again);
                }
                // It moved between the two lookups: follow the links anew.
                _ => {}
            }
        }
        Err(ResolveError::Unstable(path.clone()))
    }

    fn open_dir(&self, path: &ContainerPath, more: ResolveFlags) -> Result<OwnedFd, ResolveError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        for _ in 0..LOOKUP_TRIES {
            match rustix::fs::openat2(&self.0, path.relative(), flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(lookup_error(path, errno)),
                Ok(fd) => return Ok(fd),
            }
        }
        Err(ResolveError::Unstable(path.clone()))
    }

    /// The path of an open directory below this root, by the kernel's own account (`d_path`).
    fn path_of(&self, fd: BorrowedFd<'_>) -> Option<ContainerPath> {
        let root = read_fd_path(self.0.as_fd())?;
        let path = read_fd_path(fd)?;
        let below = path.strip_prefix(&root).ok()?;
        ContainerPath::parse(&format!("/{}", below.to_str()?)).ok()
    }

    /// The path of the directory that `path` means, links followed; for one that is missing, where it would be made.
    ///
    /// # Errors
    /// [`ResolveError`] for any other cause than that it is missing.
    pub fn canonical(&self, path: &ContainerPath) -> Result<ContainerPath, ResolveError> {
        match (self.resolve(path), path.split()) {
            (Ok(found), _) => Ok(found.path),
            (Err(ResolveError::Missing(_)), Some((parent, name))) => {
                self.canonical(&parent)?.join(name).map_err(|_| ResolveError::Unstable(path.clone()))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The text of the link at `path`, or nothing when it is no link or no text. Links before the last component are
    /// not followed.
    ///
    /// # Errors
    /// [`ResolveError`], of its parent.
    pub fn read_link(&self, path: &ContainerPath) -> Result<Option<String>, ResolveError> {
        let Some((parent, name)) = path.split() else { return Ok(None) };
        let parent = self.resolve_plain(&parent)?;
        let text = rustix::fs::readlinkat(parent.fd(), name, Vec::new());
        Ok(text.ok().and_then(|text| text.into_string().ok()))
    }

    /// The mount point at `path`: its parent is looked up without following links.
    ///
    /// # Errors
    /// [`ResolveError`]; [`ResolveError::NotADirectory`] for "/", which is no mount point of ours.
    pub fn mount_point(&self, path: &ContainerPath) -> Result<MountPoint, ResolveError> {
        let Some((parent, name)) = path.split() else {
            return Err(ResolveError::NotADirectory(path.clone()));
        };
        let parent = self.resolve_plain(&parent)?;
        Ok(MountPoint::new(parent.into_fd(), name.into(), path.as_ref().to_owned()))
    }

    /// Finds the directory at `path` and makes what is missing, with mode 0755.
    ///
    /// Each missing directory is made in its already opened parent and opened again without following links, so
    /// a link that the container plants meanwhile is refused, not followed. On an error the directories made are
    /// removed again.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn make_dirs(&self, path: &ContainerPath) -> Result<(Resolved, Vec<Created>), ResolveError> {
        let mut created = Vec::new();
        let made = self.make_missing(path, &mut created);
        if made.is_err() {
            self.remove_created(&created);
        }
        made.map(|dir| (dir, created))
    }

    fn make_missing(
        &self,
        path: &ContainerPath,
        created: &mut Vec<Created>,
    ) -> Result<Resolved, ResolveError> {
        match self.resolve(path) {
            Err(ResolveError::Missing(_)) => {}
            other => return other,
        }
        let Some((parent, name)) = path.split() else {
            return Err(ResolveError::Missing(path.clone()));
        };
        let parent = self.make_missing(&parent, created)?;
        let made = make_dir(&parent, name, path)?;
        created.push(Created { path: made.path.clone(), identity: made.identity() });
        Ok(made)
    }

    /// Removes directories that [`Self::make_dirs`] made, if they are still there, the same, and empty; returns the
    /// paths of those that stay.
    pub fn remove_created(&self, created: &[Created]) -> Vec<ContainerPath> {
        let stays = |made: &&Created| !self.remove_dir(made);
        created.iter().rev().filter(stays).map(|c| c.path.clone()).collect()
    }

    fn remove_dir(&self, made: &Created) -> bool {
        let Some((parent, name)) = made.path.split() else { return false };
        let Ok(parent) = self.resolve_plain(&parent) else { return false };
        let same = statx_mount(parent.fd(), Path::new(name), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| identity(&stat) == made.identity && !is_mount_root(&stat));
        same && rustix::fs::unlinkat(parent.fd(), name, AtFlags::REMOVEDIR).is_ok()
    }
}

fn make_dir(parent: &Resolved, name: &str, asked: &ContainerPath) -> Result<Resolved, ResolveError> {
    let path = parent.path.join(name).map_err(|_| ResolveError::Unstable(asked.clone()))?;
    match rustix::fs::mkdirat(parent.fd(), name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        Err(Errno::ROFS) => return Err(ResolveError::ReadOnly(asked.clone())),
        // A link that leads nowhere, or something that the container made just now.
        Err(Errno::EXIST) => return Err(ResolveError::Link(asked.clone())),
        Err(source) => return Err(ResolveError::Kernel { step: "make", path, source }),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent.fd(), name, flags, Mode::empty())
        .map_err(|source| ResolveError::Kernel { step: "open", path: path.clone(), source })?;
    let stat = stat_of(fd.as_fd(), &path)?;
    Ok(Resolved { fd, path, stat })
}

fn lookup_error(path: &ContainerPath, errno: Errno) -> ResolveError {
    match errno {
        Errno::NOENT => ResolveError::Missing(path.clone()),
        Errno::NOTDIR => ResolveError::NotADirectory(path.clone()),
        Errno::LOOP => ResolveError::Link(path.clone()),
        source => ResolveError::Kernel { step: "look up", path: path.clone(), source },
    }
}

fn stat_of(fd: BorrowedFd<'_>, path: &ContainerPath) -> Result<Statx, ResolveError> {
    statx_mount(fd, Path::new(""), AtFlags::EMPTY_PATH).map_err(|source| ResolveError::Kernel {
        step: "stat",
        path: path.clone(),
        source,
    })
}

fn read_fd_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new()).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes())))
}

/// The name of a filesystem that is the kernel's window rather than a place for files (`linux/magic.h`).
fn kernel_filesystem(fd: &OwnedFd) -> Option<&'static str> {
    use linux_raw_sys::general as raw;
    let magic = u32::try_from(rustix::fs::fstatfs(fd).ok()?.f_type).ok()?;
    match magic {
        raw::PROC_SUPER_MAGIC => Some("procfs"),
        raw::SYSFS_MAGIC => Some("sysfs"),
        raw::CGROUP_SUPER_MAGIC | raw::CGROUP2_SUPER_MAGIC => Some("cgroupfs"),
        raw::DEVPTS_SUPER_MAGIC => Some("devpts"),
        raw::SECURITYFS_MAGIC => Some("securityfs"),
        raw::DEBUGFS_MAGIC => Some("debugfs"),
        raw::TRACEFS_MAGIC => Some("tracefs"),
        raw::BPF_FS_MAGIC => Some("bpffs"),
        raw::NSFS_MAGIC => Some("nsfs"),
        raw::BINFMTFS_MAGIC => Some("binfmt_misc"),
        raw::EFIVARFS_MAGIC => Some("efivarfs"),
        raw::PSTOREFS_MAGIC => Some("pstore"),
        raw::SELINUX_MAGIC => Some("selinuxfs"),
        MQUEUE_MAGIC => Some("mqueue"),
        _ => None,
    }
}

/// `MQUEUE_MAGIC` of `ipc/mqueue.c`, which no header exports.
const MQUEUE_MAGIC: u32 = 0x1980_0202;
