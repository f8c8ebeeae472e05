//! Mount points in the mount namespace of the calling thread: attach, swap, unmount.
//!
//! A descriptor of a mount keeps it busy, so a mount point is its parent directory and a name, and every function here
//! must run on a thread that [`in_mount_namespace`](crate::in_mount_namespace) made: they change its working directory.

use std::{
    ffi::OsString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Statx, StatxFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags},
};
use serde::{Deserialize, Serialize};

use crate::{
    detached::DetachedMount,
    error::{MountError, Step},
    users::SuperBlock,
};

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
const STATX_MNT_ID_UNIQUE: StatxFlags =
    StatxFlags::from_bits_retain(linux_raw_sys::general::STATX_MNT_ID_UNIQUE);
/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
const ATTR_MOUNT_ROOT: u64 = 0x2000;

/// Which mount a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountId {
    /// The id. Unique ones are never used again while the system runs; the others are, soon.
    pub id: u64,
    /// `STATX_MNT_ID_UNIQUE` (Linux 6.8) rather than `STATX_MNT_ID`, which is what the mount table shows.
    pub unique: bool,
}

impl MountId {
    pub(crate) fn of_fd(fd: BorrowedFd<'_>, what: &str) -> Result<Self, MountError> {
        statx_mount(fd, Path::new(""), AtFlags::EMPTY_PATH)
            .map(|s| Self::of(&s))
            .map_err(|errno| MountError::new(Step::ReadMountId, what, errno))
    }

    pub(crate) fn of(stat: &Statx) -> Self {
        Self { id: stat.stx_mnt_id, unique: stat.stx_mask & STATX_MNT_ID_UNIQUE.bits() != 0 }
    }
}

/// `statx` for the mount id and the device, without triggering an automount.
pub(crate) fn statx_mount(fd: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> Result<Statx, Errno> {
    // A kernel without the unique id ignores its bit and answers with the other.
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | STATX_MNT_ID_UNIQUE;
    rustix::fs::statx(fd, path, flags | AtFlags::NO_AUTOMOUNT, mask)
}

/// Whether the file is the root of a mount.
pub(crate) fn is_mount_root(stat: &Statx) -> bool {
    stat.stx_attributes.bits() & ATTR_MOUNT_ROOT != 0
}

/// A directory that mounts are put on: its parent, its name, and the path to show.
#[derive(Debug)]
pub struct MountPoint {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl MountPoint {
    pub(crate) fn new(parent: OwnedFd, name: OsString, path: PathBuf) -> Self {
        Self { parent, name, path }
    }

    /// Its path in the container.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, step: Step, errno: Errno) -> MountError {
        MountError::new(step, format!("{:?}", self.path), errno)
    }
}

/// What became of an unmount or swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Unmounted {
    /// It is done.
    Done,
    /// A process uses the mount; nothing changed. Never the outcome of a lazy unmount.
    Busy,
    /// The mount on top is not the one expected, or there is none; nothing changed.
    NotThere,
}

