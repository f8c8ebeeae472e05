//! Moving what processes write to their sinks: one task per stream, each waiting for nobody else.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::io::{Errno, ioctl_fionread};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    buffer::Buffer,
    copies::Copies,
    sink::{LogFile, Sink},
};

/// As much as a pipe holds: a process that has filled it is read on at one go. Larger pipes were no faster.
pub(super) const CHUNK: usize = 64 << 10;
/// How often an output is looked at while it drains.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// An output that moves nothing for so long has a stalled reader.
const STALL: Duration = Duration::from_secs(1);
/// A FIFO from which nothing is read for so long has no reader who waits for it.
const UNREAD: Duration = Duration::from_millis(100);
/// How often it is looked at.
const PEEK: Duration = Duration::from_millis(1);
/// A terminal passes bytes on from a kernel worker: it is empty when it is so twice, this far apart.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a process that writes to a log file may write on before it is looked at again: to be woken for each of a
/// million short lines costs more than to write them, and a pipe holds what comes meanwhile.
const NAP: Duration = Duration::from_micros(100);

pub(super) type Fd = Arc<AsyncFd<OwnedFd>>;

/// Where output comes from.
pub enum Source {
    /// The reading end of a pipe.
    Pipe(Fd),
    /// A terminal's master.
    Terminal(Fd),
    /// The reading end of a pipe, not blocking, whose data is for a log file. The runtime watches it only while nobody
    /// reads: each write would wake its thread for nothing.
    Logged {
        /// The pipe.
        pipe: Arc<OwnedFd>,
        /// Where to.
        file: Arc<LogFile>,
    },
}

impl Source {
    /// Bytes that wait to be read.
    fn waiting(&self) -> u64 {
        let fd = match self {
            Self::Pipe(fd) | Self::Terminal(fd) => fd.get_ref().as_fd(),
            Self::Logged { pipe, .. } => pipe.as_fd(),
        };
        ioctl_fionread(fd).unwrap_or(0)
    }
}

/// One stream from a process to its sink.
pub struct Output {
    source: Source,
    sink: Sink,
    /// What the process need not wait for the sink with.
    buffer: Option<Buffer>,
    /// Bytes that reached the sink.
    copied: AtomicU64,
    /// Bytes that the sink has refused. Its process goes on: it is not its fault.
    lost: AtomicU64,
    /// Bytes may have been read that have reached neither the sink nor the buffer.
    busy: AtomicBool,
    done: watch::Sender<bool>,
}

impl Output {
    /// Starts copying; with a `buffer` of so many bytes, the process never waits for the sink.
    pub fn start(source: Source, sink: Sink, buffer: Option<usize>, copies: &Copies) -> Arc<Self> {
        let (copied, lost) = (AtomicU64::new(0), AtomicU64::new(0));
        let (busy, done) = (AtomicBool::new(false), watch::Sender::new(false));
        let buffer = buffer.map(Buffer::new);
        let this = Arc::new(Self { source, sink, buffer, copied, lost, busy, done });
        copies.add(&this);
        let copying = this.clone();
        tokio::spawn(async move {
            if let Err(error) = copying.copy().await {
                log::debug!("output: {error}");
            }
            let lost = copying.lost.load(Relaxed);
            if lost > 0 {
                log::warn!("{lost} bytes of output are lost in all: what they go to took them no more");
            }
            copying.busy.store(false, Relaxed);
            copying.done.send_replace(true);
            copying.close().await;
        });
        this
    }

    /// Ends the sink. Clients read up to the end of a FIFO before they delete a task, so it must come before; but what
    /// nobody has read yet stays for a client that attaches once more, until the process is deleted.
    async fn close(&self) {
        let mut pause = PEEK;
        while self.sink.unread() > 0 {
            sleep(pause).await;
            pause = (pause * 2).min(UNREAD);
        }
        self.sink.close();
    }

    async fn copy(self: &Arc<Self>) -> io::Result<()> {
        let source = match &self.source {
            Source::Pipe(fd) | Source::Terminal(fd) => fd,
            Source::Logged { pipe, file } => return self.append_all(pipe, file).await,
        };
        let Some(buffer) = &self.buffer else {
            return self.read_all(source).await;
        };
        let fill = async {
            let filled = self.read_all(source).await;
            buffer.end();
            filled
        };
        let (filled, emptied) = tokio::join!(fill, self.empty(buffer));
        if buffer.dropped() > 0 {
            log::warn!("a slow log lost {} bytes of output in all", buffer.dropped());
        }
        filled.and(emptied)
    }

    /// Takes all that the process writes, to the buffer if there is one.
    async fn read_all(&self, source: &Fd) -> io::Result<()> {
        // Most processes write nothing for a long time: no buffer until there is something.
        source.readable().await?.retain_ready();
        let mut bytes = vec![0; CHUNK];
        loop {
            let length = match read(source, &mut bytes).await {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                // All of the terminal's other side is closed.
                Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(()),
                Err(e) => return Err(e),
            };
            self.busy.store(true, Relaxed);
            match &self.buffer {
                Some(buffer) if buffer.push(&bytes[..length]) => {
                    log::warn!(
                        "a slow log loses output: what does not fit its buffer is dropped from now on"
                    );
                }
                Some(_) => {}
                None => self.deliver(&bytes[..length]).await?,
            }
            self.busy.store(false, Relaxed);
        }
    }

