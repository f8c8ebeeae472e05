//! Logging programs: the protocol of containerd's `core/runtime/v2/logging`.
//!
//! The program reads the process' output on descriptor 3 and its errors on 4, and closes 5 when it is ready (one of version 2
//! writes a byte before); its environment is the process' id and its namespace. When the process and all who inherited its streams have ended,
//! both pipes end. A program that goes on when the process is deleted gets `SIGTERM`, and later `SIGKILL`.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, time::timeout};

use super::{Copies, IoError, Setup, target::Program};
use crate::reaper::Claim;

/// How long it may take to get ready.
const READY: Duration = Duration::from_secs(30);
/// How long it may go on by itself after its pipes have ended.
const LINGER: Duration = Duration::from_secs(10);
/// How long it may take after `SIGTERM`; the same as containerd's own shim gives it.
const TERM: Duration = Duration::from_secs(12);

/// A logging program that runs. When dropped, as after a create that failed, it is told to end at once.
pub struct Logger {
    program: PathBuf,
    process: Option<Claim>,
    copies: Copies,
}

impl Logger {
    /// Starts it and waits until it is ready. Gives the pipes that it reads: output, errors.
    ///
    /// # Errors
    /// [`IoError::Logger`], [`IoError::LoggerNotReady`], [`IoError::LoggerFailed`].
    pub async fn start(program: &Program, setup: &Setup<'_>) -> Result<(Self, OwnedFd, OwnedFd), IoError> {
        let path = || program.path.clone();
        let failed = |e: io::Error| IoError::Logger(path(), e);
        let pipe = || io::pipe().map_err(failed);
        let ((stdout, stdout_writer), (stderr, stderr_writer)) = (pipe()?, pipe()?);
        let (ready, ready_writer) = pipe()?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .env_clear()
            .env("CONTAINER_ID", setup.id)
            .env("CONTAINER_NAMESPACE", setup.namespace)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd_mappings(vec![
                FdMapping { parent_fd: stdout.into(), child_fd: 3 },
                FdMapping { parent_fd: stderr.into(), child_fd: 4 },
                FdMapping { parent_fd: ready_writer.into(), child_fd: 5 },
            ])
            .map_err(|e| failed(io::Error::other(e)))?;
        let process = setup.reaper.spawn(&mut command).map_err(failed)?;
        drop(command); // with it our copies of the program's ends
        let this = Self { program: path(), process: Some(process), copies: setup.copies.clone() };
        // It writes a byte or closes the pipe. One that ends does so too: then its pipes break.
        let mut ready = Receiver::from_owned_fd(ready.into()).map_err(failed)?;
        match timeout(READY, ready.read(&mut [0])).await {
            Ok(Ok(0)) if program.says_ready => Err(IoError::LoggerFailed(path())),
            Ok(Ok(_)) => Ok((this, stdout_writer.into(), stderr_writer.into())),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(IoError::LoggerNotReady(path())),
        }
    }

    /// Lets it take in what is left and end, in the background; the shim waits for it before it ends.
    pub fn end(mut self) {
        self.end_after(LINGER);
    }

    fn end_after(&mut self, linger: Duration) {
        let Some(mut process) = self.process.take() else { return };
        let (program, pending) = (std::mem::take(&mut self.program), self.copies.begin_end());
        tokio::spawn(async move {
            for (limit, signal) in [(linger, Signal::TERM), (TERM, Signal::KILL)] {
                // The reaper lives as long as the shim.
                if timeout(limit, &mut process.exited).await.is_ok() {
                    break;
                }
                log::warn!("logging program {} goes on after its process: {signal:?}", program.display());
                send(&process, signal);
            }
            drop(pending);
        });
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.end_after(Duration::ZERO);
    }
}

fn send(process: &Claim, signal: Signal) {
    if let Some(pidfd) = &process.pidfd {
        let _ = pidfd_send_signal(pidfd, signal); // it may have ended by itself
    }
}
