//! Reading layers: the only part of this room that touches the disk, and only below the directories it was given.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{CStr, OsStr},
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    entry::{Attributes, Entry, Kind},
    merge::{Found, Listing},
};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of Linux: no value and no list of names is longer.
const XATTR_MAX: usize = 65_536;
/// How much of a file is read at once.
const PIECE: usize = 64 << 10;

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The kernel refused.
    #[error("cannot {step} {}", path.display())]
    Read {
        /// What was to be done.
        step: &'static str,
        /// To what, on the node.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody waits for what is read any more.
    #[error("reading was given up")]
    GivenUp,
    /// A layer that another overlay has left, with what only that one can follow.
    #[error(
        "cannot tell what {} shows: it has the attribute {attribute}, which no image's layer has",
        path.display()
    )]
    Attribute {
        /// The file, on the node.
        path: PathBuf,
        /// Which.
        attribute: String,
    },
}

/// Layers of any number of trees, open.
pub struct Layers {
    /// `trusted.overlay.` or `user.overlay.`: whose marks count.
    prefix: &'static [u8],
    open: Vec<(PathBuf, OwnedFd)>,
    buffer: RefCell<Vec<u8>>,
    given_up: Box<dyn Fn() -> bool + Send>,
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Layers").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Layers {
    /// None yet. `userxattr`: the overlays of this node are mounted with the option of that name.
    pub fn new(userxattr: bool) -> Self {
        let prefix: &[u8] = if userxattr { b"user.overlay." } else { b"trusted.overlay." };
        let buffer = RefCell::new(vec![0; XATTR_MAX]);
        Self { prefix, open: Vec::new(), buffer, given_up: Box::new(|| false) }
    }

    /// Reading ends with [`TreeError::GivenUp`] as soon as `given_up` says so.
    pub fn until(self, given_up: impl Fn() -> bool + Send + 'static) -> Self {
        Self { given_up: Box::new(given_up), ..self }
    }

    /// # Errors
    /// [`TreeError::GivenUp`].
    pub(super) fn go_on(&self) -> Result<(), TreeError> {
        if (self.given_up)() { Err(TreeError::GivenUp) } else { Ok(()) }
    }

    /// Opens a layer, unless it is open, and gives its number.
    ///
    /// # Errors
    /// [`TreeError::Read`].
    pub fn add(&mut self, path: &Path) -> Result<usize, TreeError> {
        if let Some(number) = self.open.iter().position(|(known, _)| known == path) {
            return Ok(number);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty());
        let fd = fd.map_err(|errno| TreeError::Read {
            step: "open the layer",
            path: path.to_owned(),
            source: errno.into(),
        })?;
        Ok(self.add_open(path.to_owned(), fd))
    }

    /// Takes a directory that is open already as a layer, and gives its number. `path`: as messages name it.
    pub fn add_open(&mut self, path: PathBuf, fd: OwnedFd) -> usize {
        self.open.push((path, fd));
        self.open.len() - 1
    }

    fn failed(
        &self,
        step: &'static str,
        layer: usize,
        path: &[u8],
    ) -> impl FnOnce(Errno) -> TreeError + use<> {
        let path = self.open[layer].0.join(OsStr::from_bytes(path));
        move |errno| TreeError::Read { step, path, source: errno.into() }
    }

