//! Signals, and the exits that they make.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::containerd::services::tasks::v1::WaitResponse;
use capsule_proto::containerd::v1::types::Status as TaskStatus;
use containerd_shim::api::Options;
use tonic::Code;

use super::asked::Asked;
use super::bed::{Bed, SLEEP, eventually};
use super::client::code;
use super::task::{Stdio, Task, read_all, text_of};
use super::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("a real-time signal reaches an exec, and its exit tells", real_time_signal).in_vm(),
    Case::new("a real-time signal reaches an init, whose handler runs", init_handles),
    Case::new("a real-time signal ends an init that shares the node's PID namespace", init_ends),
    Case::new("kill -9 of a container that was never started", never_started),
    Case::new("kill -9 of what has ended", ended),
    // Where a container has no control group, runc cannot tell which processes are all, and crun may take all of the node's.
    Case::new("crun: a signal to all reaches the init's children and execs", |bed| to_all(bed, "crun"))
        .needs(&[Need::Cgroups]),
    Case::new("runc: a signal to all reaches those that runc means", |bed| to_all(bed, "runc")),
    Case::new("kill -9 of all ends a container with children", all_killed).needs(&[Need::Cgroups]),
];

/// The first that programs may use.
const REAL_TIME: u32 = 40;
const USR1: u32 = 10;

/// Sends a signal that ends a process until it does: until the runtime has become the program, it takes the signal and goes on.
fn end_by(task: &Task<'_>, exec: &str, signal: u32) -> Result<WaitResponse> {
    let ended = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| task.wait(exec));
        while !waiting.is_finished() {
            let _ = task.kill(exec, signal, false);
            std::thread::sleep(Duration::from_millis(50));
        }
        waiting.join().map_err(|_| anyhow!("the waiter panicked"))
    })?;
    Ok(ended?)
}

/// Waits until a process handles a signal. Before it becomes the program it is runc's, which handles all and goes on.
pub fn until_handled(pid: u32, signal: u32) -> Result<()> {
    eventually("a handler of the signal", || {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
        let caught = u64::from_str_radix(caught.trim(), 16).context("no mask of signals")?;
        ensure!(caught & (1 << (signal - 1)) != 0 && !status.starts_with("Name:\trunc"), "{status}");
        Ok(())
    })
}

fn real_time_signal(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "signal", &Stdio::default(), &SLEEP)?;
    task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    let ended = end_by(&task, "e1", REAL_TIME)?;
    ensure!(ended.exit_status == 128 + REAL_TIME, "exit status {} instead of 168", ended.exit_status);
    task.remove().map(|()| String::new())
}

fn init_handles(bed: &Bed) -> Result<String> {
    let script = format!("trap 'echo handled; exit 7' {REAL_TIME}; while :; do sleep 0.05; done");
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let out = read_all(&stdio.stdout);
    let task = Task::started(bed, "signal", &stdio, &["/bin/sh", "-c", &script])?;
    until_handled(task.get("")?.pid, REAL_TIME)?;
    task.kill("", REAL_TIME, false)?;
    let exit = task.wait("")?.exit_status;
    ensure!(exit == 7, "exit status {exit}");
    task.remove()?;
    let said = text_of(out)?;
    ensure!(said == "handled\n", "{said:?}");
    Ok(String::new())
}

/// In a namespace of its own an init that handles no signal is ended by none but the ninth.
fn init_ends(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "signal", &["--with-ns", "pid:/proc/1/ns/pid"], &SLEEP)?;
    task.create(&Stdio::default())?;
    task.start("")?;
    let ended = end_by(&task, "", REAL_TIME)?;
    ensure!(ended.exit_status == 128 + REAL_TIME, "exit status {} instead of 168", ended.exit_status);
    let deleted = task.delete()?;
    ensure!(deleted.exit_status == 128 + REAL_TIME, "deleted with {}", deleted.exit_status);
    task.forget().map(|()| String::new())
}