/// The mount on top at `point`: nothing when its name is missing or is no mount's root.
///
/// # Errors
/// [`MountError`] at [`Step::ReadMountId`].
pub fn mount_at(point: &MountPoint) -> Result<Option<MountId>, MountError> {
    match statx_mount(point.parent.as_fd(), Path::new(&point.name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_mount_root(&stat) => Ok(Some(MountId::of(&stat))),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(point.error(Step::ReadMountId, errno)),
    }
}

/// The filesystem of the mount on top at `point`, which is a directory: nothing when it is missing, or no mount's root.
///
/// # Errors
/// [`MountError`] at [`Step::ReadMountId`].
pub fn block_at(point: &MountPoint) -> Result<Option<SuperBlock>, MountError> {
    let Some(expected) = mount_at(point)? else { return Ok(None) };
    match open_top(point, expected)? {
        Some(top) => SuperBlock::of(top.as_fd()).map(Some),
        None => Ok(None),
    }
}

/// Attaches `mount` on the directory `target`, a descriptor in the calling thread's mount namespace. `shown` is its
/// path for messages.
///
/// # Errors
/// [`MountError`] at [`Step::Attach`]; then nothing changed.
pub fn attach(mount: &DetachedMount, target: BorrowedFd<'_>, shown: &Path) -> Result<(), MountError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount.fd(), "", target, "", flags)
        .map_err(|errno| MountError::new(Step::Attach, format!("{} on {shown:?}", mount.what()), errno))
}

/// A detached clone of the mount `expected` at `point`: the same filesystem, to put the mount back with. Nothing when
/// another mount or none is on top.
///
/// # Errors
/// [`MountError`] at [`Step::CloneTree`] or [`Step::ReadMountId`].
pub fn clone_at(point: &MountPoint, expected: MountId) -> Result<Option<DetachedMount>, MountError> {
    if mount_at(point)? != Some(expected) {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    rustix::mount::open_tree(&point.parent, Path::new(&point.name), flags)
        .map(|fd| Some(DetachedMount::from_fd(fd, format!("{:?}", point.path))))
        .map_err(|errno| point.error(Step::CloneTree, errno))
}

/// Takes an attached mount away from wherever it is now, lazily: for one whose directory was moved meanwhile.
///
/// # Errors
/// [`MountError`] at [`Step::EnterParent`] or [`Step::Unmount`]; `EINVAL` when it is not attached.
pub fn dissolve(mount: &DetachedMount) -> Result<(), MountError> {
    detach_fd(mount.fd()).map_err(|(step, errno)| MountError::new(step, mount.what(), errno))
}

/// Unmounts the mount behind a descriptor lazily. Whatever is put on top of it or moved meanwhile: it is this mount.
fn detach_fd(root: BorrowedFd<'_>) -> Result<(), (Step, Errno)> {
    rustix::process::fchdir(root).map_err(|errno| (Step::EnterParent, errno))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(|errno| (Step::Unmount, errno))
}

/// Replaces the mount `old` at `point` by `new`, with no instant at which the path shows neither: `new` goes beneath
/// (`MOVE_MOUNT_BENEATH`, Linux 6.5), then `old` is unmounted lazily. Open files keep `old` until they are closed.
///
/// # Errors
/// [`MountError`]; at [`Step::AttachBeneath`] nothing changed, at [`Step::Unmount`], which the kernel has no reason for,
/// `old` is still on top and `new` under it.
pub fn swap(new: &DetachedMount, point: &MountPoint, old: MountId) -> Result<Unmounted, MountError> {
    let Some(top) = open_top(point, old)? else { return Ok(Unmounted::NotThere) };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    rustix::mount::move_mount(new.fd(), "", &top, "", flags)
        .map_err(|errno| point.error(Step::AttachBeneath, errno))?;
    match detach_fd(top.as_fd()) {
        // The container unmounted it in this very moment.
        Ok(()) | Err((Step::Unmount, Errno::INVAL)) => Ok(Unmounted::Done),
        Err((step, errno)) => Err(point.error(step, errno)),
    }
}

/// Opens the mount at `point` if it is the one expected.
fn open_top(point: &MountPoint, expected: MountId) -> Result<Option<OwnedFd>, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::openat(&point.parent, Path::new(&point.name), flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(point.error(Step::ReadMountId, errno)),
    };
    let found = MountId::of_fd(top.as_fd(), "the mount on top")?;
    Ok((found == expected).then_some(top))
}

/// Unmounts `expected` at `point` unless a process uses it.
///
/// # Errors
/// [`MountError`] for any cause but the two that [`Unmounted`] has words for.
pub fn unmount(point: &MountPoint, expected: MountId) -> Result<Unmounted, MountError> {
    unmount_by(point, expected, UnmountFlags::NOFOLLOW)
}

/// As [`detach_lazily`], of the mount of a file, which cannot be a working directory: by its name, so that what is mounted over
/// it in this very moment would go in its place.
///
/// # Errors
/// [`MountError`], as [`unmount`].
pub fn detach_file_lazily(point: &MountPoint, expected: MountId) -> Result<Unmounted, MountError> {
    unmount_by(point, expected, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

fn unmount_by(point: &MountPoint, expected: MountId, flags: UnmountFlags) -> Result<Unmounted, MountError> {
    if mount_at(point)? != Some(expected) {
        return Ok(Unmounted::NotThere);
    }
    // By name, as a descriptor of the mount would keep it busy. umount2 takes a path alone: the name, relative to the
    // thread's own working directory, follows no link.
    rustix::process::fchdir(&point.parent).map_err(|errno| point.error(Step::EnterParent, errno))?;
    match rustix::mount::unmount(Path::new(&point.name), flags) {
        Ok(()) => Ok(Unmounted::Done),
        Err(Errno::BUSY) => Ok(Unmounted::Busy),
        Err(errno) => Err(point.error(Step::Unmount, errno)),
    }
}

/// Takes `expected` away from `point` at once, with all that is mounted on it; it lives on, out of reach, while a process
/// uses it.
///
/// # Errors
/// [`MountError`], as [`unmount`].
pub fn detach_lazily(point: &MountPoint, expected: MountId) -> Result<Unmounted, MountError> {
    let Some(top) = open_top(point, expected)? else { return Ok(Unmounted::NotThere) };
    detach_fd(top.as_fd()).map(|()| Unmounted::Done).map_err(|(step, errno)| point.error(step, errno))
}