    /// Opens what a layer has at a path. No link is followed anywhere on the way; a FIFO does not block.
    fn open_below(&self, layer: usize, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        // A container that still writes to the layer may put a device in the place of a file that was listed: what is not a
        // file or a directory is never opened, as opening a device is an act of its own.
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(&self.open[layer].1, path, flags, Mode::empty(), resolve)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::NOENT);
        }
        let same = format!("/proc/self/fd/{}", found.as_raw_fd());
        openat(CWD, same, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
    }

    /// Opens what a layer has at a path, for reading.
    ///
    /// # Errors
    /// [`TreeError::Read`].
    pub(super) fn open(&self, layer: usize, path: &[u8]) -> Result<OwnedFd, TreeError> {
        self.open_below(layer, path).map_err(self.failed("open", layer, path))
    }

    /// The root of a layer.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(super) fn read_root(&self, layer: usize) -> Result<Entry, TreeError> {
        let fd = self.open_below(layer, b"").map_err(self.failed("open", layer, b""))?;
        let stat = rustix::fs::fstat(&fd).map_err(self.failed("read", layer, b""))?;
        let mut marks = Marks::default();
        let xattrs = self.read_xattrs(layer, b"", &fd, &mut marks)?;
        Ok(entry(Vec::new(), Kind::Directory, &stat, xattrs))
    }

    /// What a layer has in the directory at `path`.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(super) fn read_directory(&self, layer: usize, path: &[u8]) -> Result<Listing, TreeError> {
        let directory = self.open_below(layer, path).map_err(self.failed("open", layer, path))?;
        let mut listing = BTreeMap::new();
        for one in Dir::read_from(&directory).map_err(self.failed("read", layer, path))? {
            let one = one.map_err(self.failed("read", layer, path))?;
            let name = one.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let found = self.read_found(layer, &directory, name, child(path, name.to_bytes()))?;
                listing.insert(name.to_bytes().to_vec(), found);
            }
        }
        Ok(listing)
    }

    fn read_found(
        &self,
        layer: usize,
        parent: &OwnedFd,
        name: &CStr,
        path: Vec<u8>,
    ) -> Result<Found, TreeError> {
        let failed = |step| self.failed(step, layer, &path);
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // An overlay lists the whiteouts of a directory that merges with nothing, and has nothing there (Linux 6.18).
            Err(Errno::NOENT) => return Ok(Found::Whiteout),
            stat => stat.map_err(failed("read"))?,
        };
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if (major, minor) == (0, 0) => return Ok(Found::Whiteout),
            FileType::CharacterDevice => Kind::Device { block: false, major, minor },
            FileType::BlockDevice => Kind::Device { block: true, major, minor },
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File { size: u64::try_from(stat.st_size).unwrap_or_default() },
            FileType::Fifo => Kind::Fifo,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new());
                Kind::Symlink { target: target.map_err(failed("read the link"))?.into_bytes() }
            }
            _ => Kind::Socket,
        };
        if !matches!(kind, Kind::Directory | Kind::File { .. }) {
            return Ok(Found::Entry { entry: entry(path, kind, &stat, Attributes::new()), opaque: false });
        }
        let fd = self.open_below(layer, &path).map_err(failed("open"))?;
        let mut marks = Marks::default();
        let xattrs = self.read_xattrs(layer, &path, &fd, &mut marks)?;
        if marks.whiteout && kind == (Kind::File { size: 0 }) {
            return Ok(Found::Whiteout);
        }
        Ok(Found::Entry { entry: entry(path, kind, &stat, xattrs), opaque: marks.opaque })
    }

    fn read_xattrs(
        &self,
        layer: usize,
        path: &[u8],
        fd: &OwnedFd,
        marks: &mut Marks,
    ) -> Result<Attributes, TreeError> {
        let mut buffer = self.buffer.borrow_mut();
        let length = match rustix::fs::flistxattr(fd, &mut buffer[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(Attributes::new()),
            Err(errno) => return Err(self.failed("list the attributes of", layer, path)(errno)),
        };
        let names: Vec<Vec<u8>> =
            buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        let mut xattrs = Attributes::new();
        for name in names {
            if name == b"security.selinux" {
                continue; // the node's, and not the tree's
            }
            let length = rustix::fs::fgetxattr(fd, name.as_slice(), &mut buffer[..]).map_err(self.failed(
                "read an attribute of",
                layer,
                path,
            ))?;
            let value = &buffer[..length];
            match name.strip_prefix(self.prefix) {
                None => {
                    xattrs.insert(name, value.to_vec());
                }
                Some(b"opaque") => marks.opaque = value == b"y",
                Some(b"whiteout") => marks.whiteout = true,
                Some(b"redirect" | b"metacopy") => {
                    let path = self.open[layer].0.join(OsStr::from_bytes(path));
                    let attribute = String::from_utf8_lossy(&name).into_owned();
                    return Err(TreeError::Attribute { path, attribute });
                }
                Some(_) => {} // bookkeeping of an overlay that has written here: changes nothing that is seen
            }
        }
        Ok(xattrs)
    }

    /// SHA-256 of the content of a layer's file.
    ///
    /// # Errors
    /// [`TreeError::Read`].
    pub(super) fn hash(&self, layer: usize, path: &[u8]) -> Result<[u8; 32], TreeError> {
        let fd = self.open_below(layer, path).map_err(self.failed("open", layer, path))?;
        let sum = hash(fd, || !(self.given_up)()).map_err(self.failed("read", layer, path))?;
        sum.ok_or(TreeError::GivenUp)
    }
}

/// SHA-256 of a file, from its beginning; `None` if `go_on` said no before all was read.
pub(crate) fn hash(fd: impl AsFd, go_on: impl Fn() -> bool) -> Result<Option<[u8; 32]>, Errno> {
    let (mut sum, mut piece, mut offset) = (Sha256::new(), vec![0; PIECE], 0);
    while go_on() {
        match rustix::io::pread(&fd, &mut piece[..], offset) {
            Ok(0) => return Ok(Some(sum.finalize().into())),
            Ok(length) => {
                sum.update(&piece[..length]);
                offset += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// What overlayfs's own attributes say.
#[derive(Default)]
struct Marks {
    opaque: bool,
    whiteout: bool,
}

pub(super) fn child(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn entry(path: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Attributes) -> Entry {
    let nanoseconds = |number| u32::try_from(number).unwrap_or_default();
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
        ctime: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
        xattrs,
        inode: (stat.st_dev, stat.st_ino),
        sha256: None,
    }
}
