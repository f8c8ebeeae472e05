//! Kill -9 of shims, in each state of a container.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{self, Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::bed::{FILES, SLEEP, eventually};
use super::cgroups::drivers::wait_until_unit_gone;
use super::cgroups::group::Group;
use super::faulty::{Faulty, How};
use super::process::ByHand;
use super::task::{Stdio, Task, read_all, text_of};
use super::traces::Traces;
use super::{Bed, Case, Need};
use crate::images::Image;
use crate::scenario::capsulectl::done;
use crate::scenario::ctr::{Container, OURS, Output, Stack, ctr};
use crate::scenario::world::{World, path};

/// By kills and restarts.
pub const CASES: &[Case] = &[
    Case::new("a shim that is killed while it makes a container", |bed| shim(bed, At::Creating)).in_vm(),
    Case::new("a shim that is killed while a container waits to be started", |bed| shim(bed, At::Created)),
    Case::new("a shim that is killed while a container runs", |bed| shim(bed, At::Running)).in_vm(),
    Case::new("a shim that is killed while a container runs in a scope of systemd", |bed| {
        shim(bed, At::Scope)
    })
    .needs(&[Need::Systemd]),
    Case::new("a shim that is killed while a container is paused", |bed| shim(bed, At::Paused)),
    Case::new("a shim that is killed while it pauses a container", |bed| shim(bed, At::Pausing)),
    Case::new("a shim that is killed while it resumes a container", |bed| shim(bed, At::Resuming)),
    Case::new("a shim that is killed while it kills a container", |bed| shim(bed, At::Killing)),
    Case::new("a shim that is killed while an exec runs", |bed| shim(bed, At::Exec)),
    Case::new("a shim that is killed while it starts an exec", |bed| shim(bed, At::StartingExec)).in_vm(),
    Case::new("a shim that is killed when a container has ended", |bed| shim(bed, At::Stopped)),
    Case::new("a shim that is killed while it deletes a container", |bed| shim(bed, At::Deleting)).in_vm(),
    Case::new("a shim that is killed while it waits for a terminal", terminal),
];

/// The cases of what only ours does.
pub const OWN: &[Case] =
    &[Case::new("a shim that is killed before its start is answered leaves no socket", before_answer)];

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that runs beside the test.
#[derive(Debug)]
pub struct Beside(Child);

impl Beside {
    /// Starts `ctr` with these arguments.
    pub fn ctr(args: &[&str]) -> Result<Self> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", "ctr"]).args(args).env("PATH", path());
        let streams = command
            .stdin(process::Stdio::null())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped());
        streams.spawn().map(Self).context("start ctr")
    }

    /// Waits for its end.
    pub fn end(self) -> Result<Output> {
        let output = self.0.wait_with_output().context("wait for ctr")?;
        Ok(Output {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }
}

/// `kill -9`.
pub fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, Signal::KILL).context("kill -9")
}

/// The shim that was started for this container.
pub fn shim_of(id: &str) -> Result<u32> {
    let all = fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok);
    let found = all.filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let is = words.first()?.contains("containerd-shim")
            && words.windows(2).any(|pair| pair[0].ends_with("-id") && pair[1] == id)
            && !words.iter().any(|word| word == "start" || word == "delete");
        is.then(|| entry.file_name().to_string_lossy().parse().ok()).flatten()
    });
    found.last().with_context(|| format!("no shim of {id}"))
}

/// The arguments of `ctr run` for a container of a stack.
pub fn args_of<'a>(stack: Stack, options: &'a [String], id: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let mut args = stack.words();
    args.extend(options.iter().map(String::as_str));
    args.extend([Image::Busybox.name(), id]);
    args.extend(command);
    args
}

