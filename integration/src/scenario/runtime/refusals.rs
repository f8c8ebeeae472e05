//! Every call in every state, above all in those in which it means nothing: the status code that clients see.
//!
//! Programs decide by these codes what to do next, so they are containerd's own, call by call. The tables are what
//! `io.containerd.runc.v2` answers; running them on it keeps them true.

use anyhow::{Result, ensure};
use tonic::Code;

use super::Case;
use super::bed::{Bed, SLEEP};
use super::client::code;
use super::task::{Stdio, Task, process};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("calls about a container without a task", |bed| {
        let task = Task::container(bed, "absent", &[], &SLEEP)?;
        expect(&task, ABSENT)?;
        task.forget().map(|()| String::new())
    }),
    Case::new("calls about a task that waits to be started", |bed| {
        let task = Task::created(bed, "created", &Stdio::default(), &SLEEP)?;
        expect(&task, CREATED)?;
        task.remove().map(|()| String::new())
    })
    .needs(CGROUPS),
    Case::new("calls about a task that runs", |bed| {
        let task = Task::started(bed, "running", &Stdio::default(), &SLEEP)?;
        expect(&task, RUNNING)?;
        task.remove().map(|()| String::new())
    })
    .needs(CGROUPS)
    .in_vm(),
    Case::new("calls about a task that is paused", |bed| {
        let task = Task::started(bed, "paused", &Stdio::default(), &SLEEP)?;
        task.pause()?;
        let outcome = expect(&task, PAUSED);
        task.resume()?;
        outcome?;
        task.remove().map(|()| String::new())
    })
    .needs(CGROUPS),
    Case::new("calls about a task that has ended", |bed| {
        let task = Task::started(bed, "stopped", &Stdio::default(), &SLEEP)?;
        task.run_exec("e1", &Stdio::default(), &["/bin/true"])?;
        task.wait("e1")?;
        task.end()?;
        expect(&task, STOPPED)?;
        task.remove().map(|()| String::new())
    }),
    Case::new("calls about an exec that waits to be started", |bed| {
        exec_case(bed, EXEC_ADDED, |task| Ok(task.exec("e1", &Stdio::default(), &SLEEP)?))
    }),
    Case::new("calls about an exec that runs", |bed| {
        exec_case(bed, EXEC_RUNNING, |task| task.run_exec("e1", &Stdio::default(), &SLEEP).map(drop))
    }),
    Case::new("an exec that runs cannot be started again", |bed| {
        exec_case(bed, &[(Ask::ExecStartAgain, Code::Unknown), (Ask::ExecGet, Code::Ok)], |task| {
            task.run_exec("e1", &Stdio::default(), &SLEEP).map(drop)
        })
    })
    .forgiven("its shim panics when an exec that was started twice ends", &["ttrpc: closed", "not found"]),
    Case::new("calls about an exec whose start failed", |bed| exec_case(bed, EXEC_FAILED, start_failed)),
    // It is said to be created, but that shim closes a channel for the second time then. With ours it can only be deleted:
    // who waits for it has been told already.
    Case::new("an exec whose start failed cannot be started again", |bed| {
        exec_case(bed, EXEC_FAILED_AGAIN, start_failed)
    })
    .forgiven("its shim panics when such an exec is started again", &["answers NotFound instead of"]),
    Case::new("calls about an exec that has ended", |bed| {
        exec_case(bed, EXEC_STOPPED, |task| {
            task.run_exec("e1", &Stdio::default(), &["/bin/true"])?;
            Ok(task.wait("e1").map(drop)?)
        })
    }),
    Case::new("calls about an exec that is not there", |bed| exec_case(bed, EXEC_ABSENT, |_| Ok(()))),
];

/// Without them, no runtime tells pids or freezes.
const CGROUPS: &[super::Need] = &[super::Need::Cgroups];

/// A call; the first word names its method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Get,
    Create,
    Start,
    Delete,
    Pids,
    Metrics,
    Pause,
    Resume,
    Resize,
    CloseStdin,
    Update,
    UpdateNonsense,
    ExecNonsense,
    /// An exec of which the id is no identifier.
    ExecOddId,
    /// The exec `x`.
    Exec,
    /// Start of the exec `x`.
    ExecStart,
    /// With signal 0, which asks only whether the process is there.
    KillNothing,
    /// With the first number that is no signal.
    Kill65,
    KillAll,
    ExecGet,
    ExecDelete,
    ExecKill,
    ExecKill65,
    ExecResize,
    ExecCloseStdin,
    /// The exec `e1`.
    ExecAgain,
    /// Start of the exec `e1`.
    ExecStartAgain,
}

