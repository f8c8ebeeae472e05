//! Who makes the control groups: the runtime itself, or systemd for it. Of runc and of crun.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerd_shim::api::Options;

use super::forget;
use super::group::Group;
use super::stats::metrics;
use crate::scenario::runtime::asked::Asked;
use crate::scenario::runtime::bed::{Bed, FILES, SLEEP, eventually};
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};
use crate::workspace::output_of;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("runc with files", |bed| {
        life(bed, Driver { binary: "runc", systemd: false, by: By::Container })
    })
    .needs(&[Need::Controllers])
    .in_vm(),
    Case::new("crun with files", |bed| life(bed, Driver { binary: "crun", systemd: false, by: By::Task }))
        .needs(&[Need::Controllers])
        .in_vm(),
    Case::new("runc with systemd", |bed| {
        life(bed, Driver { binary: "runc", systemd: true, by: By::Container })
    })
    .needs(&[Need::Systemd]),
    Case::new("crun with systemd", |bed| life(bed, Driver { binary: "crun", systemd: true, by: By::Task }))
        .needs(&[Need::Systemd]),
];

/// How the options come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// With the container: for ours as TOML, in the generic message.
    Container,
    /// With the task, in runc's message.
    Task,
}

#[derive(Clone, Copy)]
struct Driver {
    binary: &'static str,
    systemd: bool,
    by: By,
}

const LIMIT: u64 = 67_108_864;
const UPDATED: u64 = 100_663_296;

fn life(bed: &Bed, driver: Driver) -> Result<String> {
    let mut driver = driver;
    if bed.is_reference() {
        // `ctr container create` of 1.7 has no option for the program, and that of 2.1 wants for the driver a control group,
        // for which it has no option.
        driver.by = By::Task;
    }
    if driver.systemd {
        // crun speaks to systemd over the system's bus, which nothing else in the machine needs.
        systemctl(&["start", "dbus.socket"])?;
    }
    let (task, name) = make(bed, driver)?;
    let pid = create(&task, driver)?;
    let group = Group::of(pid)?;
    let directory = limited(&group)?;
    let unit = format!("capsule-{name}.scope");
    let by_systemd = directory.components().any(|part| part.as_os_str() == unit.as_str());
    ensure!(by_systemd == driver.systemd, "the control group is {}", directory.display());
    task.start("")?;
    ensure!(limit_of(&directory)? == LIMIT, "the limit is {}", limit_of(&directory)?);
    task.run_exec("e1", &Stdio::default(), &["/bin/true"])?;
    ensure!(task.wait("e1")?.exit_status == 0, "an exec failed");
    task.delete_exec("e1")?;
    task.pause()?;
    task.resume()?;
    task.update(&format!(r#"{{ "memory": {{ "limit": {UPDATED} }} }}"#))?;
    ensure!(limit_of(&directory)? == UPDATED, "the limit is {} after the update", limit_of(&directory)?);
    if driver.systemd {
        reload(&directory, &unit)?;
    }
    metrics(bed, &task)?.context("no metrics")?;
    task.end()?;
    task.delete()?;
    forget(task)?;
    eventually("the control groups to go", || {
        ensure!(group.left().is_empty() && !directory.exists(), "{:?} {}", group.left(), directory.display());
        Ok(())
    })?;
    if driver.systemd {
        wait_until_unit_gone(&unit)?;
    }
    Ok(directory.display().to_string())
}

/// Waits until systemd has no unit of this name, nor the memory of one that has failed.
pub fn wait_until_unit_gone(unit: &str) -> Result<()> {
    eventually("the scope to go", || {
        let units = systemctl(&["list-units", "--all", "--no-legend", "--plain", unit])?;
        ensure!(units.trim().is_empty(), "{units}");
        Ok(())
    })
}

/// What a runtime changes behind systemd's back is gone after this.
fn reload(directory: &Path, unit: &str) -> Result<()> {
    systemctl(&["daemon-reload"])?;
    ensure!(limit_of(directory)? == UPDATED, "systemd took the update back: {}", limit_of(directory)?);
    let property = systemctl(&["show", "--property=MemoryMax", "--value", unit])?;
    ensure!(property.trim() == UPDATED.to_string(), "systemd has the limit {property}");
    Ok(())
}

fn systemctl(args: &[&str]) -> Result<String> {
    output_of(Command::new("systemctl").args(args))
}

/// A container with a limit, and the name in its scope's.
fn make(bed: &Bed, driver: Driver) -> Result<(Task<'_>, String)> {
    let name = bed.id("driver");
    let cgroup =
        if driver.systemd { format!("system.slice:capsule:{name}") } else { format!("/capsule/{name}") };
    let limit = LIMIT.to_string();
    let mut options = vec!["--memory-limit", &limit];
    let toml = format!("{FILES}/{name}.toml");
    if driver.by == By::Container {
        let text = format!("BinaryName = {:?}\nSystemdCgroup = {}\n", driver.binary, driver.systemd);
        fs::write(&toml, text).with_context(|| format!("write {toml}"))?;
        options.extend(["--runtime-config-path", &toml]);
    }
    let task = Task::container(bed, "driver", &options, &SLEEP)?;
    task.change_spec(|spec| spec["linux"]["cgroupsPath"] = cgroup.into())?;
    Ok((task, name))
}

fn create(task: &Task<'_>, driver: Driver) -> Result<u32> {
    let (binary_name, systemd_cgroup) = (driver.binary.to_owned(), driver.systemd);
    let asked = match driver.by {
        By::Container => Asked::default(),
        By::Task => Asked::with(&Options { binary_name, systemd_cgroup, ..Default::default() })?,
    };
    Ok(task.create_as(&Stdio::default(), asked)?)
}

/// The control group that has the limit: the init's, or that above. crun has a group of its own in systemd's scope.
fn limited(group: &Group) -> Result<std::path::PathBuf> {
    let own = group.directory("memory")?;
    let above =
        own.parent().map(Path::to_owned).filter(|above| limit_of(above).is_ok_and(|limit| limit == LIMIT));
    Ok(above.unwrap_or(own))
}

fn limit_of(directory: &Path) -> Result<u64> {
    let file = ["memory.max", "memory.limit_in_bytes"].map(|name| directory.join(name));
    let file = file.iter().find(|file| file.exists()).context("no limit of memory")?;
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    if text.trim() == "max" { Ok(u64::MAX) } else { text.trim().parse().context("a limit") }
}
