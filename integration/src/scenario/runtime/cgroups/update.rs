//! Limits that are changed while a task is there.

use anyhow::{Result, ensure};

use super::group::Group;
use crate::scenario::runtime::bed::{Bed, SLEEP};
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("memory, processor and processes", all_at_once).needs(&[Need::Controllers]).in_vm(),
    Case::new("a task that waits to be started, and one that is paused", states).needs(CONTROLLERS).in_vm(),
    Case::new("files of version 2 by their names", unified).needs(&[Need::UnifiedCgroups]),
    Case::new("what cannot be is refused, and nothing changes", refused).needs(CONTROLLERS).in_vm(),
    Case::new("a task that has ended is refused", ended).in_vm(),
];

const CONTROLLERS: &[Need] = &[Need::Controllers];
const RESOURCES: &str = r#"{
    "memory": { "limit": 100663296, "reservation": 50331648 },
    "cpu": { "shares": 512, "quota": 50000, "period": 100000, "cpus": "0" },
    "pids": { "limit": 50 }
}"#;

/// What the kernel says of those, by version.
fn expected(group: &Group) -> &'static [(&'static str, &'static str, &'static str)] {
    if group.unified {
        &[
            ("memory", "memory.max", "100663296"),
            ("memory", "memory.low", "50331648"),
            ("cpu", "cpu.max", "50000 100000"),
            ("cpuset", "cpuset.cpus", "0"),
            ("pids", "pids.max", "50"),
        ]
    } else {
        &[
            ("memory", "memory.limit_in_bytes", "100663296"),
            ("memory", "memory.soft_limit_in_bytes", "50331648"),
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpuset", "cpuset.cpus", "0"),
            ("pids", "pids.max", "50"),
        ]
    }
}

fn expect(group: &Group) -> Result<()> {
    for (controller, file, value) in expected(group) {
        let seen = group.read(controller, file)?;
        ensure!(seen == *value, "{file} is {seen:?}, not {value:?}");
    }
    Ok(())
}

fn all_at_once(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "update", &["--memory-limit", "67108864"], &SLEEP)?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.start("")?;
    let weight = |group: &Group| group.read("cpu", "cpu.weight");
    let before = weight(&group).ok();
    task.update(RESOURCES)?;
    expect(&group)?;
    // Runtimes differ in how they make a weight of shares.
    let after = weight(&group).ok();
    ensure!(!group.unified || before != after, "cpu.weight is {after:?} still");
    task.remove().map(|()| after.map(|weight| format!("cpu.weight {weight}")).unwrap_or_default())
}

fn states(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "update", &[], &SLEEP)?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.update(r#"{ "pids": { "limit": 40 } }"#)?;
    let limit = group.read("pids", "pids.max")?;
    ensure!(limit == "40", "pids.max is {limit}");
    task.start("")?;
    task.pause()?;
    task.update(RESOURCES)?;
    expect(&group)?;
    task.resume()?;
    task.remove().map(|()| String::new())
}

fn unified(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "update", &Stdio::default(), &SLEEP)?;
    let group = Group::of(task.get("")?.pid)?;
    task.update(r#"{ "unified": { "memory.high": "50331648", "pids.max": "41" } }"#)?;
    for (controller, file, value) in [("memory", "memory.high", "50331648"), ("pids", "pids.max", "41")] {
        let seen = group.read(controller, file)?;
        ensure!(seen == value, "{file} is {seen:?}, not {value:?}");
    }
    task.remove().map(|()| String::new())
}

fn refused(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "update", &["--memory-limit", "67108864"], &SLEEP)?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.start("")?;
    let mut said = Vec::new();
    for resources in [
        "",
        "nonsense",
        "[]",
        r#"{ "memory": { "limit": "much" } }"#,
        // No node has such a processor.
        r#"{ "cpu": { "cpus": "4000" } }"#,
    ] {
        let answer = task.update(resources);
        let status = answer.err().ok_or_else(|| anyhow::anyhow!("{resources:?} was taken"))?;
        said.push(status.message().chars().take(90).collect::<String>());
        let file = if group.unified { "memory.max" } else { "memory.limit_in_bytes" };
        let limit = group.read("memory", file)?;
        ensure!(limit == "67108864", "{resources}: the limit is {limit}");
    }
    task.update(RESOURCES)?;
    expect(&group)?;
    task.remove().map(|()| said.join(" | "))
}

fn ended(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "update", &Stdio::default(), &SLEEP)?;
    task.end()?;
    let status = task.update(RESOURCES).err().ok_or_else(|| anyhow::anyhow!("it was taken"))?;
    task.remove().map(|()| status.message().to_owned())
}
