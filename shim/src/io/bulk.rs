//! Moving much output, and all that goes to files: off the runtime's thread, for as long as there is something to move.
//!
//! A process that writes a million short lines would wake the runtime's one thread for each of them. Whoever reads here
//! waits a moment after each short read instead, and a pipe holds what comes meanwhile.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::{io::Interest, task::spawn_blocking};

use super::{
    copy::{self, Output, watched},
    sink::{LogFile, Sink, watch_once},
};

/// How much is read at one go: half of what a pipe of [`PIPE`] holds, so that who writes and who reads go on at the same
/// time.
pub(super) const CHUNK: usize = 128 << 10;
/// What pipes hold of which much is moved. With the kernel's 64 KiB each of the three processes waits for another one
/// after every piece, and the more there is to do on the node, the longer: half as fast at a load of two per processor.
const PIPE: usize = 256 << 10;
/// How long a process may write on before its pipe is looked at again.
const NAP: Duration = Duration::from_micros(100);
/// A process that writes [`MUCH`] times in so short a time writes much, and one that fills its pipe [`FILLED`] times, as it does
/// when it is faster than who reads.
const BURST: Duration = Duration::from_millis(20);
const MUCH: u32 = 32;
const FILLED: u32 = 4;
/// How long a thread waits for a client that does not read; then the runtime does, which has one thread for all.
const STUCK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Why a thread has stopped.
enum Pause {
    /// The process' side is closed.
    End,
    /// There was nothing to read.
    Empty,
    /// The client does not read: this is left to write.
    Full(Vec<u8>),
}

