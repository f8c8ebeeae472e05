//! What makes an overlay writable: an upper directory, and the work directory that overlayfs wants beside it.
//!
//! What is in an upper directory was written by a container's processes: it is entered by descriptors that follow no link.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags},
    io::Errno,
};
use thiserror::Error;

use crate::{
    context::Context,
    detached::{DetachedMount, LayerDir, LayersBy, Tree, TreeError},
    error::MountError,
    image::{ImageError, mount_image},
};

/// The directory of a base that has what was written.
pub const UPPER: &str = "upper";
/// The directory of a base that overlayfs keeps for itself.
pub const WORK: &str = "work";

/// The attribute of directories that were made for an overlay to lie over, and that nobody has written: [`made_as`]. Only who may
/// have all attributes can see it.
pub const MADE: &str = "trusted.capsule.made";

/// The value of [`MADE`] of a directory that is as it was made.
#[must_use]
pub fn made_as(mode: u32, uid: u32, gid: u32) -> String {
    format!("{mode:o} {uid} {gid}")
}

/// Why there is no upper directory.
#[derive(Debug, Error)]
pub enum UpperError {
    /// A directory could not be made or opened.
    #[error("cannot {step} {}", path.display())]
    Directory {
        /// What was to be done.
        step: &'static str,
        /// To what, on the node.
        path: PathBuf,
        /// Why not: `ENOTDIR` or `ELOOP` where something was written that is no directory.
        #[source]
        source: io::Error,
    },
    /// It could not be cloned or id-mapped.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Its image could not be mounted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its image's root could not be opened.
    #[error(transparent)]
    Root(#[from] TreeError),
}

/// The directory that holds [`UPPER`] and [`WORK`].
#[derive(Debug)]
pub struct UpperBase {
    /// As the host has it.
    dir: LayerDir,
    /// The same, detached, and id-mapped where it has to be.
    tree: Option<Tree>,
    /// The image that it is the root of, and its mount.
    image: Option<(PathBuf, DetachedMount)>,
}

impl UpperBase {
    /// A directory of the host.
    #[must_use]
    pub fn new(dir: LayerDir) -> Self {
        Self { dir, tree: None, image: None }
    }

    /// The root of the ext4 file system in `file`, which no path of the host shows at any time.
    ///
    /// # Errors
    /// [`UpperError`].
    pub fn of_image(file: &Path) -> Result<Self, UpperError> {
        let mount = mount_image(file, false)?;
        Ok(Self { dir: mount.root()?, tree: None, image: Some((file.to_owned(), mount)) })
    }

    /// As a detached tree, so that no path of the host is shown, with owners mapped by the user namespace `users`.
    ///
    /// # Errors
    /// [`MountError`]: see [`Tree::id_mapped`].
    pub fn detached(mut self, users: Option<BorrowedFd<'_>>) -> Result<Self, MountError> {
        let tree = Tree::clone_of(&self.dir)?;
        self.tree = Some(match users {
            Some(users) => tree.id_mapped(users)?,
            None => tree,
        });
        Ok(self)
    }

    /// What was written to the directory `below` (relative, empty for the whole), and the `number`th work directory. What
    /// is not there is made, with mode and owner of `likes`: the same directories as the capsule has them, from its root to `below`.
    ///
    /// # Errors
    /// [`UpperError`].
    pub fn place(&self, below: &Path, number: usize, likes: &[LayerDir]) -> Result<Upper, UpperError> {
        let work = Path::new(WORK).join(number.to_string());
        let upper = Path::new(UPPER).join(below);
        for (path, likes) in [(&upper, likes), (&work, &[])] {
            self.make(path, likes)?;
        }
        let own = match &self.image {
            // It is attached for one overlay, and cannot be for another one.
            Some((file, _)) if self.tree.is_none() => Some(mount_image(file, false)?),
            _ => None,
        };
        let at = match (&own, &self.tree) {
            (Some(mount), _) => mount.fd(),
            (None, Some(tree)) => tree.fd(),
            (None, None) => self.dir.fd(),
        };
        Ok(Upper { upper: self.open(at, &upper)?, work: self.open(at, &work)?, own })
    }

