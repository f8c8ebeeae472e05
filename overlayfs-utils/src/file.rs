//! Files in a container that are no directories: device nodes, and files to mount on. Made by descriptor, never over anything.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, makedev},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    path::ContainerPath,
    point::{is_mount_root, statx_mount},
    target::{ContainerRoot, ResolveError, Resolved, identity},
};

/// A device node or FIFO to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    /// A block device, a character device or a FIFO.
    pub kind: FileType,
    /// 0 for a FIFO.
    pub major: u32,
    /// 0 for a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

/// A file that was made in a container, by path and identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedFile {
    /// Where, without links.
    pub path: ContainerPath,
    /// Its device and inode.
    pub identity: (u32, u32, u64),
}

/// What a path leads to, its last component not followed.
#[derive(Debug)]
pub enum FileThere {
    /// Nothing.
    Missing,
    /// A file of any kind but a link, and whether it is a directory; opened with `O_PATH`.
    Present {
        /// The file.
        fd: OwnedFd,
        /// It is a directory.
        directory: bool,
        /// Something is mounted there.
        mounted: bool,
    },
    /// A link.
    Link,
}

impl ContainerRoot {
    /// Makes a node in a directory that is there, with exactly this mode and owner.
    ///
    /// # Errors
    /// [`ResolveError`]; [`ResolveError::Exists`] when anything is at the path. Then nothing is made.
    pub fn make_node(&self, path: &ContainerPath, spec: &NodeSpec) -> Result<CreatedFile, ResolveError> {
        let (parent, name) = self.parent(path)?;
        let number = makedev(spec.major, spec.minor);
        make(&parent, name, path, spec.kind, number)?;
        let done = finish_node(&parent, name, path, spec);
        if done.is_err() {
            let _ = rustix::fs::unlinkat(parent.fd(), name, AtFlags::empty());
        }
        done
    }

    /// Makes an empty file that nobody can read, in a directory that is there.
    ///
    /// # Errors
    /// As [`ContainerRoot::make_node`].
    pub fn make_file(&self, path: &ContainerPath) -> Result<CreatedFile, ResolveError> {
        let (parent, name) = self.parent(path)?;
        make(&parent, name, path, FileType::RegularFile, 0)?;
        let stat = statx_mount(parent.fd(), Path::new(name), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| failed("stat", path, source))?;
        Ok(CreatedFile { path: path.clone(), identity: identity(&stat) })
    }

    /// What is at `path`, whose parent has no links.
    ///
    /// # Errors
    /// [`ResolveError`], of its parent.
    pub fn file_at(&self, path: &ContainerPath) -> Result<FileThere, ResolveError> {
        let (parent, name) = match self.parent(path) {
            Err(ResolveError::Missing(_)) => return Ok(FileThere::Missing),
            other => other?,
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(parent.fd(), name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(FileThere::Missing),
            Err(source) => return Err(failed("open", path, source)),
        };
        let stat = stat(&fd, path)?;
        Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Symlink => FileThere::Link,
            kind => FileThere::Present {
                fd,
                directory: kind == FileType::Directory,
                mounted: is_mount_root(&stat),
            },
        })
    }

    /// Whether a file that was made is there, and the same.
    #[must_use]
    pub fn has_file(&self, made: &CreatedFile) -> bool {
        self.parent(&made.path).is_ok_and(|(parent, name)| is_same(&parent, name, made))
    }

    /// Removes a file that was made, if it is still there and the same, and nothing is mounted on it.
    pub fn remove_file(&self, made: &CreatedFile) -> bool {
        let Ok((parent, name)) = self.parent(&made.path) else { return false };
        is_same(&parent, name, made) && rustix::fs::unlinkat(parent.fd(), name, AtFlags::empty()).is_ok()
    }

    fn parent<'a>(&self, path: &'a ContainerPath) -> Result<(Resolved, &'a str), ResolveError> {
        let (parent, name) = path.split().ok_or_else(|| ResolveError::Exists(path.clone()))?;
        Ok((self.resolve_plain(&parent)?, name))
    }
}

fn make(
    parent: &Resolved,
    name: &str,
    path: &ContainerPath,
    kind: FileType,
    number: u64,
) -> Result<(), ResolveError> {
    // A node is opened to others once it has its owner.
    let mode = if kind == FileType::RegularFile { Mode::empty() } else { Mode::from_raw_mode(0o600) };
    match rustix::fs::mknodat(parent.fd(), name, kind, mode, number) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(ResolveError::Exists(path.clone())),
        Err(Errno::ROFS) => Err(ResolveError::ReadOnly(path.clone())),
        Err(source) => Err(failed("make", path, source)),
    }
}

