//! The socket on which an OCI runtime hands over a terminal's master (`--console-socket`, runc's
//! `docs/terminals.md`).

use std::{
    fs, io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{io::Interest, net::UnixListener};

use super::IoError;
use crate::registration::RUN;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A listening socket, removed when dropped.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// # Errors
    /// [`IoError::ConsoleSocket`].
    pub fn bind() -> Result<Self, IoError> {
        // Not in the bundle: a socket's path has room for 107 bytes, and ids are long.
        let dir = directory();
        let path = dir.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
        let bind = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            // Of a shim that was killed, and had the same pid.
            let _ = fs::remove_file(&path);
            UnixListener::bind(&path)
        };
        let listener = bind().map_err(|e| IoError::ConsoleSocket(path.clone(), e))?;
        Ok(Self { listener, path })
    }

    /// What to give to the runtime.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the runtime.
    ///
    /// # Errors
    /// [`IoError::Terminal`].
    pub async fn receive(&self) -> Result<OwnedFd, IoError> {
        let receive = async {
            let (connection, _) = self.listener.accept().await?;
            connection.async_io(Interest::READABLE, || receive_fd(&connection)).await
        };
        receive.await.map_err(IoError::Terminal)
    }
}

/// Removes the sockets of shims that are gone: one that is killed while a terminal is handed over leaves its.
pub fn remove_dead_consoles() {
    for entry in fs::read_dir(directory()).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn directory() -> PathBuf {
    Path::new(RUN).join("pty")
}

fn receive_fd(socket: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // The data is the terminal's name, of no use here.
    let mut name = [0; 4096];
    let mut buffers = [io::IoSliceMut::new(&mut name)];
    recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the message has no descriptor"))
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
