//! Standard streams of container processes: between the FIFOs that containerd's client opens and the pipes or the
//! terminal that the process has.
//!
//! Rooms: `fifo` opens FIFOs, `copy` moves bytes, `console` receives a terminal from the runtime; here is what a
//! process' streams are as a whole. Data is copied, not spliced: spliced pages stay the container's, which could then
//! change them, or make a host's reader wait for them.

mod console;
mod copy;
mod fifo;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

pub use console::ConsoleSocket;
pub use copy::Copies;
use copy::{Input, Output, Source};
use fifo::OutputFifo;
use rustix::{
    fs::{Gid, Uid},
    termios::Winsize,
};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

use crate::oci::Streams;

/// Where a process' streams go, as containerd asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// A FIFO, or nothing; the same for the others.
    pub stdin: Option<PathBuf>,
    /// Standard output, or a terminal's output.
    pub stdout: Option<PathBuf>,
    /// Standard error; unused with a terminal.
    pub stderr: Option<PathBuf>,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// Streams that could not be set up.
#[derive(Debug, Error)]
pub enum IoError {
    /// A log URI.
    #[error("standard stream {0:?} is not supported: use the absolute path of a FIFO")]
    Uri(String),
    /// A FIFO that cannot be opened.
    #[error("cannot open the FIFO {}", .0.display())]
    Fifo(PathBuf, #[source] io::Error),
    /// Something else than a FIFO.
    #[error("{} is not a FIFO", .0.display())]
    NotFifo(PathBuf),
    /// Nobody reads.
    #[error("nobody opened the FIFO {} for reading", .0.display())]
    NoReader(PathBuf),
    /// The pipes to the process.
    #[error("cannot make the process' pipes")]
    Pipe(#[source] io::Error),
    /// The socket on which the runtime hands over a terminal.
    #[error("cannot listen for the terminal on {}", .0.display())]
    ConsoleSocket(PathBuf, #[source] io::Error),
    /// The terminal itself.
    #[error("the OCI runtime handed over no terminal")]
    Terminal(#[source] io::Error),
    /// Its size.
    #[error("cannot resize the terminal")]
    Resize(#[source] io::Error),
}

impl Stdio {
    /// # Errors
    /// [`IoError::Uri`] for anything but an absolute path or nothing.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, IoError> {
        let path = |text: &str| match text {
            "" => Ok(None),
            text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
            text => Err(IoError::Uri(text.to_owned())),
        };
        Ok(Self { stdin: path(stdin)?, stdout: path(stdout)?, stderr: path(stderr)?, terminal })
    }
}

/// What has become of a process' input.
enum Stdin {
    /// It has none, or none any more.
    None,
    /// Its FIFO is not open yet.
    Waiting { path: PathBuf, sink: Arc<AsyncFd<OwnedFd>> },
    /// It is being copied.
    Open(Input),
}

/// The shim's side of a process' streams. Copying goes on until the process' side is closed, also after this is
/// dropped.
pub struct ProcessIo {
    input: Mutex<Stdin>,
    outputs: Vec<Arc<Output>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl ProcessIo {
    /// Pipes, with the ends that the process is to have. They belong to `owner`, so that a process of that user can
    /// open `/dev/stdout` anew.
    ///
    /// # Errors
    /// [`IoError`]; waits for the readers of the FIFOs, within bounds.
    pub async fn pipes(
        stdio: &Stdio,
        owner: (u32, u32),
        copies: &Copies,
    ) -> Result<(Streams, Self), IoError> {
        let mut streams = Streams::default();
        let mut this = Self { input: Mutex::new(Stdin::None), outputs: Vec::new(), terminal: None };
        let ends = [(&stdio.stdout, &mut streams.stdout), (&stdio.stderr, &mut streams.stderr)];
        for (path, end) in ends {
            let Some(path) = path else { continue };
            let fifo = OutputFifo::open(path).await?;
            let (reader, writer) = pipe(owner)?;
            *end = Some(writer);
            this.outputs.push(Output::start(Source::Pipe(asynchronous(reader)?), fifo, copies));
        }
        if let Some(path) = &stdio.stdin {
            let (reader, writer) = pipe(owner)?;
            streams.stdin = Some(reader);
            let sink = asynchronous(writer)?;
            this.input = Mutex::new(Stdin::Waiting { path: path.clone(), sink });
        }
        Ok((streams, this))
    }

    /// A terminal, whose master the runtime has handed over.
    ///
    /// # Errors
    /// [`IoError`]; waits for the reader of the FIFO, within bounds.
    pub async fn terminal(stdio: &Stdio, master: OwnedFd, copies: &Copies) -> Result<Self, IoError> {
        let master = asynchronous(master)?;
        let input = Mutex::new(Stdin::None);
        let mut this = Self { input, outputs: Vec::new(), terminal: Some(master.clone()) };
        if let Some(path) = &stdio.stdout {
            let fifo = OutputFifo::open(path).await?;
            this.outputs.push(Output::start(Source::Terminal(master.clone()), fifo, copies));
        }
        if let Some(path) = &stdio.stdin {
            this.input = Mutex::new(Stdin::Waiting { path: path.clone(), sink: master });
        }
        Ok(this)
    }

    /// Opens the FIFO of the input, once the process is to start. Not before: a client that reaches the end of its
    /// input closes ours by `CloseIO`, and cannot do so before it knows of the process.
    ///
    /// # Errors
    /// [`IoError::Fifo`].
    pub fn open_stdin(&self) -> Result<(), IoError> {
        let mut input = lock(&self.input);
        if let Stdin::Waiting { path, sink } = &*input {
            *input = Stdin::Open(Input::start(fifo::open_input(path)?, sink.clone()));
        }
        Ok(())
    }

    /// No more input will come but from clients that have opened the FIFO already.
    pub fn close_stdin(&self) {
        if let Stdin::Open(input) = &*lock(&self.input) {
            input.close();
        }
    }

    /// # Errors
    /// The kernel's; a process without a terminal has no size, which is not an error.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), IoError> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size).map_err(|e| IoError::Resize(e.into()))
    }

    /// Waits until what the ended process wrote has reached the FIFOs, within bounds: a reader that stalls does not
    /// keep anyone from learning of the exit, nor does a child that inherited the streams.
    pub async fn drained(&self) {
        for output in &self.outputs {
            output.drained().await;
        }
    }

    /// The process is gone and will not be asked about again: its input ends; its output still goes to a client that
    /// reads it, and nowhere when there is none.
    pub fn release(&self) {
        *lock(&self.input) = Stdin::None;
        for output in &self.outputs {
            output.release();
        }
    }
}

fn pipe((uid, gid): (u32, u32)) -> Result<(OwnedFd, OwnedFd), IoError> {
    let make = || {
        let (reader, writer) = io::pipe()?;
        if (uid, gid) != (0, 0) {
            rustix::fs::fchown(reader.as_fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok((reader.into(), writer.into()))
    };
    make().map_err(IoError::Pipe)
}

// `new` is deprecated because a type of the caller's may name a descriptor that it does not own. `OwnedFd` owns its.
#[allow(deprecated)]
fn asynchronous(fd: OwnedFd) -> Result<Arc<AsyncFd<OwnedFd>>, IoError> {
    let make = || {
        rustix::io::ioctl_fionbio(&fd, true)?;
        AsyncFd::new(fd)
    };
    make().map(Arc::new).map_err(IoError::Pipe)
}

/// A lock that a panicking holder cannot spoil: what it guards is replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_paths_or_nothing() {
        let stdio = Stdio::parse("", "/run/out", "", true).unwrap();
        assert_eq!(stdio, Stdio { stdout: Some("/run/out".into()), terminal: true, ..Default::default() });
        for uri in ["binary:///bin/log", "file:///var/log/x", "relative"] {
            assert!(matches!(Stdio::parse("", uri, "", false), Err(IoError::Uri(u)) if u == uri));
        }
    }
}
