//! The one place where children are reaped and exits are handed to whoever waits for them.
//!
//! The shim is a subreaper: the runtime's commands are its children, and every container process becomes one when
//! the runtime command that made it exits. containerd-shim's own loop is not used: it decodes the wait status with a
//! signal type that lacks the real-time signals, and loses the exit of a process that one of them ended.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::{ChildStdin, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use overlayfs_utils::limit_open_files;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Rlimit, WaitOptions, WaitStatus},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::engine::state::Exit;

/// Hands out exits by pid. No exit is lost between a fork and the interest in it: see [`Reaper::spawn`] and
/// [`Reaper::watch`].
pub struct Reaper {
    inner: Mutex<Inner>,
    /// Of the processes that it starts, where it differs from the shim's own.
    open_files: Option<Rlimit>,
}

#[derive(Default)]
struct Inner {
    /// Who waits for which pid.
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    /// Exits that nobody waited for, per open [`Watch`].
    watches: HashMap<u64, Vec<(i32, Exit)>>,
    next_watch: u64,
}

/// Resolves when the process has been reaped.
pub type Exited = oneshot::Receiver<Exit>;

impl Reaper {
    /// Starts reaping on the current tokio runtime. The commands that it starts have this limit of `open_files`, if it is
    /// not the shim's own.
    ///
    /// # Errors
    /// When the handler of `SIGCHLD` cannot be installed.
    pub fn start(open_files: Option<Rlimit>) -> io::Result<Arc<Self>> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Arc::new(Self { inner: Mutex::default(), open_files });
        let looping = reaper.clone();
        tokio::spawn(async move {
            // Signals coalesce: each round takes all there is.
            while children.recv().await.is_some() {
                looping.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a command whose exit only this reaper sees.
    ///
    /// # Errors
    /// When the program cannot be executed.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Claim> {
        self.spawn_with_input(command).map(|(claim, ..)| claim)
    }

    /// The same, with its number and the writing end of its input, if that is a pipe.
    ///
    /// # Errors
    /// As [`Reaper::spawn`].
    pub fn spawn_with_input(&self, command: &mut Command) -> io::Result<(Claim, i32, Option<ChildStdin>)> {
        if let Some(limit) = self.open_files {
            limit_open_files(command, limit);
        }
        // Held over the fork: the child cannot be reaped before its pid is known.
        let mut inner = self.lock();
        // Dropping a `Child` neither waits nor kills.
        let mut child = command.spawn()?;
        let (pid, input) = (child.id().cast_signed(), child.stdin.take());
        let (sender, exited) = oneshot::channel();
        inner.waiting.insert(pid, sender);
        Ok((Claim { exited, pidfd: open_pidfd(pid) }, pid, input))
    }

    /// Begins to remember exits of unknown processes, for a caller that is about to have one made by the runtime and
    /// will learn its pid only afterwards.
    pub fn watch(self: &Arc<Self>) -> Watch {
        let mut inner = self.lock();
        let id = inner.next_watch;
        inner.next_watch += 1;
        inner.watches.insert(id, Vec::new());
        Watch { reaper: self.clone(), id }
    }

    /// A reaper that reaps nothing.
    #[cfg(test)]
    pub fn idle() -> Self {
        Self { inner: Mutex::default(), open_files: None }
    }

    fn reap(&self) {
        // Held over all: a pid is not freed for reuse while someone claims it.
        let mut inner = self.lock();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(status) = exit_status(status) {
                        inner.dispatch(pid.as_raw_nonzero().get(), Exit { status, at: SystemTime::now() });
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("wait for children: {error}");
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn dispatch(&mut self, pid: i32, exit: Exit) {
        if let Some(waiting) = self.waiting.remove(&pid) {
            // Whoever waited may have given up.
            let _ = waiting.send(exit);
        } else {
            for seen in self.watches.values_mut() {
                seen.push((pid, exit));
            }
        }
    }
}

/// A process of which the runtime told the pid.
pub struct Claim {
    /// Its exit.
    pub exited: Exited,
    /// The process itself, however the pid may be reused; nothing when it has been reaped.
    pub pidfd: Option<OwnedFd>,
}

/// Remembers exits while it lives.
pub struct Watch {
    reaper: Arc<Reaper>,
    id: u64,
}

impl Watch {
    /// The process `pid`, whose exit may have happened at any time since the watch began.
    pub fn claim(&self, pid: i32) -> Claim {
        let (sender, exited) = oneshot::channel();
        let mut inner = self.reaper.lock();
        let seen = inner.watches.get(&self.id).and_then(|exits| exits.iter().rev().find(|(p, _)| *p == pid));
        if let Some((_, exit)) = seen {
            let _ = sender.send(*exit);
            return Claim { exited, pidfd: None };
        }
        inner.waiting.insert(pid, sender);
        // Not reaped, so the pid is still this process'.
        Claim { exited, pidfd: open_pidfd(pid) }
    }
}

/// To be called while `pid` is not reaped.
fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    let open = |pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
    Pid::from_raw(pid).and_then(open)
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reaper.lock().watches.remove(&self.id);
    }
}

fn exit_status(status: WaitStatus) -> Option<u32> {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.map(i32::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// In a process of its own: a reaper takes the children of every other test.
    #[test]
    fn exits_reach_who_asked_also_when_they_came_first() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "reaper::tests::alone", "--ignored", "--nocapture"]);
        let output = alone.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[tokio::test]
    #[ignore = "run by exits_reach_who_asked_also_when_they_came_first, in a process of its own"]
    async fn alone() {
        let reaper = Reaper::start(None).unwrap();
        assert_eq!(reaper.spawn(&mut sh("exit 7")).unwrap().exited.await.unwrap().status, 7);
        // Number 40 is a real-time signal.
        assert_eq!(reaper.spawn(&mut sh("kill -40 $$")).unwrap().exited.await.unwrap().status, 168);

        let watch = reaper.watch();
        let pid = sh("exit 5").spawn().unwrap().id().cast_signed();
        // The end of a later child shows that the first one has been reaped too.
        reaper.spawn(&mut sh("sleep 0.1")).unwrap().exited.await.unwrap();
        let claim = watch.claim(pid);
        assert!(claim.pidfd.is_none());
        assert_eq!(claim.exited.await.unwrap().status, 5);

        let pid = sh("sleep 0.1; exit 6").spawn().unwrap().id().cast_signed();
        let claim = watch.claim(pid);
        assert!(claim.pidfd.is_some());
        assert_eq!(claim.exited.await.unwrap().status, 6);
        drop(watch);
        assert!(reaper.lock().watches.is_empty());
        assert!(reaper.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error() {
        let reaper = Reaper::idle();
        assert!(reaper.spawn(&mut Command::new("/nonexistent")).is_err());
        assert!(reaper.lock().waiting.is_empty());
    }
}
