//! Moving what processes write to their sinks: one task per stream, each waiting for nobody else.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
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
    time::{sleep, timeout},
};

use super::{buffer::Buffer, bulk, copies::Copies, sink::Sink};

/// As much as a pipe holds: a process that has filled it is read on at one go.
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
pub(super) type Fd = Arc<AsyncFd<OwnedFd>>;

/// Where output comes from.
pub enum Source {
    /// The reading end of a pipe, not blocking. The runtime watches it only while nobody reads: each write would wake its
    /// thread for nothing.
    Pipe(Arc<OwnedFd>),
    /// A terminal's master.
    Terminal(Fd),
}

impl Source {
    /// Bytes that wait to be read.
    fn waiting(&self) -> u64 {
        let fd = match self {
            Self::Pipe(fd) => fd.as_fd(),
            Self::Terminal(fd) => fd.get_ref().as_fd(),
        };
        ioctl_fionread(fd).unwrap_or(0)
    }
}

/// One stream from a process to its sink.
pub struct Output {
    source: Source,
    pub(super) sink: Sink,
    /// What the process need not wait for the sink with.
    buffer: Option<Buffer>,
    /// Bytes that reached the sink.
    pub(super) copied: AtomicU64,
    /// Bytes that the sink has refused. Its process goes on: it is not its fault.
    lost: AtomicU64,
    /// Bytes may have been read that have reached neither the sink nor the buffer.
    pub(super) busy: AtomicBool,
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
        let Some(buffer) = &self.buffer else {
            return match (&self.source, &self.sink) {
                (Source::Pipe(pipe), Sink::File(file)) => self.append_all(pipe, file).await,
                (Source::Pipe(pipe), _) => self.pass_all(pipe).await,
                (Source::Terminal(terminal), _) => self.read_all(&**terminal).await,
            };
        };
        let fill = async {
            let filled = match &self.source {
                Source::Pipe(pipe) => self.read_all(&watched(pipe)?).await,
                Source::Terminal(terminal) => self.read_all(&**terminal).await,
            };
            // Nothing is dropped from now on. It is said at once: containerd listens until the task is deleted, and the log
            // may be slower than that.
            if buffer.dropped() > 0 {
                log::warn!("a slow log lost {} bytes of output in all", buffer.dropped());
            }
            buffer.end();
            filled
        };
        let (filled, emptied) = tokio::join!(fill, self.empty(buffer));
        filled.and(emptied)
    }

    /// Takes all that the process writes.
    async fn read_all<T: AsFd + AsRawFd>(&self, source: &AsyncFd<T>) -> io::Result<()> {
        self.read_while(source, |_| true).await.map(drop)
    }

    /// Takes what the process writes, to the buffer if there is one, up to the end or until it is enough: `more` is asked
    /// after each piece, of so many bytes. Returns whether it was the end.
    pub(super) async fn read_while<T: AsFd + AsRawFd>(
        &self,
        source: &AsyncFd<T>,
        mut more: impl FnMut(usize) -> bool,
    ) -> io::Result<bool> {
        // Most processes write nothing for a long time: no buffer until there is something.
        source.readable().await?.retain_ready();
        let mut bytes = vec![0; CHUNK];
        loop {
            let length = match read(source, &mut bytes).await {
                Ok(0) => return Ok(true),
                Ok(length) => length,
                // All of the terminal's other side is closed.
                Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(true),
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
            if !more(length) {
                return Ok(false);
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
    pub(super) async fn deliver(&self, mut bytes: &[u8]) -> io::Result<()> {
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
        // All that the process can have written: what comes after it is of a child that goes on, maybe for ever. What has gone
        // is read last: what moves meanwhile is counted twice rather than not at all.
        let waiting = self.source.waiting() + bulk::CHUNK as u64 + self.held();
        let (mut gone, mut moved) = (self.gone(), Instant::now());
        let all = gone + waiting;
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

/// `with_interest` is deprecated for types that may name a descriptor that they do not own; an `Arc` of an `OwnedFd` keeps
/// it.
#[allow(deprecated)]
pub(super) fn watched(pipe: &Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(pipe.clone(), Interest::READABLE)
}

/// Reads without blocking the thread.
pub(super) async fn read<T: AsFd + AsRawFd>(fd: &AsyncFd<T>, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
}
