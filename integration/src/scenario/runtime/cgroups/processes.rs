//! Containers that share the node's PID namespace, whose processes do not end with their init.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::forget;
use super::group::Group;
use crate::scenario::ctr::ctr;
use crate::scenario::runtime::bed::{Bed, eventually};
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("the node's PID namespace: with the init, all end", |bed| {
        end(bed, |task, _| Ok(task.kill("", 9, false)?))
    })
    .needs(&[Need::Cgroups])
    .in_vm(),
    Case::new("the node's PID namespace: a signal to all reaches all", |bed| {
        end(bed, |task, _| Ok(task.kill("", 15, true)?))
    })
    .needs(&[Need::Cgroups])
    .in_vm(),
    Case::new("the node's PID namespace: a forced removal leaves none", |bed| {
        end(bed, |task, _| ctr(&["task", "rm", "-f", &task.id])?.success("ctr task rm -f").map(drop))
    })
    .needs(&[Need::Cgroups]),
    Case::new("the node's PID namespace: an exec that stays ends with the init", |bed| {
        end(bed, |task, marker| {
            task.run_exec("e1", &Stdio::default(), &["/bin/sleep", marker])?;
            Ok(task.kill("", 9, false)?)
        })
    })
    .needs(&[Need::Cgroups]),
];

/// Processes of the container that nobody waits for, in sessions of their own, and some that have forked again.
const CHILDREN: usize = 8;

fn end(bed: &Bed, kill: impl Fn(&Task<'_>, &str) -> Result<()>) -> Result<String> {
    // Seconds that no other process of the machine sleeps.
    let marker = format!("98{}", bed.id("").rsplit('-').next().unwrap_or_default());
    let script = format!(
        "for i in 1 2 3 4; do setsid sleep {marker} & (sleep {marker} &) ; done; exec sleep {marker}"
    );
    let options = ["--with-ns", "pid:/proc/1/ns/pid"];
    let task = Task::container(bed, "shared", &options, &["/bin/sh", "-c", &script])?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.start("")?;
    eventually("the processes to be there", || {
        let found = sleepers(&marker)?;
        ensure!(found == CHILDREN + 1, "{found}");
        Ok(())
    })?;
    kill(&task, &marker)?;
    eventually("all processes to end", || {
        let found = sleepers(&marker)?;
        ensure!(found == 0, "{found} are left");
        Ok(())
    })?;
    if task.get("").is_ok() {
        task.wait("")?;
        task.delete()?;
    }
    forget(task)?;
    eventually("the control groups to go", || {
        let left = group.left();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    Ok(String::new())
}

/// How many processes of the node sleep for so long.
fn sleepers(marker: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = cmdline.split(|byte| *byte == 0);
        let is_sleep = words.next().is_some_and(|program| program.ends_with(b"sleep"));
        count += usize::from(is_sleep && words.next() == Some(marker.as_bytes()));
    }
    Ok(count)
}