fn never_started(bed: &Bed) -> Result<String> {
    let task = Task::created(bed, "signal", &Stdio::default(), &SLEEP)?;
    let pid = task.get("")?.pid;
    task.kill("", 9, false).context("kill it")?;
    let waited = task.wait("")?;
    let stopped = task.expect("", TaskStatus::Stopped)?;
    ensure!(waited.exit_status == 137 && stopped.exit_status == 137, "{waited:?} {stopped:?}");
    ensure!(stopped.pid == pid && stopped.exited_at == waited.exited_at, "{stopped:?} of {pid}, {waited:?}");
    let again = [code(&task.kill("", 9, false)), code(&task.start("")), code(&task.pause())];
    ensure!(again == [Code::NotFound, Code::Unknown, Code::Unknown], "{again:?}");
    let deleted = task.delete()?;
    ensure!(deleted.exit_status == 137 && deleted.pid == pid, "{deleted:?}");
    task.forget().map(|()| String::new())
}

fn ended(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "signal", &Stdio::default(), &SLEEP)?;
    task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", "exit 5"])?;
    task.wait("e1")?;
    task.end()?;
    // What is meant for all asks whether there are any.
    let codes =
        [code(&task.kill("", 9, false)), code(&task.kill("e1", 9, false)), code(&task.kill("", 9, true))];
    ensure!(codes == [Code::NotFound, Code::NotFound, Code::Ok], "{codes:?}");
    let (init, exec) = (task.get("")?.exit_status, task.get("e1")?.exit_status);
    ensure!((init, exec) == (137, 5), "exit statuses {init} and {exec}");
    task.remove().map(|()| String::new())
}

/// A shell that says that a signal has come.
const SAYS: &str = "trap 'echo $0 >> /got' 10; echo $0 >> /ready; while :; do sleep 0.05; done";

fn words(task: &Task<'_>, file: &str) -> Result<BTreeSet<String>> {
    let path = format!("/proc/{}/root/{file}", task.get("")?.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// A container with an init, three children of it and an exec, all of which handle a signal.
fn family<'a>(bed: &'a Bed, binary: &str) -> Result<Task<'a>> {
    let script = format!("for n in 1 2 3; do sh -c \"$1\" child$n \"$1\" & done; {SAYS}");
    let command = ["/bin/sh", "-c", &script, "init", SAYS];
    let task = Task::container(bed, "all", &[], &command)?;
    let options = Options { binary_name: binary.to_owned(), ..Default::default() };
    task.create_as(&Stdio::default(), Asked::with(&options)?)?;
    task.start("")?;
    task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", SAYS, "exec"])?;
    eventually("all to be ready", || {
        let ready = words(&task, "ready")?;
        ensure!(ready.len() == 5, "{ready:?}");
        Ok(())
    })?;
    Ok(task)
}

/// From 1.2 on runc sends a signal that is for all to the init of a PID namespace alone, unless it is the ninth.
fn to_all(bed: &Bed, binary: &str) -> Result<String> {
    let task = family(bed, binary)?;
    task.kill("", USR1, true)?;
    let init_alone = binary == "runc" && bed.facts().containerd_2;
    let all = if init_alone { &["init"][..] } else { &["child1", "child2", "child3", "exec", "init"] };
    let got = eventually("all to have it", || {
        let got = words(&task, "got")?;
        ensure!(got.iter().eq(all.iter()), "{got:?} instead of {all:?}");
        Ok(got)
    })?;
    task.remove().map(|()| format!("{got:?}"))
}

fn all_killed(bed: &Bed) -> Result<String> {
    let task = family(bed, "runc")?;
    let pids: Vec<u32> = task.pids()?.iter().map(|process| process.pid).collect();
    task.kill("", 9, true)?;
    let exits = [task.wait("e1")?.exit_status, task.wait("")?.exit_status];
    ensure!(exits == [137, 137], "{exits:?}");
    let left: Vec<_> = pids.iter().filter(|pid| fs::metadata(format!("/proc/{pid}")).is_ok()).collect();
    ensure!(left.is_empty(), "{left:?} of {pids:?} are left");
    task.remove().map(|()| format!("{} processes", pids.len()))
}
