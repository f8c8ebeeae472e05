//! The calls for which a shim runs one command of the OCI runtime, and what can be seen of a container before and after.

use anyhow::{Context as _, Result};
use capsule_proto::containerd::v1::types::Status as TaskStatus;
use tonic::{Code, Status};

use super::bed::SLEEP;
use super::cgroups::group::Group;
use super::client::Answer;
use super::faulty::Faulty;
use super::task::{Stdio, Task};

/// What a container's memory is limited to.
pub const LIMIT: u64 = 67_108_864;
/// And after an update.
pub const UPDATED: u64 = 100_663_296;

/// A call for which a shim runs one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Of the task.
    Create,
    /// Of its init.
    Start,
    /// Start of the exec `e`.
    Exec,
    /// With signal 9.
    Kill,
    /// All its processes.
    Pause,
    /// Likewise.
    Resume,
    /// To [`UPDATED`].
    Update,
    /// Of the task.
    Delete,
    /// What runs in it.
    Pids,
}

impl Step {
    /// The command.
    pub fn command(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Pids => "ps",
        }
    }

    /// Brings a container to where the step is the next.
    pub fn prepare(self, task: &Task<'_>, faulty: &Faulty) -> Result<()> {
        if self == Self::Create {
            return Ok(());
        }
        task.create_as(&Stdio::default(), faulty.asked()?).context("create the task")?;
        if self == Self::Start {
            return Ok(());
        }
        task.start("").context("start the task")?;
        match self {
            Self::Resume => task.pause().context("pause the task"),
            Self::Delete => task.end().map(drop),
            _ => Ok(()),
        }
    }

    /// Makes the call.
    pub fn call(self, task: &Task<'_>, faulty: &Faulty) -> Answer<()> {
        match self {
            Self::Create => {
                let asked = faulty.asked().map_err(|error| Status::internal(format!("{error:#}")))?;
                task.create_as(&Stdio::default(), asked).map(drop)
            }
            Self::Start => task.start("").map(drop),
            Self::Exec => {
                task.exec("e", &Stdio::default(), &SLEEP)?;
                task.start("e").map(drop)
            }
            Self::Kill => task.kill("", 9, false),
            Self::Pause => task.pause(),
            Self::Resume => task.resume(),
            Self::Update => task.update(&format!(r#"{{ "memory": {{ "limit": {UPDATED} }} }}"#)),
            Self::Delete => task.delete().map(drop),
            Self::Pids => task.pids().map(drop),
        }
    }

    /// Whether our shim takes the step for done when the command had done it before it was killed. containerd's own takes none
    /// for done.
    pub fn counts(self) -> bool {
        matches!(self, Self::Start | Self::Pause | Self::Resume)
    }
}

/// What can be seen of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// None when there is no task.
    pub status: Option<TaskStatus>,
    /// How many processes run in it.
    pub processes: usize,
    /// What its control group allows, while there is one.
    pub limit: Option<u64>,
}

impl Seen {
    /// Looks at it.
    pub fn of(task: &Task<'_>) -> Result<Self> {
        let process = match task.get("") {
            Ok(process) => process,
            Err(status) if status.code() == Code::NotFound => {
                return Ok(Self { status: None, processes: 0, limit: None });
            }
            Err(status) => return Err(status).context("look at the task"),
        };
        let group = Group::of(process.pid).ok();
        Ok(Self {
            status: Some(process.status()),
            processes: group.as_ref().and_then(processes_in).unwrap_or_default(),
            limit: group.as_ref().and_then(limit_of),
        })
    }
}

/// The same for version 1 and 2. Not `ps`, which is one of the commands that are killed here.
fn processes_in(group: &Group) -> Option<usize> {
    Some(group.read("memory", "cgroup.procs").ok()?.lines().count())
}

fn limit_of(group: &Group) -> Option<u64> {
    let read = |file| group.read("memory", file).ok()?.parse().ok();
    read("memory.max").or_else(|| read("memory.limit_in_bytes"))
}