impl Output {
    /// Takes all that the process writes to a log file.
    pub(super) async fn append_all(
        self: &Arc<Self>,
        pipe: &Arc<OwnedFd>,
        file: &Arc<LogFile>,
    ) -> io::Result<()> {
        loop {
            watch_once(pipe, Interest::READABLE).await?;
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
        let (mut bytes, mut grown) = (vec![0; CHUNK], false);
        loop {
            match rustix::io::read(pipe, &mut bytes) {
                Ok(0) => return Ok(true),
                Ok(length) => {
                    if length >= copy::CHUNK && !grown {
                        grow(pipe);
                        grown = true;
                    }
                    file.append(&bytes[..length]);
                    self.copied.fetch_add(length as u64, Relaxed);
                    nap_after(length);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes all that the process writes to a FIFO: what is little, on the runtime's thread.
    pub(super) async fn pass_all(self: &Arc<Self>, pipe: &Arc<OwnedFd>) -> io::Result<()> {
        loop {
            let mut burst = Burst::default();
            if self.read_while(&watched(pipe)?, |length| !burst.is_much(length)).await? {
                return Ok(());
            }
            let Sink::Fifo(fifo) = &self.sink else { continue };
            let fifo = fifo.writer.fd()?;
            grow(pipe);
            grow(&fifo);
            if self.pass_much(pipe, &fifo).await? {
                return Ok(());
            }
        }
    }

    /// Returns whether the source has ended.
    async fn pass_much(self: &Arc<Self>, pipe: &Arc<OwnedFd>, fifo: &Arc<OwnedFd>) -> io::Result<bool> {
        loop {
            self.busy.store(true, Relaxed);
            let (this, from, to) = (self.clone(), pipe.clone(), fifo.clone());
            match spawn_blocking(move || this.pass_what_is_there(&from, &to)).await?? {
                Pause::End => return Ok(true),
                Pause::Empty => {
                    self.busy.store(false, Relaxed);
                    return Ok(false);
                }
                Pause::Full(rest) => self.deliver(&rest).await?,
            }
        }
    }

    fn pass_what_is_there(&self, pipe: &OwnedFd, fifo: &OwnedFd) -> io::Result<Pause> {
        let mut bytes = vec![0; CHUNK];
        loop {
            match rustix::io::read(pipe, &mut bytes) {
                Ok(0) => return Ok(Pause::End),
                Ok(length) => {
                    let written = self.write_patiently(fifo, &bytes[..length])?;
                    if written < length {
                        return Ok(Pause::Full(bytes[written..length].to_vec()));
                    }
                    nap_after(length);
                }
                Err(Errno::AGAIN) => return Ok(Pause::Empty),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what a client takes without keeping the thread for long; how much.
    fn write_patiently(&self, fifo: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::write(fifo, &bytes[written..]) {
                Ok(length) => {
                    self.copied.fetch_add(length as u64, Relaxed);
                    written += length;
                }
                Err(Errno::AGAIN) => {
                    match poll(&mut [PollFd::from_borrowed_fd(fifo.as_fd(), PollFlags::OUT)], Some(&STUCK)) {
                        Ok(0) => break,
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }
}

/// Refused when a user has many large pipes (pipe(7)): then it goes on with what there is.
fn grow(pipe: &OwnedFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
}

/// Of what fills a good part of the pipe there is more at once.
fn nap_after(length: usize) {
    if length < CHUNK / 2 {
        std::thread::sleep(NAP);
    }
}

/// How often something came of late.
struct Burst {
    began: Instant,
    pieces: u32,
    /// How often in a row as much as a pipe holds.
    filled: u32,
}

impl Default for Burst {
    fn default() -> Self {
        Self { began: Instant::now(), pieces: 0, filled: 0 }
    }
}

impl Burst {
    /// To be asked once for each piece.
    fn is_much(&mut self, length: usize) -> bool {
        if self.began.elapsed() > BURST {
            (self.began, self.pieces) = (Instant::now(), 0);
        }
        self.pieces += 1;
        self.filled = if length < copy::CHUNK { 0 } else { self.filled + 1 };
        self.pieces >= MUCH || self.filled >= FILLED
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeWriter, Read, Write},
        path::Path,
    };

    use super::*;
    use crate::io::{copies::Copies, copy::Source, fifo::OutputFifo};

    /// What a client gets that stops for longer than a thread waits for it, of what `write` writes.
    async fn passed(write: impl FnOnce(PipeWriter) + Send + 'static, stops: u32) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let client = std::thread::spawn({
            let path = path.clone();
            move || read_with_stops(&path, stops)
        });
        let sink = Sink::Fifo(OutputFifo::open(&path).await.unwrap());
        let (reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let copies = Copies::default();
        let output = Output::start(Source::Pipe(Arc::new(reader.into())), sink, None, &copies);
        std::thread::spawn(move || write(writer));
        let read = spawn_blocking(move || client.join().unwrap()).await.unwrap();
        assert_eq!(output.copied.load(Relaxed), read.len() as u64);
        read
    }

    fn read_with_stops(path: &Path, stops: u32) -> Vec<u8> {
        let (mut fifo, mut read, mut piece) = (File::open(path).unwrap(), Vec::new(), vec![0; 1 << 16]);
        for stop in 0.. {
            let length = fifo.read(&mut piece).unwrap();
            read.extend(&piece[..length]);
            if length == 0 {
                break;
            }
            if stop < stops {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        read
    }

    #[tokio::test]
    async fn many_lines_come_in_their_order() {
        let lines = || (0..100_000).map(|number| format!("{number}\n"));
        let write =
            move |mut pipe: PipeWriter| lines().for_each(|line| pipe.write_all(line.as_bytes()).unwrap());
        let read = passed(write, 5).await;
        assert!(read == lines().collect::<String>().into_bytes(), "{} bytes", read.len());
    }

    #[tokio::test]
    async fn large_pieces_come_whole_from_a_process_that_pauses() {
        let piece = |number: u8| vec![number; 1_500_000];
        let write = move |mut pipe: PipeWriter| {
            for number in 0..4 {
                pipe.write_all(&piece(number)).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let read = passed(write, 5).await;
        assert!(read == (0..4).flat_map(piece).collect::<Vec<_>>(), "{} bytes", read.len());
    }

    #[test]
    fn little_is_not_much() {
        let mut burst = Burst::default();
        assert!((1..MUCH).all(|_| !burst.is_much(100)) && burst.is_much(100));
        let mut burst = Burst::default();
        assert!((1..FILLED).all(|_| !burst.is_much(copy::CHUNK)) && burst.is_much(copy::CHUNK));
        let mut burst = Burst::default();
        for _ in 0..MUCH {
            burst.began -= BURST * 2;
            assert!(!burst.is_much(100));
        }
    }
}