fn ask(task: &Task<'_>, call: Ask) -> Code {
    let nothing = Stdio::default();
    match call {
        Ask::Get => code(&task.get("")),
        Ask::Create => code(&task.create(&nothing)),
        Ask::Start => code(&task.start("")),
        Ask::Delete => code(&task.delete()),
        Ask::Pids => code(&task.pids()),
        Ask::Metrics => code(&task.metrics()),
        Ask::Pause => code(&task.pause()),
        Ask::Resume => code(&task.resume()),
        Ask::Resize => code(&task.resize("", 80, 24)),
        Ask::CloseStdin => code(&task.close_stdin("")),
        Ask::Update => code(&task.update("{}")),
        Ask::UpdateNonsense => code(&task.update("nonsense")),
        Ask::ExecNonsense => {
            let spec = prost_types::Any { value: b"nonsense".to_vec(), ..process(&[], false) };
            code(&task.exec_spec("nonsense", &nothing, spec))
        }
        Ask::ExecOddId => code(&task.exec("a/b", &nothing, &SLEEP)),
        Ask::Exec => code(&task.exec("x", &nothing, &SLEEP)),
        Ask::ExecStart => code(&task.start("x")),
        Ask::KillNothing => code(&task.kill("", 0, false)),
        Ask::Kill65 => code(&task.kill("", 65, false)),
        Ask::KillAll => code(&task.kill("", 18, true)),
        Ask::ExecGet => code(&task.get("e1")),
        Ask::ExecDelete => code(&task.delete_exec("e1")),
        Ask::ExecKill => code(&task.kill("e1", 18, false)),
        Ask::ExecKill65 => code(&task.kill("e1", 65, false)),
        Ask::ExecResize => code(&task.resize("e1", 80, 24)),
        Ask::ExecCloseStdin => code(&task.close_stdin("e1")),
        Ask::ExecAgain => code(&task.exec("e1", &nothing, &SLEEP)),
        Ask::ExecStartAgain => code(&task.start("e1")),
    }
}

/// Calls in the order in which they are made, and what each answers.
type Table = &'static [(Ask, Code)];

const ABSENT: Table = &[
    (Ask::Get, Code::NotFound),
    (Ask::Start, Code::NotFound),
    (Ask::Delete, Code::NotFound),
    (Ask::Pids, Code::NotFound),
    (Ask::Metrics, Code::Ok),
    (Ask::Pause, Code::NotFound),
    (Ask::Resume, Code::NotFound),
    (Ask::Resize, Code::NotFound),
    (Ask::CloseStdin, Code::NotFound),
    (Ask::Update, Code::NotFound),
    (Ask::Exec, Code::NotFound),
    (Ask::ExecStart, Code::NotFound),
    (Ask::KillNothing, Code::NotFound),
    (Ask::KillAll, Code::NotFound),
    (Ask::ExecDelete, Code::NotFound),
];

const CREATED: Table = &[
    (Ask::Get, Code::Ok),
    (Ask::Create, Code::AlreadyExists),
    (Ask::Pids, Code::Ok),
    (Ask::Metrics, Code::Ok),
    (Ask::Pause, Code::Unknown),
    (Ask::Resume, Code::Unknown),
    (Ask::Resize, Code::Ok),
    (Ask::CloseStdin, Code::Ok),
    (Ask::Update, Code::Ok),
    (Ask::UpdateNonsense, Code::Unknown),
    (Ask::ExecNonsense, Code::Unknown),
    (Ask::ExecOddId, Code::InvalidArgument),
    (Ask::Exec, Code::Ok),
    (Ask::KillNothing, Code::Ok),
    (Ask::Kill65, Code::Unknown),
    (Ask::KillAll, Code::Ok),
    (Ask::ExecGet, Code::NotFound),
];

const RUNNING: Table = &[
    (Ask::Get, Code::Ok),
    (Ask::Create, Code::AlreadyExists),
    (Ask::Start, Code::Unknown),
    (Ask::Delete, Code::Unknown),
    (Ask::Pids, Code::Ok),
    (Ask::Metrics, Code::Ok),
    (Ask::Resume, Code::Unknown),
    (Ask::Resize, Code::Ok),
    (Ask::CloseStdin, Code::Ok),
    (Ask::Update, Code::Ok),
    (Ask::UpdateNonsense, Code::Unknown),
    (Ask::ExecNonsense, Code::Unknown),
    (Ask::ExecOddId, Code::InvalidArgument),
    (Ask::KillNothing, Code::Ok),
    (Ask::Kill65, Code::Unknown),
    (Ask::KillAll, Code::Ok),
];

