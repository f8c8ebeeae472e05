//! Standard streams of container processes: between the FIFOs that containerd's client opens and the pipes or the
//! terminal that the process has.
//!
//! Rooms: `target` says where streams go, `fifo` opens FIFOs, `logger` runs logging programs, `sink` writes to any of them,
//! `buffer` holds what a slow log has not taken, `copy` moves output, `bulk` much of it, `input` input, `copies` knows all outputs, `console` receives a terminal from the runtime; here
//! is what a process' streams are as a whole. Data is copied, not spliced: spliced pages stay the container's, which could then
//! change them, or make a host's reader wait for them.

mod buffer;
mod bulk;
mod console;
mod copies;
mod copy;
mod fifo;
mod input;
mod logger;
mod sink;
mod target;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use console::{ConsoleSocket, remove_dead_consoles};
pub use copies::Copies;
use copy::{Output, Source};
use fifo::OutputFifo;
use input::Input;
use logger::Logger;
use rustix::{
    fs::{Gid, Uid},
    termios::Winsize,
};
use sink::{LogFile, Sink, Writer};
pub use target::{Stdio, Target};
use thiserror::Error;
use tokio::{io::unix::AsyncFd, time::timeout};

use crate::{oci::Streams, reaper::Reaper};

/// How long readers that are slow, but read, keep an exit: an init's waits for those of its execs, and has to come after them.
const SLOW: Duration = Duration::from_secs(3);

