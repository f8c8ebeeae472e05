//! A place for mounts that nobody else sees, and that nothing outlives.
//!
//! Kernels before Linux 6.15 take nothing for a layer that is not attached in the caller's mount namespace. What is attached on a
//! stage is attached in a namespace that only one thread is in: when the process is killed, the kernel takes it all away.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags},
};

use crate::{
    context::Context,
    detached::LayerDir,
    error::{MountError, Step},
    namespace::{NamespaceError, in_new_mount_namespace},
};

const WHAT: &str = "a stage of its own";

/// A tmpfs in the mount namespace of the calling thread.
#[derive(Debug)]
pub(crate) struct Stage {
    tmpfs: OwnedFd,
}

impl Stage {
    /// To be called on a thread that [`in_new_mount_namespace`] made.
    ///
    /// It is on a directory of procfs: `/proc` is a mount on every system, also in a chroot, where "/" is none and its
    /// propagation cannot be cut off.
    pub(crate) fn open() -> Result<Self, MountError> {
        let failed = |errno| MountError::new(Step::Stage, WHAT, errno);
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/proc", private).map_err(failed)?;
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open("/proc/sys", directory, Mode::empty()).map_err(failed)?;
        let tmpfs = Context::open("tmpfs")?.mount(MountAttrFlags::empty(), "tmpfs")?;
        move_mount(&tmpfs, &place).map_err(failed)?;
        Ok(Self { tmpfs })
    }

    /// A new directory on it.
    pub(crate) fn make(&self, name: &str) -> Result<LayerDir, MountError> {
        let failed = |errno| MountError::new(Step::Stage, WHAT, errno);
        rustix::fs::mkdirat(&self.tmpfs, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.tmpfs, name, flags, Mode::empty()).map_err(failed)?;
        Ok(LayerDir::from_fd(fd, name.into()))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.tmpfs
    }
}

fn move_mount(mount: impl std::os::fd::AsFd, place: impl std::os::fd::AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

/// Runs `work` on a thread in whose mount namespace the detached `mounts` are attached, each at a place of its own, and nobody
/// else's. They are of no use afterwards; what `work` has made of them is.
pub(crate) fn on_stage<T: Send>(
    mounts: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T, MountError> + Send,
) -> Result<T, MountError> {
    let done = in_new_mount_namespace(|| {
        let stage = Stage::open()?;
        for (number, mount) in mounts.iter().enumerate() {
            let place = stage.make(&number.to_string())?;
            move_mount(mount, place.fd()).map_err(|errno| MountError::new(Step::Attach, WHAT, errno))?;
        }
        work()
    });
    done.unwrap_or_else(|error| {
        let errno = match error {
            NamespaceError::Unshare(errno) => errno,
            _ => Errno::AGAIN,
        };
        Err(MountError::new(Step::Stage, WHAT, errno))
    })
}
