//! The life cycle of one process, as values: which states there are, and which step leads from one to the next.
//!
//! Pure: no clock, no process, no lock.

use std::{fmt, time::SystemTime};

use thiserror::Error;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell reports it: the exit code, or 128 and the number of the signal that ended it.
    pub status: u32,
    /// When the shim reaped it.
    pub at: SystemTime,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Known, not yet made: an exec between `Exec` and `Start`, or an init that `Start` restores from a checkpoint.
    Added,
    /// An exec whose start failed. For clients it is as it was before, so that they can delete it; but it does not begin
    /// any more, and whoever waits for it is told. (containerd's own shim ends when one is started again.)
    Failed,
    /// The runtime has made the container's init, which waits to be started.
    Created {
        /// In the shim's PID namespace, as every pid here.
        pid: i32,
    },
    /// Started.
    Running {
        /// See [`State::Created`].
        pid: i32,
    },
    /// Frozen with all its container.
    Paused {
        /// See [`State::Created`].
        pid: i32,
    },
    /// Ended, or never to begin (`pid` 0).
    Stopped {
        /// The pid it had.
        pid: i32,
        /// How it ended.
        exit: Exit,
    },
}

/// What clients are told of a process' state, in containerd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not started.
    Created,
    /// Started.
    Running,
    /// About to be frozen.
    Pausing,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

impl Status {
    /// That of an exec whose own this is, in a container with an init in the status `init`. What freezes a container freezes
    /// all that is in it, and containerd's own shim says so even of execs that have ended or have not begun.
    pub fn beside(self, init: Self) -> Self {
        match init {
            Self::Pausing | Self::Paused => init,
            Self::Created | Self::Running | Self::Stopped => self,
        }
    }
}

/// A step that the present state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot {step} a process that is {state}")]
pub struct Refused {
    step: Step,
    state: &'static str,
}

/// What can be asked of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To start it.
    Start,
    /// To freeze its container.
    Pause,
    /// To thaw its container.
    Resume,
    /// To send it a signal.
    Signal,
    /// To forget it.
    Delete,
    /// To change its terminal's size. An exec has none before its start, which is no error.
    Resize,
    /// To change its container's resources.
    Update,
    /// To add an exec beside it, for the init.
    Exec,
    /// To write it down with all its container.
    Checkpoint,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Signal => "signal",
            Self::Delete => "delete",
            Self::Resize => "resize",
            Self::Update => "update",
            Self::Exec => "add a process beside",
            Self::Checkpoint => "checkpoint",
        })
    }
}

impl State {
    /// The state's name in containerd's words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added | Self::Created { .. } => "created",
            Self::Failed => "spoilt by a failed start (delete it and add another)",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// What clients are told.
    pub fn status(self) -> Status {
        match self {
            Self::Added | Self::Failed | Self::Created { .. } => Status::Created,
            Self::Running { .. } => Status::Running,
            Self::Paused { .. } => Status::Paused,
            Self::Stopped { .. } => Status::Stopped,
        }
    }

    /// The pid, 0 while there is none.
    pub fn pid(self) -> i32 {
        match self {
            Self::Added | Self::Failed => 0,
            Self::Created { pid }
            | Self::Running { pid }
            | Self::Paused { pid }
            | Self::Stopped { pid, .. } => pid,
        }
    }

