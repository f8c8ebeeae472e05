//! Detached mounts: overlays and cloned trees that no path shows yet.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use linux_raw_sys::general::{self as raw, MOUNT_ATTR_IDMAP, mount_attr};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MountAttrFlags, OpenTreeFlags},
};
use thiserror::Error;

use crate::{
    context::Context,
    error::{MountError, Step},
    mountinfo::{MountEntry, Propagation},
    plan::{Lower, OverlayPlan},
    point::MountId,
    stage::on_stage,
    sys,
    upper::Upper,
};

/// How layers are told to the kernel: what [`probe`](crate::probe) found. The later ones are for older kernels.
///
/// Paths are always `/proc/self/fd/N`: what the mount table shows then hides the host's paths too, and no character in
/// them is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayersBy {
    /// `FSCONFIG_SET_FD` of `lowerdir+` with a detached tree (Linux 6.15): the mount table shows `/` for every layer.
    Descriptor,
    /// `FSCONFIG_SET_STRING` of `lowerdir+` (Linux 6.7).
    Path,
    /// One `lowerdir` with all of them (Linux 6.6): `fsconfig` takes 255 bytes, which are 14 layers or so.
    Joined,
}

impl LayersBy {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Descriptor, Self::Path, Self::Joined];
}

/// Why a layer's directory cannot be used.
#[derive(Debug, Error)]
#[error("cannot open the layer directory {path}")]
pub struct TreeError {
    /// The directory, on the host.
    pub path: PathBuf,
    #[source]
    source: io::Error,
}

/// An open directory on the host that is to be a layer, or part of one.
///
/// Content of a layer is foreign: go below it only through [`Self::open_below`], which follows no link.
#[derive(Debug)]
pub struct LayerDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl LayerDir {
    /// Opens a directory by its path on the host.
    ///
    /// # Errors
    /// [`TreeError`] when it is not there or is no directory.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        // Not O_PATH: Linux 6.13 and 6.14 take only real descriptors in FSCONFIG_SET_FD, and entries are read.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(errno) => Err(TreeError { path: path.to_owned(), source: errno.into() }),
        }
    }

    /// Wraps an open directory that `path` describes in messages.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Opens a directory below this one, or nothing when there is none: it is missing, or something else.
    ///
    /// No link is followed and no other mount is entered: what a layer contains cannot name the host's files.
    ///
    /// # Errors
    /// [`TreeError`] for any other cause, a lack of permission for one.
    pub fn open_below(&self, below: &OsStr) -> Result<Option<Self>, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = self.path.join(below);
        match rustix::fs::openat2(&self.fd, below, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(TreeError { path, source: errno.into() }),
        }
    }

    /// The same directory, once more.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn reopen(&self) -> Result<Self, Errno> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The open directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its path on the host, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> String {
        format!("{:?}", self.path)
    }
}

/// A detached clone of a tree.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// Clones the mount that `dir` is in, with `dir` as its root, without the mounts below it.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::CloneTree`]; `EINVAL` when `dir` is in another mount namespace.
    pub fn clone_of(dir: &LayerDir) -> Result<Self, MountError> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        match rustix::mount::open_tree(dir.fd(), "", flags) {
            Ok(fd) => Ok(Self { fd, path: dir.path.clone() }),
            Err(errno) => Err(MountError::new(Step::CloneTree, dir.name(), errno)),
        }
    }

    /// Maps the owners of the tree's files by the user namespace `userns` (`mount_setattr`, Linux 5.12; as a layer
    /// of an overlay, Linux 5.19).
    ///
    /// # Errors
    /// [`MountError`] at [`Step::SetAttributes`]; `EINVAL` when the filesystem cannot be id-mapped, `EPERM` for the
    /// initial user namespace.
    pub fn id_mapped(self, userns: BorrowedFd<'_>) -> Result<Self, MountError> {
        let userns_fd = u64::try_from(userns.as_raw_fd()).unwrap_or(u64::MAX);
        let attr =
            mount_attr { attr_set: u64::from(MOUNT_ATTR_IDMAP), attr_clr: 0, propagation: 0, userns_fd };
        match sys::mount_setattr(self.fd(), &attr, false) {
            Ok(()) => Ok(self),
            Err(errno) => Err(MountError::new(Step::SetAttributes, self.name(), errno)),
        }
    }

    /// The tree's root.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn name(&self) -> String {
        format!("{:?}", self.path)
    }

    /// Makes a mount of the tree itself, to be attached.
    #[must_use]
    pub fn into_mount(self) -> DetachedMount {
        let what = self.name();
        DetachedMount { fd: self.fd, what }
    }
}

