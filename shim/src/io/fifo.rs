//! Opening the FIFOs that containerd's client made, without ever blocking the thread.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use tokio::io::unix::AsyncFd;

use super::{IoError, asynchronous, sink::Writer};

/// How long the client may take to open its end. It does so before it asks for the task to be made.
const READER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

/// A FIFO to write to.
pub struct OutputFifo {
    /// The writing end.
    pub writer: Writer,
    /// A reading end of our own: while it is open, a client that leaves does not break the pipe, and another can
    /// attach.
    pub keeper: Mutex<Option<OwnedFd>>,
}

impl OutputFifo {
    /// Waits for a reader: without one the data of a short process would be gone before the client opens its end.
    pub async fn open(path: &Path) -> Result<Self, IoError> {
        let deadline = Instant::now() + READER;
        let writer = loop {
            // Never opened but to be kept: a reader that came to a writing end which is closed again would see the end.
            match open(path, OFlags::WRONLY) {
                Ok(writer) => break writer,
                Err(error) if !nobody_reads(&error) => return Err(error),
                Err(_) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Err(_) => return Err(IoError::NoReader(path.to_owned())),
            }
        };
        let keeper = Mutex::new(Some(open(path, OFlags::RDONLY)?));
        Ok(Self { writer: Writer::new(writer), keeper })
    }
}

/// Whether a FIFO is there and could not be opened for want of a reader.
fn nobody_reads(error: &IoError) -> bool {
    matches!(error, IoError::Fifo(_, e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()))
}

/// A FIFO to read from: its reading end, and a writing end that keeps it from ending when a client leaves.
pub struct InputFifo {
    /// The reading end.
    pub reader: Arc<AsyncFd<OwnedFd>>,
    /// See [`InputFifo`].
    pub keeper: OwnedFd,
}

pub fn open_input(path: &Path) -> Result<InputFifo, IoError> {
    let reader = asynchronous(open(path, OFlags::RDONLY)?)?;
    // Our own reader is there: this does not fail for want of one.
    let keeper = open(path, OFlags::WRONLY)?;
    Ok(InputFifo { reader, keeper })
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd, IoError> {
    let failed = |e: Errno| IoError::Fifo(path.to_owned(), io::Error::from(e));
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(failed)?.st_mode);
    if kind == FileType::Fifo { Ok(fd) } else { Err(IoError::NotFifo(path.to_owned())) }
}