    /// The pid while the process is there. One that waits to be started counts: its root is what its first program will
    /// see. A paused one does too: what is frozen keeps its mounts, and they can be changed.
    pub fn live_pid(self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid } | Self::Paused { pid } => Some(pid),
            Self::Added | Self::Failed | Self::Stopped { .. } => None,
        }
    }

    /// How it ended, once it has.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// Whether `step` may be taken now. Every rule of the life cycle is in this one table.
    ///
    /// # Errors
    /// [`Refused`] when it may not.
    pub fn allow(self, step: Step) -> Result<(), Refused> {
        let allowed = match (step, self) {
            (Step::Start, Self::Added | Self::Created { .. })
            | (Step::Pause, Self::Running { .. })
            | (Step::Resume, Self::Paused { .. })
            | (Step::Signal, Self::Created { .. } | Self::Running { .. } | Self::Paused { .. })
            | (Step::Update, Self::Created { .. } | Self::Running { .. } | Self::Paused { .. })
            | (
                Step::Resize,
                Self::Added
                | Self::Failed
                | Self::Created { .. }
                | Self::Running { .. }
                | Self::Paused { .. },
            )
            | (Step::Exec, Self::Created { .. } | Self::Running { .. })
            | (Step::Checkpoint, Self::Running { .. } | Self::Paused { .. })
            | (Step::Delete, Self::Added | Self::Failed | Self::Created { .. } | Self::Stopped { .. }) => {
                true
            }
            (
                Step::Start
                | Step::Pause
                | Step::Resume
                | Step::Signal
                | Step::Resize
                | Step::Update
                | Step::Exec
                | Step::Checkpoint
                | Step::Delete,
                Self::Added
                | Self::Failed
                | Self::Created { .. }
                | Self::Running { .. }
                | Self::Paused { .. }
                | Self::Stopped { .. },
            ) => false,
        };
        if allowed { Ok(()) } else { Err(Refused { step, state: self.name() }) }
    }

    /// The state after the process has ended. The first end counts: a process ends once.
    pub fn ended(self, exit: Exit) -> Self {
        match self {
            Self::Stopped { .. } => self,
            _ => Self::Stopped { pid: self.pid(), exit },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };

    #[test]
    fn steps_are_allowed_only_where_they_lead_somewhere() {
        let states = [
            State::Added,
            State::Failed,
            State::Created { pid: 7 },
            State::Running { pid: 7 },
            State::Paused { pid: 7 },
            State::Stopped { pid: 7, exit: EXIT },
        ];
        // One row per step, one column per state above.
        let table = [
            (Step::Start, [true, false, true, false, false, false]),
            (Step::Pause, [false, false, false, true, false, false]),
            (Step::Resume, [false, false, false, false, true, false]),
            (Step::Signal, [false, false, true, true, true, false]),
            (Step::Update, [false, false, true, true, true, false]),
            (Step::Resize, [true, true, true, true, true, false]),
            (Step::Exec, [false, false, true, true, false, false]),
            (Step::Checkpoint, [false, false, false, true, true, false]),
            (Step::Delete, [true, true, true, false, false, true]),
        ];
        for (step, row) in table {
            for (state, expected) in states.into_iter().zip(row) {
                assert_eq!(state.allow(step).is_ok(), expected, "{step} when {state:?}");
            }
        }
    }

    #[test]
    fn a_process_that_waits_or_is_paused_lives() {
        let states = [
            (State::Added, None),
            (State::Failed, None),
            (State::Created { pid: 7 }, Some(7)),
            (State::Running { pid: 7 }, Some(7)),
            (State::Paused { pid: 7 }, Some(7)),
            (State::Stopped { pid: 7, exit: EXIT }, None),
        ];
        for (state, expected) in states {
            assert_eq!(state.live_pid(), expected, "{state:?}");
        }
    }

    #[test]
    fn an_exec_is_frozen_with_its_init() {
        let all = [Status::Created, Status::Running, Status::Pausing, Status::Paused, Status::Stopped];
        for init in all {
            for own in [Status::Created, Status::Running, Status::Stopped] {
                let frozen = matches!(init, Status::Pausing | Status::Paused);
                assert_eq!(own.beside(init), if frozen { init } else { own }, "{own:?} beside {init:?}");
            }
        }
    }

    #[test]
    fn the_first_exit_counts() {
        let stopped = State::Running { pid: 7 }.ended(EXIT);
        assert_eq!(stopped, State::Stopped { pid: 7, exit: EXIT });
        assert_eq!(stopped.ended(Exit { status: 9, ..EXIT }), stopped);
        assert_eq!(State::Added.ended(EXIT).pid(), 0);
    }

    #[test]
    fn a_refusal_names_the_step_and_the_state() {
        let refused = State::Running { pid: 7 }.allow(Step::Delete).unwrap_err();
        assert_eq!(refused.to_string(), "cannot delete a process that is running");
        let refused = State::Failed.allow(Step::Start).unwrap_err().to_string();
        assert_eq!(
            refused,
            "cannot start a process that is spoilt by a failed start (delete it and add another)"
        );
    }
}