/// Gives a node its owner and mode: through a descriptor, of which it is sure that it is the node.
fn finish_node(
    parent: &Resolved,
    name: &str,
    path: &ContainerPath,
    spec: &NodeSpec,
) -> Result<CreatedFile, ResolveError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent.fd(), name, flags, Mode::empty())
        .map_err(|source| failed("open", path, source))?;
    let stat = stat(&fd, path)?;
    let number = (stat.stx_rdev_major, stat.stx_rdev_minor);
    let is_it = FileType::from_raw_mode(stat.stx_mode.into()) == spec.kind
        && (spec.kind == FileType::Fifo || number == (spec.major, spec.minor));
    // The container has put something else there.
    if !is_it {
        return Err(ResolveError::Unstable(path.clone()));
    }
    let (user, group) = (Uid::from_raw(spec.owner.0), Gid::from_raw(spec.owner.1));
    rustix::fs::chownat(&fd, "", Some(user), Some(group), AtFlags::EMPTY_PATH)
        .map_err(|source| failed("give its owner to", path, source))?;
    // fchmod takes no O_PATH; the magic link of the descriptor is this very file, which is not opened.
    let link = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    rustix::fs::chmodat(CWD, link, Mode::from_raw_mode(spec.mode), AtFlags::empty())
        .map_err(|source| failed("give its mode to", path, source))?;
    Ok(CreatedFile { path: path.clone(), identity: identity(&stat) })
}

fn is_same(parent: &Resolved, name: &str, made: &CreatedFile) -> bool {
    statx_mount(parent.fd(), Path::new(name), AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| identity(&stat) == made.identity && !is_mount_root(&stat))
}

fn stat(fd: &OwnedFd, path: &ContainerPath) -> Result<rustix::fs::Statx, ResolveError> {
    use std::os::fd::AsFd;
    statx_mount(fd.as_fd(), Path::new(""), AtFlags::EMPTY_PATH).map_err(|source| failed("stat", path, source))
}

fn failed(step: &'static str, path: &ContainerPath, source: Errno) -> ResolveError {
    ResolveError::Kernel { step, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn path(path: &str) -> ContainerPath {
        ContainerPath::parse(path).unwrap()
    }

    #[test]
    fn privileged_a_node_has_its_mode_and_owner_and_takes_no_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = ContainerRoot::open(dir.path()).unwrap();
        let spec = NodeSpec {
            kind: FileType::CharacterDevice,
            major: 10,
            minor: 229,
            mode: 0o642,
            owner: (1234, 5678),
        };
        let made = root.make_node(&path("/node"), &spec).expect("nodes need root: run the tests as root");
        let found = dir.path().join("node").symlink_metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o642, 1234, 5678));
        assert_eq!(found.rdev(), makedev(10, 229));
        let again = root.make_node(&path("/node"), &spec).unwrap_err();
        assert!(matches!(&again, ResolveError::Exists(at) if at.as_str() == "/node"), "{again}");
        assert!(again.to_string().contains("/node"), "{again}");
        symlink("/etc", dir.path().join("out")).unwrap();
        assert!(matches!(root.make_node(&path("/out"), &spec), Err(ResolveError::Exists(_))));
        // No link is followed on the way.
        assert!(matches!(
            root.make_node(&path("/out/node"), &spec),
            Err(ResolveError::Link(_) | ResolveError::NotADirectory(_))
        ));
        assert!(matches!(root.file_at(&path("/out")).unwrap(), FileThere::Link));
        assert!(root.has_file(&made));
        assert!(root.remove_file(&made) && !root.remove_file(&made) && !dir.path().join("node").exists());
    }

    #[test]
    fn what_was_put_in_the_place_of_a_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = ContainerRoot::open(dir.path()).unwrap();
        let made = root.make_file(&path("/file")).unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join("file")).unwrap();
        assert!(!root.has_file(&made) && !root.remove_file(&made));
        assert!(dir.path().join("file").exists());
        assert!(matches!(root.file_at(&path("/none/file")).unwrap(), FileThere::Missing));
    }
}