const PAUSED: Table = &[
    (Ask::Get, Code::Ok),
    (Ask::Create, Code::AlreadyExists),
    (Ask::Start, Code::Unknown),
    (Ask::Delete, Code::Unknown),
    (Ask::Pids, Code::Ok),
    (Ask::Metrics, Code::Ok),
    (Ask::Pause, Code::Unknown),
    (Ask::Resize, Code::Ok),
    (Ask::CloseStdin, Code::Ok),
    (Ask::Update, Code::Ok),
    (Ask::Exec, Code::Unknown),
    (Ask::KillNothing, Code::Ok),
];

const STOPPED: Table = &[
    (Ask::Get, Code::Ok),
    (Ask::Create, Code::AlreadyExists),
    (Ask::Start, Code::Unknown),
    (Ask::Pids, Code::Ok),
    (Ask::Metrics, Code::Ok),
    (Ask::Pause, Code::Unknown),
    (Ask::Resume, Code::Unknown),
    (Ask::Resize, Code::Ok),
    (Ask::CloseStdin, Code::Ok),
    (Ask::Update, Code::Unknown),
    (Ask::Exec, Code::Unknown),
    (Ask::ExecStartAgain, Code::FailedPrecondition),
    (Ask::KillNothing, Code::NotFound),
    (Ask::Kill65, Code::NotFound),
    (Ask::KillAll, Code::Ok),
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecDelete, Code::Ok),
    (Ask::ExecDelete, Code::NotFound),
];

const EXEC_ADDED: Table = &[
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecAgain, Code::AlreadyExists),
    (Ask::ExecKill, Code::FailedPrecondition),
    (Ask::ExecResize, Code::Ok),
    (Ask::ExecCloseStdin, Code::Ok),
    (Ask::ExecDelete, Code::Ok),
    (Ask::ExecGet, Code::NotFound),
];

const EXEC_RUNNING: Table = &[
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecAgain, Code::AlreadyExists),
    (Ask::ExecKill, Code::Ok),
    (Ask::ExecKill65, Code::Unknown),
    (Ask::ExecResize, Code::Ok),
    (Ask::ExecCloseStdin, Code::Ok),
    (Ask::ExecDelete, Code::Unknown),
];

const EXEC_FAILED: Table = &[
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecAgain, Code::AlreadyExists),
    (Ask::ExecKill, Code::FailedPrecondition),
    (Ask::ExecKill65, Code::FailedPrecondition),
    (Ask::ExecResize, Code::Ok),
    (Ask::ExecCloseStdin, Code::Ok),
    (Ask::ExecDelete, Code::Ok),
    (Ask::ExecGet, Code::NotFound),
];

const EXEC_FAILED_AGAIN: Table = &[
    (Ask::ExecStartAgain, Code::Unknown),
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecDelete, Code::Ok),
    (Ask::Get, Code::Ok),
];

const EXEC_STOPPED: Table = &[
    (Ask::ExecGet, Code::Ok),
    (Ask::ExecAgain, Code::AlreadyExists),
    (Ask::ExecKill, Code::NotFound),
    (Ask::ExecKill65, Code::NotFound),
    (Ask::ExecResize, Code::Unknown),
    (Ask::ExecCloseStdin, Code::Ok),
    (Ask::ExecDelete, Code::Ok),
    (Ask::ExecDelete, Code::NotFound),
];

const EXEC_ABSENT: Table = &[
    (Ask::ExecGet, Code::NotFound),
    (Ask::ExecStartAgain, Code::NotFound),
    (Ask::ExecKill, Code::NotFound),
    (Ask::ExecResize, Code::NotFound),
    (Ask::ExecCloseStdin, Code::NotFound),
    (Ask::ExecDelete, Code::NotFound),
];

fn start_failed(task: &Task<'_>) -> Result<()> {
    task.exec("e1", &Stdio::default(), &["/no/such/program"])?;
    ensure!(task.start("e1").is_err(), "a program that is not there was started");
    Ok(())
}

fn exec_case(bed: &Bed, table: Table, prepare: fn(&Task<'_>) -> Result<()>) -> Result<String> {
    let task = Task::started(bed, "execs", &Stdio::default(), &SLEEP)?;
    prepare(&task)?;
    expect(&task, table)?;
    task.remove().map(|()| String::new())
}

fn expect(task: &Task<'_>, table: Table) -> Result<()> {
    let mut wrong = Vec::new();
    for (call, expected) in table {
        let seen = ask(task, *call);
        if seen != *expected {
            wrong.push(format!("{call:?} answers {seen:?} instead of {expected:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
