//! A thread of its own in another mount namespace, or with another working directory.
//!
//! `setns(CLONE_NEWNS)` is refused for a thread that shares its root and working directory with others, and a
//! thread that has left its namespace must never go back to a pool: so every closure gets a thread that ends with it.

use std::{os::fd::BorrowedFd, path::Path, thread};

use rustix::{io::Errno, thread::ThreadNameSpaceType};
use thiserror::Error;

use crate::sys;

/// Why nothing ran in the namespace, or why its result is lost.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// No thread could be started.
    #[error("cannot start a thread of its own")]
    Spawn(#[source] std::io::Error),
    /// `unshare` failed.
    #[error("cannot give the thread a root and working directory of its own (unshare)")]
    Unshare(#[source] Errno),
    /// `setns` failed; `ESRCH` when the process of a pidfd has ended.
    #[error("cannot enter the mount namespace (setns)")]
    Enter(#[source] Errno),
    /// `chdir` failed.
    #[error("cannot make the directory the thread's working directory (chdir)")]
    Directory(#[source] Errno),
    /// The closure panicked. With `panic = "abort"` the process ends instead.
    #[error("the thread of its own panicked")]
    Panicked,
}

/// Runs `work` on a new thread in the mount namespace of `namespace`: a `/proc/PID/ns/mnt` descriptor, or a pidfd
/// (Linux 5.8), which cannot mean a recycled PID.
///
/// The thread's root and working directory are the root of that mount namespace, which need not be the root of the
/// container. The caller's thread stays where it is.
///
/// # Errors
/// [`NamespaceError`]; then `work` did not run, but for [`NamespaceError::Panicked`].
pub fn in_mount_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NamespaceError> {
    on_own_thread(
        || {
            sys::unshare_fs().map_err(NamespaceError::Unshare)?;
            rustix::thread::move_into_thread_name_spaces(namespace, ThreadNameSpaceType::MOUNT)
                .map_err(NamespaceError::Enter)
        },
        work,
    )
}

/// Runs `work` on a new thread in a new mount namespace, a copy of the caller's. Mounts still propagate between the
/// two where they are shared: make them private first.
///
/// # Errors
/// [`NamespaceError`]; then `work` did not run, but for [`NamespaceError::Panicked`].
pub fn in_new_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    on_own_thread(|| sys::unshare_mounts().map_err(NamespaceError::Unshare), work)
}

/// Runs `work` on a new thread with `directory` as its working directory, in the caller's mount namespace: for paths that
/// the kernel looks up relative to it. No other thread's working directory changes.
///
/// # Errors
/// [`NamespaceError`]; then `work` did not run, but for [`NamespaceError::Panicked`].
pub fn in_directory<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    on_own_thread(
        || {
            sys::unshare_fs().map_err(NamespaceError::Unshare)?;
            rustix::process::chdir(directory).map_err(NamespaceError::Directory)
        },
        work,
    )
}

fn on_own_thread<T: Send>(
    enter: impl FnOnce() -> Result<(), NamespaceError> + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("mount".to_owned())
            .spawn_scoped(scope, || enter().map(|()| work()))
            .map_err(NamespaceError::Spawn)?
            .join()
            .unwrap_or(Err(NamespaceError::Panicked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_is_the_threads_own() {
        let before = std::env::current_dir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let inside = in_directory(directory.path(), || std::env::current_dir().unwrap()).unwrap();
        assert_eq!(inside, directory.path().canonicalize().unwrap());
        assert_eq!(std::env::current_dir().unwrap(), before);
        let missing = in_directory(&directory.path().join("missing"), || ());
        assert!(matches!(missing, Err(NamespaceError::Directory(Errno::NOENT))), "{missing:?}");
    }
}
