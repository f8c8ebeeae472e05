//! Why a step of the engine failed, in one line for who asked for it.

use std::path::PathBuf;

use thiserror::Error;

use super::{id, state::Refused};
use crate::{
    bundle::BundleError,
    creation::CreationError,
    hotplug::{JournalError, UpdateError},
    io::IoError,
    node::NodeError,
    oci::RuntimeError,
    options::OptionsError,
    rootfs::RootfsError,
    seccomp::RecordError,
    stats::StatsError,
};

/// Why a task's step failed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// An id that is none.
    #[error("{0:?} is not a valid id: use letters, digits, '.', '_' and '-', at most {max}", max = id::MAX)]
    Id(String),
    /// No such container.
    #[error("container {0:?} is not served by this shim")]
    NoContainer(String),
    /// No such exec.
    #[error("container {container:?} has no process {exec:?}")]
    NoExec {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// The container is there, or being made.
    #[error("container {0:?} exists")]
    Exists(String),
    /// The exec is there.
    #[error("container {container:?} has a process {exec:?} already")]
    ExecExists {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// The state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// An exec that has not been started has no process to signal.
    #[error("process {exec:?} of container {container:?} has not been started")]
    NotMade {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// No such sandbox.
    #[error("sandbox {0:?} is not served by this shim")]
    NoSandbox(String),
    /// A sandbox starts once.
    #[error("sandbox {0:?} cannot be started: it is {1}")]
    SandboxPhase(String, &'static str),
    /// No process can be started.
    #[error("the init process of container {0:?} is not running")]
    InitGone(String),
    /// The process to signal has ended.
    #[error("process already finished")]
    Finished,
    /// A signal that the kernel did not deliver.
    #[error("cannot send signal {0}")]
    Signal(u32, #[source] std::io::Error),
    /// A number that is no signal.
    #[error("there is no signal {0}: use 1 to 64")]
    UnknownSignal(u32),
    /// The process description of an exec.
    #[error("the process of exec {0:?} is not a JSON object")]
    ExecSpec(String, #[source] Option<serde_json::Error>),
    /// See [`OptionsError`].
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// See [`BundleError`].
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// See [`RootfsError`].
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// See [`IoError`].
    #[error(transparent)]
    Io(#[from] IoError),
    /// See [`RuntimeError`].
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Its control groups were not found when it was made.
    #[error("the control groups of container {0:?} are not known")]
    NoCgroup(String),
    /// See [`StatsError`].
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// What an update is to change.
    #[error("the resources for container {0:?} are not a JSON object")]
    Resources(String, #[source] serde_json::Error),
    /// See [`UpdateError`].
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// See [`CreationError`].
    #[error(transparent)]
    Creation(#[from] CreationError),
    /// See [`NodeError`].
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The container was made and did not end.
    #[error("container {0:?} did not end")]
    Undead(String),
    /// What is mounted from outside cannot be written down.
    #[error(
        "container {container:?} cannot be checkpointed with capsules attached ({attached}): detach them first, and attach them again afterwards"
    )]
    HasCapsules {
        /// The container.
        container: String,
        /// What is attached.
        attached: String,
    },
    /// A checkpoint that was not made.
    #[error("no checkpoint (criu's log, if it has one: {})", log.display())]
    Checkpoint {
        /// criu's log.
        log: PathBuf,
        /// Why.
        #[source]
        source: RuntimeError,
    },
    /// What is attached is not known.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A process cannot be denied what capsules deny.
    #[error("the system calls cannot be denied that its capsules deny")]
    Denials(#[from] RecordError),
    /// Its client asked for its deletion, or its shim's end, before it was made.
    #[error("container {0:?} was deleted while it was made")]
    Abandoned(String),
    /// A container would die with the shim.
    #[error("container {0:?} cannot be made: the shim is ending; try again, and another is started")]
    Ending(String),
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
