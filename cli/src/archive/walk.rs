//! Reads a tree. Touches the file system, and only by descriptors that no symbolic link can lead astray.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::exclude::Exclude;
use super::{Error, join};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of Linux: no value and no list of names is longer.
const XATTR_MAX: usize = 65_536;

/// Most bytes of a file that is read for what it says about the tree.
pub const SMALL: u64 = 1 << 20;

/// Extended attributes: values by name.
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// One entry of the tree, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Relative to the root, without leading or trailing slash.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The extended attributes worth keeping.
    pub xattrs: Attributes,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File { stamp: Stamp, has_links: bool },
    Symlink { target: Vec<u8> },
    Fifo,
    Device { block: bool, major: u32, minor: u32 },
    Socket,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime: (i64, u64),
}

impl Stamp {
    /// The stamp in a stat.
    pub fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(), // the kernel reports none below zero
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// Opens the tree's root. A link given by name is followed: it is the caller's own.
pub fn open_root(dir: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::OpenRoot { path: dir.to_owned(), errno })
}

/// Opens `path` below `root` for reading. No link is followed anywhere on the way; a FIFO does not block.
pub fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Reads the file `name` of the root, of at most [`SMALL`] bytes; `None` if there is none. It may not be a link: a
/// tree from elsewhere could lead to a file that its author must not see quoted.
pub fn read_small(root: &OwnedFd, dir: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = || dir.join(name);
    let failed = |step, errno| Error::Read { step, path: path(), errno };
    let fd = match open_below(root.as_fd(), name.as_bytes()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Err(Error::Special { path: path() }),
        Err(errno) => return Err(failed("open", errno)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("read", errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::Special { path: path() });
    }
    let mut content = Vec::new();
    let read = File::from(fd).take(SMALL + 1).read_to_end(&mut content);
    read.map_err(|e| failed("read", Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    if content.len() as u64 > SMALL {
        return Err(Error::TooLarge { path: path(), limit: SMALL });
    }
    Ok(Some(content))
}

/// Where below `dir` the file lies, by the names that lead to it; `None` if it lies elsewhere.
pub fn path_below(dir: &Path, file: &Path) -> Option<Vec<u8>> {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = parent.canonicalize().ok()?.join(file.file_name()?);
    let below = place.strip_prefix(dir.canonicalize().ok()?).ok()?;
    Some(below.as_os_str().as_bytes().to_vec())
}

/// Reads the whole tree but what is excluded, in whatever order the file system gives it.
pub fn read_tree(root: &OwnedFd, dir: &Path, exclude: &Exclude) -> Result<Vec<Found>, Error> {
    let mut reader =
        Reader { root: root.as_fd(), dir, exclude, found: Vec::new(), buffer: vec![0; XATTR_MAX] };
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        reader.read_directory(&path, &mut pending)?;
    }
    Ok(reader.found)
}

struct Reader<'a> {
    root: BorrowedFd<'a>,
    dir: &'a Path,
    exclude: &'a Exclude,
    found: Vec<Found>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn failed(&self, step: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
        let path = join(self.dir, path);
        move |errno| Error::Read { step, path, errno }
    }

    /// Adds the directory's entries, and its directories to `pending` (so that depth costs no descriptors).
    fn read_directory(&mut self, path: &[u8], pending: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let fd = open_below(self.root, path).map_err(self.failed("open", path))?;
        let entries = Dir::read_from(&fd).map_err(self.failed("read", path))?;
        for entry in entries {
            let entry = entry.map_err(self.failed("read", path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = child(path, name.to_bytes());
            if self.is_excluded(&fd, name, &path, entry.file_type())? {
                continue;
            }
            let found = self.read_entry(&fd, name, path)?;
            if found.kind == Kind::Directory {
                pending.push(found.path.clone());
            }
            self.found.push(found);
        }
        Ok(())
    }

    /// Asks the file itself for its type only where the directory does not tell it: an excluded one may be out of
    /// reach, as another user's FUSE mount is.
    fn is_excluded(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        path: &[u8],
        listed: FileType,
    ) -> Result<bool, Error> {
        let kind = match listed {
            FileType::Unknown => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(self.failed("read", path))?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        Ok(self.exclude.excludes(path, kind == FileType::Directory))
    }

    fn read_entry(&mut self, parent: &OwnedFd, name: &CStr, path: Vec<u8>) -> Result<Found, Error> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("read", &path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => self.read_open(parent, name, path, &stat),
            _ => {
                let kind = self.read_kind(parent, name, &path, &stat)?;
                Ok(found(path, kind, &stat, Attributes::new()))
            }
        }
    }

    /// Files and directories are described by a descriptor of their own, the only way to their attributes that
    /// a link swapped in meanwhile cannot redirect.
    fn read_open(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        path: Vec<u8>,
        seen: &Stat,
    ) -> Result<Found, Error> {
        let fd = open_below(parent.as_fd(), name.to_bytes()).map_err(self.failed("open", &path))?;
        let stat = rustix::fs::fstat(&fd).map_err(self.failed("read", &path))?;
        if (seen.st_dev, seen.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(Error::Changed { path: join(self.dir, &path), what: "it was replaced".to_owned() });
        }
        let xattrs = self.read_xattrs(&fd, &path)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            _ => Kind::File { stamp: Stamp::of(&stat), has_links: stat.st_nlink > 1 },
        };
        Ok(found(path, kind, &stat, xattrs))
    }

    fn read_kind(&self, parent: &OwnedFd, name: &CStr, path: &[u8], stat: &Stat) -> Result<Kind, Error> {
        let device = |block| Kind::Device {
            block,
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())
                    .map_err(self.failed("read the link", path))?;
                Kind::Symlink { target: target.into_bytes() }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::BlockDevice => device(true),
            FileType::CharacterDevice => device(false),
            _ => Kind::Socket,
        })
    }

    fn read_xattrs(&mut self, fd: &OwnedFd, path: &[u8]) -> Result<Attributes, Error> {
        let length = match rustix::fs::flistxattr(fd, &mut self.buffer[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(Attributes::new()),
            Err(errno) => return Err(self.failed("list the attributes of", path)(errno)),
        };
        let names: Vec<Vec<u8>> =
            self.buffer[..length].split(|b| *b == 0).filter(|n| is_kept(n)).map(<[u8]>::to_vec).collect();
        let mut xattrs = Attributes::new();
        for name in names {
            let length = rustix::fs::fgetxattr(fd, name.as_slice(), &mut self.buffer[..])
                .map_err(self.failed("read an attribute of", path))?;
            xattrs.insert(name, self.buffer[..length].to_vec());
        }
        Ok(xattrs)
    }
}

/// File capabilities and what users store; labels and ACLs belong to the node and not to the tree.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

fn child(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn found(path: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Attributes) -> Found {
    Found { path, kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, xattrs }
}
