//! Moving bytes between FIFOs and processes: one task per stream, each waiting for nobody else.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::io::ioctl_fionread;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{
    fifo::{InputFifo, OutputFifo},
    lock,
};

/// As much as a pipe holds by half: two chunks in flight fill it.
const CHUNK: usize = 32 << 10;
/// How often an output is looked at while it drains.
const LOOK: Duration = Duration::from_millis(5);
/// An output that moves nothing for so long has a stalled reader.
const STALL: Duration = Duration::from_secs(1);
/// A FIFO from which nothing is read for so long has no reader who waits for it.
const UNREAD: Duration = Duration::from_millis(100);
/// How often it is looked at.
const PEEK: Duration = Duration::from_millis(1);
/// A terminal passes bytes on from a kernel worker: it is empty when it is so twice, this far apart.
const SETTLE: Duration = Duration::from_millis(20);

type Fd = Arc<AsyncFd<OwnedFd>>;

/// Where output comes from.
pub enum Source {
    /// The reading end of a pipe.
    Pipe(Fd),
    /// A terminal's master.
    Terminal(Fd),
}

impl Source {
    fn fd(&self) -> &Fd {
        match self {
            Self::Pipe(fd) | Self::Terminal(fd) => fd,
        }
    }

    fn waiting(&self) -> bool {
        ioctl_fionread(self.fd().get_ref()).is_ok_and(|bytes| bytes > 0)
    }
}

/// One stream from a process to a FIFO.
pub struct Output {
    source: Source,
    fifo: OutputFifo,
    /// Bytes that reached the FIFO.
    copied: AtomicU64,
    /// Bytes have been read that have not reached the FIFO.
    busy: AtomicBool,
    done: watch::Sender<bool>,
}

impl Output {
    /// Starts copying.
    pub fn start(source: Source, fifo: OutputFifo, copies: &Copies) -> Arc<Self> {
        let (copied, busy, done) = (AtomicU64::new(0), AtomicBool::new(false), watch::Sender::new(false));
        let this = Arc::new(Self { source, fifo, copied, busy, done });
        copies.add(&this);
        let copying = this.clone();
        tokio::spawn(async move {
            if let Err(error) = copying.copy().await {
                log::debug!("output: {error}");
            }
            copying.busy.store(false, Relaxed);
            copying.done.send_replace(true);
        });
        this
    }

    async fn copy(&self) -> io::Result<()> {
        let source = self.source.fd();
        // Most processes write nothing for a long time: no buffer until there is something.
        source.readable().await?.retain_ready();
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match read(source, &mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                // All of the terminal's other side is closed.
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(()),
                Err(e) => return Err(e),
            };
            self.busy.store(true, Relaxed);
            write_all(&self.fifo.writer, &buffer[..length], &self.copied).await?;
            self.busy.store(false, Relaxed);
        }
    }

    /// Something is known to be undelivered.
    fn pending(&self) -> bool {
        !*self.done.borrow() && (self.busy.load(Relaxed) || self.source.waiting())
    }

    /// See [`ProcessIo::drained`](super::ProcessIo::drained).
    pub async fn drained(&self) {
        self.delivered().await;
        self.read().await;
    }

    /// Waits until the client has read what reached the FIFO: containerd's client closes its end of an exec's FIFOs
    /// when it has deleted the exec, whether they are empty or not.
    async fn read(&self) {
        let unread = || lock(&self.fifo.keeper).as_ref().map_or(0, |fifo| ioctl_fionread(fifo).unwrap_or(0));
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
        let (mut copied, mut moved) = (self.copied.load(Relaxed), Instant::now());
        loop {
            if !self.pending() && self.settled(&mut done).await {
                return;
            }
            let now = self.copied.load(Relaxed);
            if now != copied {
                (copied, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALL {
                return log::warn!(
                    "the reader of a standard stream has stalled: its output follows the exit"
                );
            }
            let _ = timeout(LOOK, done.wait_for(|done| *done)).await;
        }
    }

    async fn settled(&self, done: &mut watch::Receiver<bool>) -> bool {
        if matches!(self.source, Source::Pipe(_)) {
            return true;
        }
        let _ = timeout(SETTLE, done.wait_for(|done| *done)).await;
        !self.pending()
    }

    /// From now on the FIFO breaks when its reader leaves.
    pub fn release(&self) {
        lock(&self.fifo.keeper).take();
    }
}

/// All outputs of this shim, for its last moments.
#[derive(Clone, Default)]
pub struct Copies(Arc<Mutex<Vec<Weak<Output>>>>);

impl Copies {
    fn add(&self, output: &Arc<Output>) {
        let mut outputs = lock(&self.0);
        outputs.retain(|output| output.strong_count() > 0);
        outputs.push(Arc::downgrade(output));
    }

    /// Waits until all that was written has been delivered, at most `limit`.
    pub async fn finish(&self, limit: Duration) {
        let pending = || lock(&self.0).iter().filter_map(Weak::upgrade).any(|output| output.pending());
        let wait = async {
            while pending() {
                sleep(LOOK).await;
            }
        };
        if timeout(limit, wait).await.is_err() {
            log::warn!("output is dropped: its reader has stalled for {limit:?}");
        }
    }
}

/// The stream from a FIFO to a process.
pub struct Input {
    keeper: Mutex<Option<OwnedFd>>,
    task: AbortHandle,
}

impl Input {
    /// Starts copying to a pipe or a terminal.
    pub fn start(fifo: InputFifo, sink: Fd) -> Self {
        let InputFifo { reader, keeper } = fifo;
        let task = tokio::spawn(async move {
            if let Err(error) = copy_in(&reader, &sink).await {
                log::debug!("input: {error}");
            }
        });
        Self { keeper: Mutex::new(Some(keeper)), task: task.abort_handle() }
    }

    /// The input ends when the last client has closed its end.
    pub fn close(&self) {
        lock(&self.keeper).take();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy_in(reader: &Fd, sink: &Fd) -> io::Result<()> {
    let copied = AtomicU64::new(0);
    reader.readable().await?.retain_ready();
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(reader, &mut buffer).await? {
            0 => return Ok(()),
            length => write_all(sink, &buffer[..length], &copied).await?,
        }
    }
}

async fn read(fd: &Fd, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
}

async fn write_all(fd: &Fd, mut bytes: &[u8], copied: &AtomicU64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
        copied.fetch_add(written as u64, Relaxed);
        bytes = &bytes[written..];
    }
    Ok(())
}