    /// Takes all that the process writes to a log file. Disks block, so it is done off the runtime's thread; to go there
    /// for each line would take longer than to write it, so whoever is there stays while there is more.
    async fn append_all(self: &Arc<Self>, pipe: &Arc<OwnedFd>, file: &Arc<LogFile>) -> io::Result<()> {
        loop {
            watch_once(pipe).await?;
            self.busy.store(true, Relaxed);
            let (this, pipe, file) = (self.clone(), pipe.clone(), file.clone());
            let ended = spawn_blocking(move || this.append_what_is_there(&pipe, &file)).await??;
            self.busy.store(false, Relaxed);
            if ended {
                return Ok(());
            }
        }
    }

    /// Returns whether the source has ended.
    fn append_what_is_there(&self, pipe: &OwnedFd, file: &LogFile) -> io::Result<bool> {
        let mut bytes = vec![0; CHUNK];
        loop {
            match rustix::io::read(pipe, &mut bytes) {
                Ok(0) => return Ok(true),
                Ok(length) => {
                    file.append(&bytes[..length]);
                    self.copied.fetch_add(length as u64, Relaxed);
                    if length < bytes.len() {
                        std::thread::sleep(NAP);
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn empty(&self, buffer: &Buffer) -> io::Result<()> {
        let mut bytes = vec![0; CHUNK];
        loop {
            match buffer.take(&mut bytes).await {
                0 => return Ok(()),
                length => self.deliver(&bytes[..length]).await?,
            }
        }
    }

    /// Writes all to the sink. What a logging program that has ended does not take is lost and counted, and the process is
    /// read on: it must not be stopped by a full pipe.
    ///
    /// # Errors
    /// A FIFO breaks only once its process has been deleted and its client is gone (see [`Output::release`]): whoever
    /// still writes is to learn it.
    async fn deliver(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.sink.write(bytes).await {
                Ok(written) => {
                    self.copied.fetch_add(written as u64, Relaxed);
                    bytes = &bytes[written..];
                }
                Err(error) if matches!(self.sink, Sink::Fifo(_)) => return Err(error),
                Err(error) => {
                    if self.lost.fetch_add(bytes.len() as u64, Relaxed) == 0 {
                        log::warn!("output is lost from now on: {error}");
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Something is known to be undelivered.
    pub(super) fn pending(&self) -> bool {
        !*self.done.borrow() && (self.busy.load(Relaxed) || self.source.waiting() > 0 || self.held() > 0)
    }

    /// Bytes in the buffer, if there is one.
    fn held(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::held)
    }

    /// Bytes that have gone where they go, or are lost.
    fn gone(&self) -> u64 {
        self.copied.load(Relaxed) + self.lost.load(Relaxed)
    }

    /// See [`ProcessIo::drained`](super::ProcessIo::drained).
    pub async fn drained(&self) {
        self.delivered().await;
        self.read().await;
    }

    /// Waits until the client has read what reached the FIFO: containerd's client closes its end of an exec's FIFOs
    /// when it has deleted the exec, whether they are empty or not.
    async fn read(&self) {
        let unread = || self.sink.unread();
        let (mut left, mut moved, began) = (unread(), Instant::now(), Instant::now());
        while left > 0 && moved.elapsed() < UNREAD && began.elapsed() < STALL {
            sleep(PEEK).await;
            let now = unread();
            if now != left {
                (left, moved) = (now, Instant::now());
            }
        }
    }

    async fn delivered(&self) {
        let mut done = self.done.subscribe();
        let (mut gone, mut moved) = (self.gone(), Instant::now());
        // All that the process can have written: what comes after it is of a child that goes on, maybe for ever.
        let all = gone + self.source.waiting() + CHUNK as u64 + self.held();
        while gone < all {
            if !self.pending() && self.settled(&mut done).await {
                return;
            }
            let now = self.gone();
            if now != gone {
                (gone, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALL {
                return log::warn!(
                    "the reader of a standard stream has stalled: its output follows the exit"
                );
            }
            let _ = timeout(LOOK, done.wait_for(|done| *done)).await;
        }
    }

    async fn settled(&self, done: &mut watch::Receiver<bool>) -> bool {
        if !matches!(self.source, Source::Terminal(_)) {
            return true;
        }
        let _ = timeout(SETTLE, done.wait_for(|done| *done)).await;
        !self.pending()
    }

    /// From now on a FIFO breaks when its reader leaves.
    pub fn release(&self) {
        self.sink.release();
    }
}

/// Waits until there is something to read, or the end. `new` is deprecated for types that may name a descriptor that
/// they do not own; an `Arc` of an `OwnedFd` keeps it.
#[allow(deprecated)]
async fn watch_once(pipe: &Arc<OwnedFd>) -> io::Result<()> {
    let watched = AsyncFd::with_interest(pipe.clone(), Interest::READABLE)?;
    watched.readable().await?.retain_ready();
    Ok(())
}

/// Reads without blocking the thread.
pub(super) async fn read(fd: &Fd, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
}