    fn failed(&self, step: &'static str, path: &Path) -> impl FnOnce(Errno) -> UpperError + use<> {
        let path = self.dir.path().join(path);
        move |errno| UpperError::Directory { step, path, source: errno.into() }
    }

    /// Through the host's mount: one that is id-mapped has no owner for what root makes.
    fn make(&self, path: &Path, likes: &[LayerDir]) -> Result<(), UpperError> {
        let mut parent = self.dir.reopen().map_err(self.failed("open", Path::new("")))?;
        let mut done = PathBuf::new();
        let mut likes = likes.iter();
        for name in path {
            let like = likes.next();
            done.push(name);
            let made = match rustix::fs::mkdirat(parent.fd(), name, Mode::from_raw_mode(0o700)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(self.failed("make", &done)(errno)),
            };
            parent = open_beneath(&parent, name).map_err(self.failed("open", &done))?;
            if let (true, Some(like)) = (made, like) {
                copy_root(like, &parent)
                    .map_err(self.failed("give the capsule's mode and owner to", &done))?;
            }
        }
        Ok(())
    }

    fn open(&self, at: BorrowedFd<'_>, path: &Path) -> Result<LayerDir, UpperError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match rustix::fs::openat2(at, path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(LayerDir::from_fd(fd, self.dir.path().join(path))),
            Err(errno) => Err(self.failed("open", path)(errno)),
        }
    }
}

fn open_beneath(parent: &LayerDir, name: &OsStr) -> Result<LayerDir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent.fd(), name, flags, Mode::empty())?;
    Ok(LayerDir::from_fd(fd, parent.path().join(name)))
}

/// The overlay's root has the upper directory's mode and owner, and is to have the capsule's.
fn copy_root(like: &LayerDir, made: &LayerDir) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(like.fd())?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(made.fd(), Some(uid), Some(gid))?;
    let mode = stat.st_mode & 0o7777;
    rustix::fs::fchmod(made.fd(), Mode::from_raw_mode(mode))?;
    let mark = made_as(mode, stat.st_uid, stat.st_gid);
    match rustix::fs::fsetxattr(made.fd(), MADE, mark.as_bytes(), XattrFlags::empty()) {
        // Without it, it counts as written.
        Err(Errno::PERM | Errno::NOTSUP) => Ok(()),
        set => set,
    }
}

/// An upper directory with its work directory, both on one mount. Valid while the [`UpperBase`] is there that it is of.
#[derive(Debug)]
pub struct Upper {
    upper: LayerDir,
    work: LayerDir,
    own: Option<DetachedMount>,
}

impl Upper {
    /// Gives the upper directory, and so the overlay's root, another owner and mode.
    ///
    /// # Errors
    /// [`UpperError::Directory`].
    pub fn give_root(&self, owner: Option<(u32, u32)>, mode: Option<u32>) -> Result<(), UpperError> {
        let path = self.upper.path().to_owned();
        let failed = |step| {
            let path = path.clone();
            move |errno: Errno| UpperError::Directory { step, path, source: errno.into() }
        };
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(self.upper.fd(), Some(uid), Some(gid)).map_err(failed("give an owner to"))?;
        }
        if let Some(mode) = mode {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::fchmod(self.upper.fd(), mode).map_err(failed("give a mode to"))?;
        }
        Ok(())
    }

    /// The mount that both are on, attached nowhere.
    pub(crate) fn own_mount(&self) -> Option<&DetachedMount> {
        self.own.as_ref()
    }

    /// Tells an overlay's context of it. The options are those under which the layers below may change between two mounts
    /// (Linux `Documentation/filesystems/overlayfs.rst`, "Changes to underlying filesystems"), and under which an upper
    /// directory is a layer like any other: every file whole, every directory at its own name.
    pub(crate) fn add_to(&self, context: &Context, by: LayersBy) -> Result<(), MountError> {
        for (key, dir) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if by == LayersBy::Descriptor {
                context.set_fd(key, dir.fd(), &dir.name())?;
            } else {
                let path = format!("/proc/self/fd/{}", dir.fd().as_raw_fd());
                context.set_string(key, &path).map_err(|error| error.about(dir.name()))?;
            }
        }
        for (key, value) in [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")] {
            context.set_string(key, value)?;
        }
        Ok(())
    }
}
