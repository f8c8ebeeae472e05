//! What output is written to: a FIFO, a file that both streams share, or the pipe of a logging program.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustix::io::{Errno, ioctl_fionread};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
};

use super::{IoError, fifo::OutputFifo, lock};

/// The end of one stream.
pub enum Sink {
    /// A FIFO of containerd's client.
    Fifo(OutputFifo),
    /// A log file, or another one, or a device, that was there.
    File(Arc<LogFile>),
    /// The pipe of a logging program.
    Pipe(Writer),
}

/// The writing end of a FIFO or a pipe, not blocking, until it is closed. The runtime watches it only while it is full.
pub struct Writer(Mutex<Option<Arc<OwnedFd>>>);

impl Writer {
    /// Open.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Mutex::new(Some(fd.into())))
    }

    /// # Errors
    /// When it has been closed.
    pub fn fd(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(lock(&self.0).clone().ok_or(io::ErrorKind::BrokenPipe)?)
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.fd()?;
        loop {
            match rustix::io::write(&*fd, bytes) {
                Ok(length) => return Ok(length),
                Err(Errno::AGAIN) => watch_once(&fd, Interest::WRITABLE).await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn close(&self) {
        lock(&self.0).take();
    }
}

/// A file that output is appended to.
pub struct LogFile {
    path: PathBuf,
    /// Locked over a whole chunk: two streams may share it.
    file: Mutex<File>,
    /// A failure has been logged.
    failed: AtomicBool,
}

impl Sink {
    /// Writes as much as it can of `bytes`, at least one byte.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Fifo(fifo) => fifo.writer.write(bytes).await,
            Self::Pipe(pipe) => pipe.write(bytes).await,
            Self::File(file) => {
                let (file, bytes) = (file.clone(), bytes.to_vec());
                let appending = move || {
                    file.append(&bytes);
                    bytes.len()
                };
                Ok(spawn_blocking(appending).await?)
            }
        }
    }

    /// Bytes that a client has still to read, where that can be known.
    pub fn unread(&self) -> u64 {
        match self {
            Self::Fifo(fifo) => {
                lock(&fifo.keeper).as_ref().map_or(0, |fifo| ioctl_fionread(fifo).unwrap_or(0))
            }
            Self::File(_) | Self::Pipe(_) => 0,
        }
    }

    /// Nothing will be written any more: the reader sees the end.
    pub fn close(&self) {
        match self {
            Self::Fifo(fifo) => {
                fifo.writer.close();
                lock(&fifo.keeper).take();
            }
            Self::Pipe(pipe) => pipe.close(),
            // A file has no end to be seen.
            Self::File(_) => {}
        }
    }

    /// From now on a FIFO breaks when its reader leaves.
    pub fn release(&self) {
        if let Self::Fifo(fifo) = self {
            lock(&fifo.keeper).take();
        }
    }
}

impl LogFile {
    /// Opens or makes it (mode 0644), with its directories (0755), as containerd's own shim does.
    pub async fn open(path: &Path) -> Result<Arc<Self>, IoError> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644);
        Self::open_by(path, options, true).await
    }

    /// Opens what is there.
    pub async fn of_path(path: &Path) -> Result<Arc<Self>, IoError> {
        let mut options = OpenOptions::new();
        options.append(true);
        Self::open_by(path, options, false).await
    }

    async fn open_by(path: &Path, options: OpenOptions, make: bool) -> Result<Arc<Self>, IoError> {
        let asked = path.to_owned();
        let open = move || {
            if let Some(directory) = asked.parent().filter(|_| make) {
                DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
            }
            let (file, failed) = (Mutex::new(options.open(&asked)?), AtomicBool::new(false));
            Ok(Arc::new(Self { path: asked, file, failed }))
        };
        let opened = spawn_blocking(open).await;
        opened.map_err(io::Error::from).flatten().map_err(|e| IoError::LogFile(path.to_owned(), e))
    }

    /// Appends, and blocks while the disk is slow. A full one must not stop a container: what cannot be written is
    /// lost, and that is logged.
    pub fn append(&self, bytes: &[u8]) {
        match lock(&self.file).write_all(bytes) {
            Ok(()) => self.failed.store(false, Relaxed),
            Err(error) if !self.failed.swap(true, Relaxed) => {
                log::error!("log file {}: output is lost: {error}", self.path.display());
            }
            Err(_) => {}
        }
    }
}

/// Waits until a descriptor is ready, or has ended. `with_interest` is deprecated for types that may name a descriptor that
/// they do not own; an `Arc` of an `OwnedFd` keeps it.
#[allow(deprecated)]
pub async fn watch_once(fd: &Arc<OwnedFd>, interest: Interest) -> io::Result<()> {
    let watched = AsyncFd::with_interest(fd.clone(), interest)?;
    watched.ready(interest).await?.retain_ready();
    Ok(())
}

/// Writes to a pipe or a terminal without blocking the thread.
pub async fn write(fd: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<usize> {
    fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn log_files_are_appended_to_and_their_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/log");
        for text in ["one\n", "two\n"] {
            let sink = Sink::File(LogFile::open(&path).await.unwrap());
            assert_eq!(sink.write(text.as_bytes()).await.unwrap(), 4);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn a_full_disk_loses_output_and_stops_nobody() {
        let sink = Sink::File(LogFile::open(Path::new("/dev/full")).await.unwrap());
        assert_eq!(sink.write(b"lost").await.unwrap(), 4);
    }
}
