//! Files and directories as detached mounts: of the host, to be bound into a container, and a container's own root.

use std::path::Path;

use linux_raw_sys::general::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_PRIVATE, mount_attr,
};
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    mount::OpenTreeFlags,
};

use serde::{Deserialize, Serialize};

use crate::{
    detached::DetachedMount,
    error::{MountError, Step},
    sys,
    target::ContainerRoot,
};

/// What a bound file or directory cannot be used for, whatever the mount that it is taken from allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // the kernel's attributes, each by itself
pub struct BindOptions {
    /// Nothing can be written.
    pub read_only: bool,
    /// Programs in it change no user or group.
    pub no_suid: bool,
    /// Device nodes in it cannot be opened.
    pub no_dev: bool,
    /// Programs in it cannot be executed.
    pub no_exec: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}

impl DetachedMount {
    /// A detached bind mount of a file or directory of the host. Links in the path are followed. It is private, and so is what is
    /// mounted below it: mounts made later on the host do not appear in it.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::CloneTree`] (`ENOENT`: there is none) or [`Step::SetAttributes`].
    pub fn bind(source: &Path, options: BindOptions) -> Result<Self, MountError> {
        let what = format!("{source:?}");
        let failed = |step| {
            let what = what.clone();
            move |errno| MountError::new(step, what, errno)
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(source, flags, Mode::empty()).map_err(failed(Step::CloneTree))?;
        let mut clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        clone.set(OpenTreeFlags::AT_RECURSIVE, options.recursive);
        let fd = rustix::mount::open_tree(&file, "", clone).map_err(failed(Step::CloneTree))?;
        let attributes = [
            (options.read_only, MOUNT_ATTR_RDONLY),
            (options.no_suid, MOUNT_ATTR_NOSUID),
            (options.no_dev, MOUNT_ATTR_NODEV),
            (options.no_exec, MOUNT_ATTR_NOEXEC),
        ];
        let set = attributes.into_iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| u64::from(bit));
        let attr = mount_attr {
            attr_set: set.fold(0, |all, bit| all | bit),
            attr_clr: 0,
            propagation: u64::from(MS_PRIVATE),
            userns_fd: 0,
        };
        let mount = Self::from_fd(fd, what.clone());
        sys::mount_setattr(mount.fd(), &attr, options.recursive).map_err(failed(Step::SetAttributes))?;
        Ok(mount)
    }

    /// Whether its root is a directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_directory(&self) -> Result<bool, Errno> {
        let stat = rustix::fs::fstat(self.fd())?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }
}

impl ContainerRoot {
    /// A detached copy of everything that is mounted from this root on: the same files, at other places once it is attached. The
    /// calling thread must be in the mount namespace of the root.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::CloneTree`].
    pub fn clone_mounts(&self) -> Result<DetachedMount, MountError> {
        let what = "the container's root";
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        rustix::mount::open_tree(self.fd(), "", flags)
            .map(|fd| DetachedMount::from_fd(fd, what.to_owned()))
            .map_err(|errno| MountError::new(Step::CloneTree, what, errno))
    }
}
