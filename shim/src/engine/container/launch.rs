//! Making a process: its streams, the runtime's command, and the claim on what came of it.

use std::{fs, path::Path, time::Duration};

use tokio::time::timeout;

use super::Container;
use crate::{
    bundle::{read_pid_file, write_private},
    engine::{EngineError, Process},
    hotplug,
    io::{ConsoleSocket, IoError, ProcessIo, Setup},
    oci::{Images, NewProcess, RuntimeError, Streams},
    reaper::Claim,
    seccomp::Narrowed,
};

/// How long the runtime may take to hand over a terminal after it has reported success.
const TERMINAL: Duration = Duration::from_secs(10);

pub(super) enum Launch<'a> {
    Init,
    /// What describes it, and where the runtime's records are if not where they are.
    Exec(&'a Path, Option<&'a Path>),
    Restore(&'a Images<'a>),
}

pub(super) struct Launched {
    pub(super) pid: i32,
    pub(super) io: ProcessIo,
    pub(super) claim: Claim,
}

impl Container {
    pub(super) async fn launch_exec(
        &self,
        exec_id: &str,
        process: &Process,
    ) -> Result<Launched, EngineError> {
        let mut spec = self.execs().get(exec_id).map(|exec| exec.spec.clone()).unwrap_or_default();
        let denied = hotplug::add_to_process(self.bundle.path(), &mut spec)?;
        let spec = spec.to_string();
        let file = |suffix| self.bundle.exec_file(exec_id, suffix);
        // Kept until the runtime is done.
        let narrowed = match denied.is_empty() {
            true => None,
            false => Some(Narrowed::copy(&self.runtime.record(self.id.as_str()), file("record"), &denied)?),
        };
        let (spec_file, pid_file, log) = (file("json"), file("pid"), file("log"));
        write_private(&spec_file, spec.as_bytes())?;
        let root = narrowed.as_ref().map(Narrowed::root);
        let launched = self.launch(process, Launch::Exec(&spec_file, root), &pid_file, &log).await;
        for path in [spec_file, pid_file, log] {
            // The log is there only after a failure, the pid only after success.
            let _ = fs::remove_file(path);
        }
        launched
    }

    /// Has the runtime make a process with its streams, and claims it.
    pub(super) async fn launch(
        &self,
        process: &Process,
        launch: Launch<'_>,
        pid_file: &Path,
        log: &Path,
    ) -> Result<Launched, EngineError> {
        let (stdio, setup) = (process.stdio(), self.io_setup(process));
        let watch = self.host.reaper.watch();
        if !stdio.terminal {
            let (streams, io) = ProcessIo::pipes(stdio, &setup).await?;
            let made = async {
                if let Launch::Exec(..) = launch {
                    io.open_stdin()?;
                }
                self.make(launch, NewProcess { pid_file, log, console: None, streams }).await?;
                Ok(read_pid_file(pid_file)?)
            };
            return match made.await {
                Ok(pid) => Ok(Launched { pid, io, claim: watch.claim(pid) }),
                Err(error) => {
                    // The runtime may have written to its streams, and nobody need ever read that.
                    io.release();
                    Err(error)
                }
            };
        }
        let is_exec = matches!(launch, Launch::Exec(..));
        let console = ConsoleSocket::bind()?;
        let streams = Streams::default();
        self.make(launch, NewProcess { pid_file, log, console: Some(console.path()), streams }).await?;
        let pid = read_pid_file(pid_file)?;
        let claim = watch.claim(pid);
        let late = || IoError::Terminal(std::io::ErrorKind::TimedOut.into());
        let received = timeout(TERMINAL, console.receive()).await.map_err(|_| late());
        let io = match received.and_then(|received| received) {
            Ok(master) => ProcessIo::terminal(stdio, master, &setup).await.and_then(|io| {
                let opened = if is_exec { io.open_stdin() } else { Ok(()) };
                // Nobody need ever read what it may have written.
                opened.inspect_err(|_| io.release()).map(|()| io)
            }),
            Err(error) => Err(error),
        };
        if let (Err(_), Some(pidfd)) = (&io, &claim.pidfd) {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
        Ok(Launched { pid, io: io?, claim })
    }

    fn io_setup<'a>(&'a self, process: &'a Process) -> Setup<'a> {
        let is_init = process.exec_id().is_empty();
        Setup {
            owner: self.io_owner,
            id: if is_init { self.id.as_str() } else { process.exec_id() },
            namespace: &self.host.namespace,
            // A person may watch an exec: of that nothing is dropped.
            buffer: self.log_buffer.filter(|_| is_init),
            copies: &self.host.copies,
            reaper: &self.host.reaper,
        }
    }

    async fn make(&self, launch: Launch<'_>, new: NewProcess<'_>) -> Result<(), RuntimeError> {
        match launch {
            Launch::Init => self.runtime.create(self.id.as_str(), new).await,
            Launch::Exec(spec, None) => self.runtime.exec(self.id.as_str(), spec, new).await,
            Launch::Exec(spec, Some(root)) => {
                self.runtime.with_root(root).exec(self.id.as_str(), spec, new).await
            }
            Launch::Restore(images) => self.runtime.restore(self.id.as_str(), images, new).await,
        }
    }
}
