//! One process of a container: its state, its streams, and the lock on the steps of its life.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{self, watch};

use super::{
    EngineError,
    state::{Exit, State, Step},
};
use crate::io::{IoError, ProcessIo, Stdio};

/// A container's init, or one exec.
pub struct Process {
    exec_id: String,
    stdio: Stdio,
    state: watch::Sender<State>,
    steps: sync::Mutex<()>,
    live: Mutex<Live>,
}

/// What a process has once it is there.
#[derive(Default)]
struct Live {
    io: Option<Arc<ProcessIo>>,
    pidfd: Option<Arc<OwnedFd>>,
    /// A client was done with its input before the process was there to be told.
    stdin_closed: bool,
}

impl Process {
    /// `exec_id` is empty for the init.
    pub fn new(exec_id: String, stdio: Stdio) -> Self {
        let (state, steps, live) = (watch::Sender::new(State::Added), sync::Mutex::new(()), Mutex::default());
        Self { exec_id, stdio, state, steps, live }
    }

    /// Empty for the init.
    pub fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// Where its streams go.
    pub fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    /// Its state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits for its end. Also returns for a process that is deleted meanwhile, and, with no exit, for one whose start failed.
    pub async fn wait(&self) -> Option<Exit> {
        let mut state = self.state.subscribe();
        let over = |state: &State| state.exit().is_some() || *state == State::Failed;
        // The sender is `self`: it cannot be gone.
        state.wait_for(over).await.map_or(None, |state| state.exit())
    }

    /// Waits for the turn to take a step of its life. Steps are taken one at a time; the exit is one too, so it is
    /// never reported before the start.
    pub async fn step(&self) -> sync::MutexGuard<'_, ()> {
        self.steps.lock().await
    }

    /// Records what was made. Its state is still to be set.
    pub fn attach(&self, io: ProcessIo, pidfd: Option<OwnedFd>) {
        let mut live = self.live();
        if live.stdin_closed {
            io.close_stdin();
        }
        (live.io, live.pidfd) = (Some(Arc::new(io)), pidfd.map(Arc::new));
    }

    /// Opens its input, if it has one.
    ///
    /// # Errors
    /// When the FIFO cannot be opened.
    pub fn open_stdin(&self) -> Result<(), EngineError> {
        let live = self.live();
        if let Some(io) = &live.io {
            io.open_stdin()?;
            if live.stdin_closed {
                io.close_stdin();
            }
        }
        Ok(())
    }

    /// Its input ends with the clients that write to it now.
    pub fn close_stdin(&self) {
        let mut live = self.live();
        live.stdin_closed = true;
        if let Some(io) = &live.io {
            io.close_stdin();
        }
    }

    /// Moves on, unless the process has ended.
    pub fn advance(&self, state: State) {
        self.state.send_if_modified(|now| {
            let moves = now.exit().is_none();
            if moves {
                *now = state;
            }
            moves
        });
    }

    /// Records its end. An exec lets its streams go, as a client may never delete it (`ctr task exec -d`) and a shim has
    /// only so many descriptors; an init keeps them for a client that attaches once more to read what is left.
    pub fn end(&self, exit: Exit) {
        self.live().pidfd = None;
        if !self.exec_id.is_empty() {
            self.release_io();
        }
        self.state.send_modify(|state| *state = state.ended(exit));
    }

    /// The process itself, while it is there, and its number. It may have ended without that having been reported.
    pub fn live_process(&self) -> Option<(Arc<OwnedFd>, i32)> {
        let pidfd = self.live().pidfd.clone()?;
        Some((pidfd, self.state().live_pid()?))
    }

    /// Its streams, once it has them.
    pub fn io(&self) -> Option<Arc<ProcessIo>> {
        self.live().io.clone()
    }

    /// Lets its streams go.
    pub fn release_io(&self) {
        if let Some(io) = self.live().io.take() {
            io.release();
        }
    }

    /// # Errors
    /// When it has none in this state, or the kernel refuses.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), EngineError> {
        if self.exec_id.is_empty() && self.state().exit().is_some() {
            // The terminal went with the process, between the client's look at its window and its call. (Of an exec,
            // containerd's own shim says that it has ended.)
            return Ok(());
        }
        self.state().allow(Step::Resize)?;
        self.io().map_or(Ok::<_, IoError>(()), |io| io.resize(width, height))?;
        Ok(())
    }

    /// Signals the very process that was started, whatever has become of its pid.
    ///
    /// # Errors
    /// [`EngineError::Finished`] when it has ended; the kernel's otherwise.
    pub fn signal(&self, signal: u32) -> Result<(), EngineError> {
        let live = self.live();
        let pidfd = live.pidfd.as_ref().ok_or(EngineError::Finished)?;
        overlayfs_utils::send_signal(pidfd.as_fd(), signal.cast_signed()).map_err(|e| match e {
            rustix::io::Errno::SRCH => EngineError::Finished,
            rustix::io::Errno::INVAL => EngineError::UnknownSignal(signal),
            e => EngineError::Signal(signal, e.into()),
        })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a process that did not begin, for those who wait for it when it is deleted: containerd's own shim lets them
/// wait for as long as it lives.
pub const NEVER_STARTED: Exit = Exit { status: 255, at: std::time::SystemTime::UNIX_EPOCH };

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, time::SystemTime};

    use super::*;
    use crate::io::Copies;

    const EXIT: Exit = Exit { status: 0, at: SystemTime::UNIX_EPOCH };

    /// What a process that printed `text` and ended leaves to its client, and whether it keeps its streams.
    async fn end_of(exec_id: &str, text: &str) -> (String, bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let client = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut read = String::new();
                File::open(path).unwrap().read_to_string(&mut read).unwrap();
                read
            }
        });
        let stdio = Stdio::parse("", path.to_str().unwrap(), "", false).unwrap();
        let (copies, reaper) = (Copies::default(), crate::reaper::Reaper::idle());
        let setup = crate::io::Setup {
            owner: (0, 0),
            id: exec_id,
            namespace: "ns",
            buffer: None,
            copies: &copies,
            reaper: &reaper,
        };
        let (streams, io) = ProcessIo::pipes(&stdio, &setup).await.unwrap();
        let process = Process::new(exec_id.to_owned(), stdio);
        process.attach(io, None);
        rustix::io::write(streams.stdout.as_ref().unwrap(), text.as_bytes()).unwrap();
        drop(streams);
        process.io().unwrap().drained().await;
        process.end(EXIT);
        let keeps = process.io().is_some();
        process.release_io();
        let read = tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
        (read, keeps)
    }

    #[test]
    fn real_time_signals_reach_the_process() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let process = Process::new("exec".to_owned(), Stdio::default());
        process.live().pidfd = Some(Arc::new(pidfd));
        assert!(matches!(process.signal(65), Err(EngineError::UnknownSignal(65))));
        process.signal(40).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(40));
        assert!(matches!(process.signal(40), Err(EngineError::Finished)));
    }

    #[tokio::test]
    async fn a_failed_start_is_told_to_who_waits_then_and_later() {
        let process = Arc::new(Process::new("exec".to_owned(), Stdio::default()));
        let waiting = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        process.advance(State::Failed);
        assert_eq!((waiting.await.unwrap(), process.wait().await), (None, None));
        process.end(EXIT);
        assert_eq!(process.wait().await, Some(EXIT));
    }

    #[tokio::test]
    async fn an_exec_that_is_never_deleted_keeps_no_descriptors() {
        assert_eq!(end_of("exec", "hello").await, ("hello".to_owned(), false));
        assert_eq!(end_of("", "hello").await, ("hello".to_owned(), true));
    }
}
