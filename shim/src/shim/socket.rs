//! The socket of a group's server: `start` makes it and hands it down, so that containerd can connect before the server
//! is up, and two containers of a group that start at once cannot get two servers.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::FlockOperation,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Where containerd's shims have their sockets when it does not say.
pub const DIRECTORY: &str = "/run/containerd/s";
/// What a path stands behind in containerd's files and answers.
const SCHEME: &str = "unix://";

/// A socket that cannot be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Its directory.
    #[error("cannot create {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// The lock of those who replace a dead one.
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// One that nobody serves any more.
    #[error("cannot remove the dead socket {}", .0.display())]
    Remove(PathBuf, #[source] io::Error),
    /// Binding.
    #[error("cannot listen on {}", .0.display())]
    Bind(PathBuf, #[source] io::Error),
    /// Its mode.
    #[error("cannot protect {}", .0.display())]
    Protect(PathBuf, #[source] io::Error),
}

/// Where the server of `group` listens. Other shims name theirs by the same three words, and a group may have containers
/// of several runtimes: a fourth keeps the sockets apart.
pub fn path(directory: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{containerd}/{namespace}/{group}/capsule"));
    directory.join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// As containerd writes it.
pub fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path of an address; also of one without a scheme.
pub fn parse_address(address: &str) -> &Path {
    let address = address.trim();
    Path::new(address.strip_prefix(SCHEME).unwrap_or(address))
}

/// Listens on `path`, or returns nothing when somebody does. A socket that nobody serves any more is replaced.
///
/// # Errors
/// [`SocketError`], by step.
pub fn acquire(path: &Path) -> Result<Option<UnixListener>, SocketError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| SocketError::Directory(directory.to_owned(), e))?;
    // One at a time: a socket that is bound and does not listen yet looks like a dead one.
    let lock_error = |e| SocketError::Lock(directory.to_owned(), e);
    let lock = File::open(directory).map_err(lock_error)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| lock_error(e.into()))?;
    if is_served(path) {
        return Ok(None);
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(SocketError::Remove(path.to_owned(), e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| SocketError::Bind(path.to_owned(), e))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| {
        let _ = fs::remove_file(path);
        SocketError::Protect(path.to_owned(), e)
    })?;
    Ok(Some(listener))
}

/// Whether somebody listens on `path`. Does not wait, and so holds up nobody who waits for the lock: a server that is
/// stopped, and whose queue is full (connect(2), EAGAIN), is one.
fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let connect = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    matches!(connect(), Ok(()) | Err(Errno::AGAIN))
}

/// The file of a socket that this process serves.
pub struct Bound {
    path: PathBuf,
    /// Device and inode: at the end another server may have its own there.
    file: Option<(u64, u64)>,
}

impl Bound {
    /// The file that is at `path` now.
    pub fn new(path: PathBuf) -> Self {
        let file = identity(&path);
        Self { path, file }
    }

    /// Takes the file away, unless it is another's.
    pub fn remove(&self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_per_containerd_namespace_and_group() {
        let one = path(Path::new(DIRECTORY), "/a.sock", "default", "c1");
        assert_eq!(one.parent(), Some(Path::new(DIRECTORY)));
        assert_eq!(parse_address(&format!("{}\n", address(&one))), one);
        for (containerd, namespace, group) in
            [("/b.sock", "default", "c1"), ("/a.sock", "k8s.io", "c1"), ("/a.sock", "default", "c2")]
        {
            assert_ne!(path(Path::new(DIRECTORY), containerd, namespace, group), one);
        }
    }

    #[test]
    fn a_served_socket_is_found_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let listener = acquire(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(acquire(&path).unwrap().is_none());
        // A full queue, of a server that accepts nobody, is a server too, and nobody waits for it. The connection above is
        // still in it: that is one more than none.
        rustix::net::listen(&listener, 0).unwrap();
        assert!(acquire(&path).unwrap().is_none());
        drop(listener);
        assert!(acquire(&path).unwrap().is_some());
    }

    #[test]
    fn only_the_own_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = acquire(&path).unwrap().unwrap();
        let bound = Bound::new(path.clone());
        drop(first);
        // Held, so that the second cannot have the first one's inode number.
        let kept = dir.path().join("kept");
        fs::hard_link(&path, &kept).unwrap();
        let _second = acquire(&path).unwrap().unwrap();
        bound.remove();
        assert!(path.exists());
        Bound::new(path.clone()).remove();
        assert!(!path.exists());
    }

    /// As when several containers of a group start over a socket that a killed shim left.
    #[test]
    fn of_many_who_find_a_dead_socket_one_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for _ in 0..50 {
            drop(acquire(&path).unwrap());
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || acquire(&path).unwrap())
                })
                .collect();
            let listeners: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
            assert_eq!(listeners.len(), 1);
            fs::remove_file(&path).unwrap();
        }
    }
}
