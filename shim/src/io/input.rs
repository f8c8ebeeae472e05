//! Moving what a client writes to a process.

use std::{io, os::fd::OwnedFd, sync::Mutex};

use tokio::task::AbortHandle;

use super::{
    copy::{CHUNK, Fd, read},
    fifo::InputFifo,
    lock,
    sink::write,
};

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
    reader.readable().await?.retain_ready();
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(reader, &mut buffer).await? {
            0 => return Ok(()),
            length => write_all(sink, &buffer[..length]).await?,
        }
    }
}

async fn write_all(fd: &Fd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[write(fd, bytes).await?..];
    }
    Ok(())
}