/// Streams that could not be set up.
#[derive(Debug, Error)]
pub enum IoError {
    /// Neither a path nor a log URI.
    #[error(
        "standard stream {0:?} is not supported: use the absolute path of a FIFO, or for the output file:///PATH or \
         binary:///PROGRAM?KEY=VALUE"
    )]
    Uri(String),
    /// A log URI for one of two outputs.
    #[error(
        "standard error {0:?} is not the log URI of standard output: give both the same, or standard error none"
    )]
    StderrUri(String),
    /// A log file that cannot be opened.
    #[error("cannot open the log file {}", .0.display())]
    LogFile(PathBuf, #[source] io::Error),
    /// A logging program that cannot be started.
    #[error("cannot start the logging program {}", .0.display())]
    Logger(PathBuf, #[source] io::Error),
    /// A logging program that does not begin.
    #[error("the logging program {} was not ready in time (it closes descriptor 5 when it is)", .0.display())]
    LoggerNotReady(PathBuf),
    /// One of version 2 that has ended, or has closed what it was to say it on.
    #[error("the logging program {} did not say that it is ready (for binary-v2 it writes a byte to descriptor 5)", .0.display())]
    LoggerFailed(PathBuf),
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

/// What the streams of a process need but their targets.
pub struct Setup<'a> {
    /// The pipes belong to this user and group, so that a process of theirs can open `/dev/stdout` anew.
    pub owner: (u32, u32),
    /// The process: the container's id for its init, the exec's otherwise. Logging programs are told.
    pub id: &'a str,
    /// containerd's namespace; the same.
    pub namespace: &'a str,
    /// How much output waits for a slow log before it is dropped; without, the process waits.
    pub buffer: Option<usize>,
    /// All outputs of this shim.
    pub copies: &'a Copies,
    /// Sees logging programs end.
    pub reaper: &'a Reaper,
}

/// What has become of a process' input.
#[derive(Default)]
enum Stdin {
    /// It has none, or none any more.
    #[default]
    None,
    /// Its FIFO is not open yet.
    Waiting { path: PathBuf, sink: Arc<AsyncFd<OwnedFd>> },
    /// It is being copied.
    Open(Input),
}

/// The shim's side of a process' streams. Copying goes on until the process' side is closed, also after this is
/// dropped.
#[derive(Default)]
pub struct ProcessIo {
    input: Mutex<Stdin>,
    outputs: Vec<Arc<Output>>,
    logger: Mutex<Option<Logger>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl ProcessIo {
    /// Pipes, with the ends that the process is to have.
    ///
    /// # Errors
    /// [`IoError`]; waits for the readers of the FIFOs and for the logging program, within bounds.
    pub async fn pipes(stdio: &Stdio, setup: &Setup<'_>) -> Result<(Streams, Self), IoError> {
        let (mut streams, mut this) = (Streams::default(), Self::default());
        let (logger, opened) = open_outputs(stdio, setup).await?;
        this.logger = Mutex::new(logger);
        for (opened, end) in opened.into_iter().zip([&mut streams.stdout, &mut streams.stderr]) {
            let sink = match opened {
                Opened::Nothing => continue,
                // Nothing comes between a process that may wait and its logging program.
                Opened::Pipe(writer) if setup.buffer.is_none() => {
                    *end = Some(writer);
                    continue;
                }
                Opened::Pipe(writer) => Sink::Pipe(Writer::new(nonblocking(writer)?)),
                Opened::Sink(sink) => sink,
            };
            let (reader, writer) = pipe(setup.owner)?;
            let source = Source::Pipe(Arc::new(nonblocking(reader)?));
            this.outputs.push(Output::start(source, sink, setup.buffer, setup.copies));
            *end = Some(writer);
        }
        if let Some(path) = &stdio.stdin {
            let (reader, writer) = pipe(setup.owner)?;
            streams.stdin = Some(reader);
            let sink = asynchronous(writer)?;
            this.input = Mutex::new(Stdin::Waiting { path: path.clone(), sink });
        }
        Ok((streams, this))
    }

    /// A terminal, whose master the runtime has handed over.
    ///
    /// # Errors
    /// [`IoError`]; waits for the reader of the FIFO or for the logging program, within bounds.
    pub async fn terminal(stdio: &Stdio, master: OwnedFd, setup: &Setup<'_>) -> Result<Self, IoError> {
        let master = asynchronous(master)?;
        let mut this = Self { terminal: Some(master.clone()), ..Self::default() };
        let (logger, [opened, _]) = open_outputs(stdio, setup).await?;
        this.logger = Mutex::new(logger);
        let sink = match opened {
            Opened::Nothing => None,
            Opened::Pipe(writer) => Some(Sink::Pipe(Writer::new(nonblocking(writer)?))),
            Opened::Sink(sink) => Some(sink),
        };
        if let Some(sink) = sink {
            let source = Source::Terminal(master.clone());
            this.outputs.push(Output::start(source, sink, setup.buffer, setup.copies));
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
        // At the same time: two readers that stall keep nobody longer than one.
        let drained = async {
            match &self.outputs[..] {
                [stdout, stderr] => _ = tokio::join!(stdout.drained(), stderr.drained()),
                outputs => {
                    for output in outputs {
                        output.drained().await;
                    }
                }
            }
        };
        if timeout(SLOW, drained).await.is_err() {
            log::warn!("the reader of a standard stream is slow: its output follows the exit");
        }
    }

    /// The process is gone and will not be asked about again: its input ends; its output still goes to a client that
    /// reads it, and nowhere when there is none.
    pub fn release(&self) {
        *lock(&self.input) = Stdin::None;
        for output in &self.outputs {
            output.release();
        }
        if let Some(logger) = lock(&self.logger).take() {
            logger.end();
        }
    }
}

/// Where one stream goes, open.
enum Opened {
    Nothing,
    Sink(Sink),
    /// The writing end of a logging program's pipe.
    Pipe(OwnedFd),
}

/// Opens what standard output and error go to; a logging program is started.
async fn open_outputs(stdio: &Stdio, setup: &Setup<'_>) -> Result<(Option<Logger>, [Opened; 2]), IoError> {
    match &stdio.output {
        Target::Fifos { stdout, stderr } => {
            let stderr = stderr.as_ref().filter(|_| !stdio.terminal);
            Ok((None, [open_fifo(stdout.as_ref()).await?, open_fifo(stderr).await?]))
        }
        Target::File(path) => {
            let file = LogFile::open(path).await?;
            Ok((None, [Opened::Sink(Sink::File(file.clone())), Opened::Sink(Sink::File(file))]))
        }
        Target::Program(program) => {
            let (logger, stdout, stderr) = Logger::start(program, setup).await?;
            Ok((Some(logger), [Opened::Pipe(stdout), Opened::Pipe(stderr)]))
        }
    }
}

async fn open_fifo(path: Option<&PathBuf>) -> Result<Opened, IoError> {
    let Some(path) = path else { return Ok(Opened::Nothing) };
    match OutputFifo::open(path).await {
        Ok(fifo) => Ok(Opened::Sink(Sink::Fifo(fifo))),
        // A file or a device that is there, as with containerd's own shim.
        Err(IoError::NotFifo(path)) => Ok(Opened::Sink(Sink::File(LogFile::of_path(&path).await?))),
        Err(error) => Err(error),
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

fn nonblocking(fd: OwnedFd) -> Result<OwnedFd, IoError> {
    rustix::io::ioctl_fionbio(&fd, true).map_err(|e| IoError::Pipe(e.into()))?;
    Ok(fd)
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