/// Waits until containerd has no task of this container.
pub fn wait_until_gone(id: &str) -> Result<()> {
    let container = std::mem::ManuallyDrop::new(Container { id: id.to_owned() });
    let deadline = Instant::now() + PATIENCE;
    while let Some(task) = container.task()? {
        ensure!(Instant::now() < deadline, "{id} still has a task: {task:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The states in which a shim is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The runtime makes the container.
    Creating,
    /// The container waits to be started.
    Created,
    /// It runs.
    Running,
    /// It runs in a scope of systemd.
    Scope,
    /// It is frozen.
    Paused,
    /// The runtime freezes it.
    Pausing,
    /// The runtime thaws it.
    Resuming,
    /// The runtime sends it a signal.
    Killing,
    /// An exec runs.
    Exec,
    /// The runtime starts an exec.
    StartingExec,
    /// Its init has ended.
    Stopped,
    /// The runtime removes it.
    Deleting,
}

/// Brings a container into a state, kills its shim, and asserts that nothing is left and the id can be used again.
pub(super) fn shim(bed: &Bed, at: At) -> Result<String> {
    let (stack, world) = (bed.stack, &*bed.world());
    let before = Traces::of_idle(world, stack)?;
    let id = bed.id("shim");
    let faulty = Faulty::new(&id, "runc")?;
    let options = match at {
        At::Scope => faulty.options_in_scope(stack, &id)?,
        _ => faulty.options(stack)?.to_vec(),
    };
    let mut run = vec!["run", "-d", "--null-io"];
    run.extend(args_of(stack, &options, &id, &SLEEP));
    if !matches!(at, At::Creating | At::Created) {
        ctr(&run)?.success("ctr run -d")?;
    }
    let (client, hung) = reach(stack, at, &faulty, &run, &id)?;
    let began = Instant::now();
    kill(shim_of(&id)?)?;
    let mut seen = String::new();
    if let Some(client) = client {
        let output = client.end()?;
        seen += &format!("client: {} {}; ", output.code, output.err.trim());
    }
    wait_until_gone(&id)?;
    seen += &format!("gone after {:?}", began.elapsed());
    // No shim kills what its runtime command does: it has no parent any more.
    if let Some(pid) = hung {
        let _ = kill(pid);
    }
    ctr(&["container", "rm", &id])?;
    before.settle(world, forgiven(stack))?;
    if at == At::Scope {
        wait_until_unit_gone(&scope_of(&id))?;
    }
    again(stack, world, &before, &id)?;
    Ok(seen)
}

fn scope_of(id: &str) -> String {
    format!("capsule-{id}.scope")
}

/// Brings a container into a state: the client that waits for the step under way, and the runtime's command that hangs.
fn reach(
    stack: Stack,
    at: At,
    faulty: &Faulty,
    run: &[&str],
    id: &str,
) -> Result<(Option<Beside>, Option<u32>)> {
    let container = std::mem::ManuallyDrop::new(Container { id: id.to_owned() });
    let exec = ["task", "exec", "--exec-id", "e", id, "/bin/sleep", "1000"];
    let hang = |step, call: &[&str]| -> Result<(Option<Beside>, Option<u32>)> {
        faulty.plan(step, How::Hang)?;
        let client = Beside::ctr(call)?;
        Ok((Some(client), Some(faulty.hung()?)))
    };
    let stop = || container.kill("SIGKILL").and_then(|()| container.wait_for("STOPPED"));
    match at {
        At::Creating => return hang("create", run),
        At::Created => return hang("start", run),
        At::StartingExec => return hang("exec", &exec),
        At::Deleting => return stop().and_then(|()| hang("delete", &["task", "rm", id])),
        At::Running if stack == OURS => done(&["attach", id, "tzdata"]).map(drop)?,
        At::Running => {}
        At::Scope => {
            let group = Group::of(container.pid()?)?.directory("memory")?;
            let in_scope = group.components().any(|part| part.as_os_str() == scope_of(id).as_str());
            ensure!(in_scope, "the control group is {}", group.display());
        }
        At::Pausing => return hang("pause", &["task", "pause", id]),
        At::Resuming => {
            ctr(&["task", "pause", id])?.success("pause")?;
            return hang("resume", &["task", "resume", id]);
        }
        At::Killing => return hang("kill", &["task", "kill", "-s", "SIGKILL", id]),
        At::Paused => ctr(&["task", "pause", id])?.success("pause").map(drop)?,
        At::Stopped => stop()?,
        At::Exec => {
            let client = Beside::ctr(&exec)?;
            eventually("the exec", || {
                let list = ctr(&["task", "ps", id])?.success("ctr task ps")?;
                ensure!(list.lines().count() == 3, "{list}");
                Ok(())
            })?;
            return Ok((Some(client), None));
        }
    }
    Ok((None, None))
}

/// What is not the runtime's own fault, or only of containerd's own.
pub fn forgiven(stack: Stack) -> &'static [&'static str] {
    // Of a client that fails its FIFOs stay, whatever the runtime.
    const CTR: &str = "/run/containerd/fifo/";
    if stack == OURS {
        return &[CTR];
    }
    // containerd's own shim leaves its socket and the file of an exec when it is killed.
    &[CTR, "socket /run/containerd/s/", "file /tmp/runc-process"]
}

/// The id can be used again.
fn again(stack: Stack, world: &World, before: &Traces, id: &str) -> Result<()> {
    let out = stack.run_once(id, &["/bin/echo", "again"], b"")?.success("run again")?;
    ensure!(out == "again\n", "{out:?}");
    before.settle(world, forgiven(stack))
}

/// The runtime is to hand over a terminal, for which the shim listens.
fn terminal(bed: &Bed) -> Result<String> {
    let before = Traces::of_idle(&bed.world(), bed.stack)?;
    let task = Task::container(bed, "terminal", &["--tty"], &SLEEP)?;
    let (stdio, faulty) = (Stdio::terminal(bed)?, Faulty::new(&task.id, "runc")?);
    let asked = faulty.asked()?;
    faulty.plan("create", How::Hang)?;
    let answer = std::thread::scope(|scope| {
        let create = scope.spawn(|| task.create_as(&stdio, asked));
        let hung = faulty.hung()?;
        kill(shim_of(&task.id)?)?;
        // No shim kills what its runtime command does.
        let _ = kill(hung);
        create.join().map_err(|_| anyhow!("the create panicked"))
    })?;
    let error = answer.err().context("a create without a shim succeeds")?;
    wait_until_gone(&task.id)?;
    let out = read_all(&stdio.stdout);
    task.create(&stdio).context("create it again")?;
    task.start("")?;
    task.remove()?;
    ensure!(text_of(out)?.is_empty(), "sleep writes");
    for fifo in [&stdio.stdin, &stdio.stdout] {
        fs::remove_file(fifo).with_context(|| format!("remove {fifo}"))?;
    }
    let folder = Path::new(&stdio.stdin).parent().context("a FIFO's folder")?;
    fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
    // containerd's own shim leaves the socket for the terminal, too.
    let left = if bed.is_reference() { &["/tmp/pty", "/run/pty"][..] } else { &[] };
    before.settle(&bed.world(), &[forgiven(bed.stack), left].concat())?;
    Ok(error.message().to_owned())
}

/// containerd asks nobody to clean up after a start that has failed.
fn before_answer(bed: &Bed) -> Result<String> {
    let mut shim = ByHand::new(bed, "answer")?;
    // A containerd that says nothing: `start` waits for its version.
    shim.containerd = format!("{FILES}/{}.sock", shim.id);
    let _silent = UnixListener::bind(&shim.containerd).context("listen")?;
    let (refused, killed) = std::thread::scope(|scope| {
        let start = scope.spawn(|| shim.start(b""));
        let killed = eventually("a server", || {
            let server = *shim.servers()?.first().context("there is none")?;
            kill(server)
        });
        (start.join(), killed)
    });
    killed?;
    let refused = refused.map_err(|_| anyhow!("the start panicked"))?;
    let error = refused.err().context("start has a server to name")?.to_string();
    ensure!(error.contains("ended at once") && error.contains("signal: 9"), "{error}");
    let address = fs::read_to_string(shim.bundle.join("address")).context("read the address")?;
    let socket = address.trim_start_matches("unix://");
    ensure!(address.starts_with("unix:///") && !Path::new(socket).exists(), "{address} is left");
    fs::remove_file(&shim.containerd).context("remove a socket")?;
    Ok(error)
}

/// A shim is killed at any moment of `ctr run`: nothing is left whatever comes of it.
pub(super) fn shim_any_time(bed: &Bed) -> Result<String> {
    let (stack, world, rounds) = (bed.stack, &*bed.world(), 40_u32);
    let before = Traces::of_idle(world, stack)?;
    let (mut killed, mut ended) = (0, 0);
    for round in 0..rounds {
        let id = format!("any-{round}");
        let mut run = vec!["run", "--rm"];
        run.extend(args_of(stack, &[], &id, &["/bin/sleep", "0.05"]));
        let client = Beside::ctr(&run)?;
        let began = Instant::now();
        let shim = loop {
            match shim_of(&id) {
                Ok(pid) => break Some(pid),
                Err(_) if began.elapsed() > PATIENCE => break None,
                Err(_) => {}
            }
        };
        std::thread::sleep(Duration::from_millis(u64::from(round * 150 / rounds)));
        match shim {
            Some(pid) if kill(pid).is_ok() => killed += 1,
            _ => ended += 1,
        }
        let output = client.end()?;
        ensure!(output.code != 124 && output.code != -1, "round {round}: ctr run hangs: {output:?}");
        wait_until_gone(&id)?;
        let _ = ctr(&["container", "rm", &id])?;
    }
    before.settle(world, forgiven(stack))?;
    Ok(format!("{killed} killed, {ended} had ended"))
}
