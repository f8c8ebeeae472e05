//! Events of processes that the kernel killed for want of memory.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::forget;
use crate::scenario::runtime::bed::{Bed, SLEEP, eventually};
use crate::scenario::runtime::events::{Log, lines};
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("an init that is killed for want of memory: one event, before its exit", init)
        .needs(&[Need::Controllers])
        .in_vm()
        .forgiven(EARLY_OR_TWICE, &[r#""start", "exit""#, r#""oom", "oom""#]),
    Case::new("a process of many threads that is: one event all the same", threads)
        .needs(&[Need::Controllers])
        .in_vm()
        .forgiven(EARLY_OR_TWICE, &[r#""start", "exit""#, r#""oom", "oom""#]),
    Case::new("an exec that is: one event, before its exit, and the container goes on", exec)
        .needs(&[Need::Controllers])
        .in_vm()
        .forgiven(
            EARLY_OR_TWICE,
            &[r#""exec-started e1", "exit e1""#, r#""exec-started e2", "exit e2""#, r#""oom .", "oom .""#],
        ),
    Case::new("a process that is neither: an event each time", child)
        .needs(&[Need::Controllers])
        .in_vm()
        .forgiven(EARLY_OR_TWICE, &["one event too many", "waiting for \"oom\""]),
    // The kernel wakes a listener of version 1 then too.
    Case::new("a container that is deleted within its limits: no event", none).needs(&[Need::LegacyCgroups]),
    // Without systemd's driver nobody removes the control group but the runtime.
    Case::new("many containers that are killed at once: an event for each", many).needs(NATIVE),
];

// On one machine the kernel of version 1 wrote twice for each kill of a process of one thread, on others once.
const EARLY_OR_TWICE: &str =
    "it may see the exit first, and tells of one kill as often as the kernel of version 1 does";
const NATIVE: &[Need] = &[Need::Native, Need::Controllers];
const LIMIT: [&str; 2] = ["--memory-limit", "33554432"];
/// A line that never ends is kept in memory.
const EATER: [&str; 2] = ["/bin/tail", "/dev/zero"];
const EATERS: [&str; 3] = ["/usr/bin/capsule-reader", "eat", "8"];

fn init(bed: &Bed) -> Result<String> {
    killed(bed, &EATER)
}

/// Each thread that asks for memory meanwhile is told of by version 1: in four of twenty runs, more than once.
fn threads(bed: &Bed) -> Result<String> {
    for _ in 0..10 {
        killed(bed, &EATERS)?;
    }
    Ok(String::new())
}

fn killed(bed: &Bed, eater: &[&str]) -> Result<String> {
    let task = Task::container(bed, "oom", &LIMIT, eater)?;
    let log = Log::of(bed.client(), &task.id)?;
    task.create(&Stdio::default())?;
    task.start("")?;
    let status = task.wait("")?.exit_status;
    ensure!(status == 137, "exit status {status}");
    task.delete()?;
    let told = log.to_deletion(bed)?;
    let kinds: Vec<_> = told.iter().map(|told| told.what.as_str()).collect();
    let place = |what: &str| kinds.iter().position(|kind| *kind == what);
    ensure!(place("oom") < place("exit") && place("oom") > place("create"), "{kinds:?}");
    ensure!(kinds.iter().filter(|kind| **kind == "oom").count() == 1, "{kinds:?}");
    forget(task)?;
    Ok(kinds.join(", "))
}

fn exec(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "oom", &LIMIT, &SLEEP)?;
    for exec in ["e1", "e2"] {
        task.run_exec(exec, &Stdio::default(), &EATER)?;
        let status = task.wait(exec)?.exit_status;
        ensure!(status == 137, "exit status {status}");
        task.delete_exec(exec)?;
    }
    task.end()?;
    let told = log.until("exit")?.into_iter().chain(log.until("exit")?).chain(log.until("exit")?);
    let told: Vec<_> = told.collect();
    let seen: Vec<_> = lines(&told).iter().map(|line| line.replace(&task.id, ".")).collect();
    // A process may be killed before its start has been told.
    let (ooms, others): (Vec<_>, Vec<_>) = seen.iter().enumerate().partition(|(_, line)| *line == "oom .");
    let expected = ["exec-added e1", "exec-started e1", "exit e1"].into_iter();
    let expected = expected.chain(["exec-added e2", "exec-started e2", "exit e2", "exit ."]);
    ensure!(others.iter().map(|(_, line)| *line).eq(expected), "{seen:?}");
    let between = |oom: usize, exec: &str| {
        let place = |what: &str| seen.iter().position(|line| *line == format!("{what} {exec}"));
        place("exec-added") < Some(oom) && Some(oom) < place("exit")
    };
    ensure!(ooms.len() == 2 && between(ooms[0].0, "e1") && between(ooms[1].0, "e2"), "{seen:?}");
    task.remove().map(|()| seen.join(", "))
}

fn child(bed: &Bed) -> Result<String> {
    // The kernel kills the largest, not the shell.
    let script = "trap 'tail /dev/zero' USR1; while :; do sleep 0.1; done";
    let (task, log) = Log::started(bed, "oom", &LIMIT, &["/bin/sh", "-c", script])?;
    // The trap is set once a process of the loop is there.
    eventually("the loop to begin", || {
        ensure!(task.pids()?.len() > 1, "it has not");
        Ok(())
    })?;
    for _ in 0..3 {
        task.kill("", 10, false)?;
        log.until("oom")?;
    }
    log.expect_silence(Duration::from_millis(300))?;
    task.remove().map(|()| String::new())
}

fn none(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "fits", &LIMIT, &SLEEP)?;
    let log = Log::of(bed.client(), &task.id)?;
    task.create(&Stdio::default())?;
    task.start("")?;
    task.end()?;
    task.delete()?;
    let told = log.to_deletion(bed)?;
    ensure!(told.iter().all(|told| told.what != "oom"), "{told:?}");
    log.expect_silence(Duration::from_millis(300))?;
    forget(task)?;
    Ok(lines(&told).len().to_string())
}

fn many(bed: &Bed) -> Result<String> {
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let task = Task::container(bed, "oom", &LIMIT, &EATER)?;
        let log = Log::of(bed.client(), &task.id)?;
        task.create(&Stdio::default())?;
        tasks.push((task, log));
    }
    for (task, _) in &tasks {
        task.start("")?;
    }
    for (task, log) in tasks {
        task.wait("")?;
        let told = log.until("oom")?;
        ensure!(told.iter().all(|told| told.what != "delete"), "{told:?}");
        task.remove()?;
    }
    Ok(String::new())
}