/// A mount that no path shows yet. Dropped without being attached, it is gone.
#[derive(Debug)]
pub struct DetachedMount {
    fd: OwnedFd,
    what: String,
}

impl DetachedMount {
    /// Mounts the overlay of `plan`, detached, with `nosuid,nodev`, and read-only unless it has an upper layer.
    ///
    /// The calling thread must be in the mount namespace of the layers. `xino=on` makes every file of the mount report
    /// the overlay's own device number also where the layers lie on several filesystems.
    ///
    /// # Errors
    /// [`MountError`], by step.
    pub fn overlay(plan: &OverlayPlan<'_>, by: LayersBy, source: &str) -> Result<Self, MountError> {
        match plan.upper().and_then(Upper::own_mount) {
            Some(mount) if by != LayersBy::Descriptor => Self::staged(plan, mount, by, source),
            _ => Self::overlay_of(plan, plan.lowers(), by, source),
        }
    }

    /// Where the kernel finds layers by path alone, which it does in the caller's mount namespace alone: all of them go
    /// to a namespace of one thread, as the upper directory's mount is not to be in anybody else's.
    fn staged(plan: &OverlayPlan<'_>, upper: &Self, by: LayersBy, source: &str) -> Result<Self, MountError> {
        let directories = plan.lowers().iter().filter_map(|lower| match lower {
            Lower::Dir(dir) => Some(dir),
            Lower::Tree(_) => None,
        });
        let cloned = directories.map(|dir| Tree::clone_of(dir)).collect::<Result<Vec<_>, _>>()?;
        let mut clones = cloned.iter();
        let lowers: Vec<_> = plan
            .lowers()
            .iter()
            .filter_map(|lower| match lower {
                Lower::Dir(_) => clones.next().map(Lower::Tree),
                Lower::Tree(tree) => Some(Lower::Tree(tree)),
            })
            .collect();
        let mounts: Vec<_> = lowers.iter().map(Lower::fd).chain([upper.fd()]).collect();
        on_stage(&mounts, || Self::overlay_of(plan, &lowers, by, source))
    }

    fn overlay_of(
        plan: &OverlayPlan<'_>,
        lowers: &[Lower<'_>],
        by: LayersBy,
        source: &str,
    ) -> Result<Self, MountError> {
        let context = Context::open("overlay")?;
        context.set_string("source", source)?;
        context.set_string("xino", "on")?;
        if plan.userxattr() {
            context.set_flag("userxattr")?;
        }
        // Closing a detached tree takes it apart, and overlayfs looks at its layers only when the superblock is made.
        let trees = add_layers(&context, lowers, by)?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        match plan.upper() {
            Some(upper) => upper.add_to(&context, by)?,
            None => {
                context.set_flag("ro")?;
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
        }
        let fd = context.mount(attributes, source)?;
        drop(trees);
        Ok(Self { fd, what: source.to_owned() })
    }

    pub(crate) fn from_fd(fd: OwnedFd, what: String) -> Self {
        Self { fd, what }
    }

    /// Makes it like another mount: it forbids what that forbids (writing, set-user-id, devices, programs, links), beside what it forbids
    /// already, and it is private, a slave or shared as that is. A clone of a shared mount is its peer until then: what is mounted on one of
    /// the two comes to the other. So one that is to be shared is made private first, and has peers of its own: who may share a copy in a
    /// namespace of his own must not have the node for a peer.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::SetAttributes`].
    pub fn make_like(&self, other: &MountEntry) -> Result<(), MountError> {
        let attr_set = other.options.split(',').fold(0, |all, option| {
            all | match option {
                "ro" => raw::MOUNT_ATTR_RDONLY,
                "nosuid" => raw::MOUNT_ATTR_NOSUID,
                "nodev" => raw::MOUNT_ATTR_NODEV,
                "noexec" => raw::MOUNT_ATTR_NOEXEC,
                "nosymfollow" => raw::MOUNT_ATTR_NOSYMFOLLOW,
                _ => 0,
            }
        });
        let propagation = match other.propagation {
            Propagation::Private => raw::MS_PRIVATE,
            Propagation::Slave => raw::MS_SLAVE,
            Propagation::Shared => raw::MS_SHARED,
        };
        if other.propagation == Propagation::Shared {
            self.make_private()?;
        }
        self.set(u64::from(attr_set), 0, propagation)
    }

    /// Has it share nothing that is mounted on it.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::SetAttributes`].
    pub fn make_private(&self) -> Result<(), MountError> {
        self.set(0, 0, raw::MS_PRIVATE)
    }

    fn set(&self, attr_set: u64, attr_clr: u64, propagation: u32) -> Result<(), MountError> {
        let attr = mount_attr { attr_set, attr_clr, propagation: u64::from(propagation), userns_fd: 0 };
        sys::mount_setattr(self.fd(), &attr, false)
            .map_err(|errno| MountError::new(Step::SetAttributes, self.what(), errno))
    }

    /// Whether nothing can be written through this mount, whatever is written through others of the same file system.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::SetAttributes`].
    pub fn set_read_only(&self, read_only: bool) -> Result<(), MountError> {
        let flag = u64::from(raw::MOUNT_ATTR_RDONLY);
        let (attr_set, attr_clr) = if read_only { (flag, 0) } else { (0, flag) };
        self.set(attr_set, attr_clr, 0)
    }

    /// The mount's root, as a layer or as what holds one. Valid while this is there.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be read.
    pub fn root(&self) -> Result<LayerDir, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, ".", flags, Mode::empty()) {
            Ok(fd) => Ok(LayerDir { fd, path: PathBuf::from(&self.what) }),
            Err(errno) => Err(TreeError { path: PathBuf::from(&self.what), source: errno.into() }),
        }
    }

    /// The mount's root, readable before anything is attached.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The mount's id.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::ReadMountId`].
    pub fn id(&self) -> Result<MountId, MountError> {
        MountId::of_fd(self.fd(), &self.what)
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// The descriptor, as a directory to read.
    ///
    /// # Errors
    /// The kernel's, when it cannot be reopened.
    pub fn open_root(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?))
    }
}

/// Adds the layers; the trees it returns must outlive the making of the superblock.
fn add_layers(context: &Context, lowers: &[Lower<'_>], by: LayersBy) -> Result<Vec<Tree>, MountError> {
    let mut trees = Vec::new();
    match by {
        LayersBy::Descriptor => {
            for lower in lowers {
                match lower {
                    Lower::Tree(tree) => context.add_layer_fd(tree.fd(), &lower.name())?,
                    // The path of a detached tree is "/": that is what keeps the host's paths out of the mount table.
                    Lower::Dir(dir) => {
                        let tree = Tree::clone_of(dir)?;
                        context.add_layer_fd(tree.fd(), &lower.name())?;
                        trees.push(tree);
                    }
                }
            }
        }
        LayersBy::Path => {
            for lower in lowers {
                context.add_layer_path(&fd_path(lower), &lower.name())?;
            }
        }
        LayersBy::Joined => {
            let paths: Vec<String> = lowers.iter().map(fd_path).collect();
            let names: Vec<String> = lowers.iter().map(Lower::name).collect();
            context.set_layers(&paths.join(":"), &names.join(", "))?;
        }
    }
    Ok(trees)
}

fn fd_path(lower: &Lower<'_>) -> String {
    format!("/proc/self/fd/{}", lower.fd().as_raw_fd())
}
