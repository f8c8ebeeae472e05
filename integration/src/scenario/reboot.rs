//! The node restarts: everything that runs ends at once, and what is in `/run` is gone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::ctr::Container;
use super::world::World;

/// What is empty after a boot.
const RUN: [&str; 2] = ["/run/capsule", "/run/containerd"];

impl World {
    /// As after a power cut, of which `/var` loses nothing: containerd, capsuled, the shims and what `running` runs are killed,
    /// the mounts and `/run` are gone. Both daemons are started again.
    pub fn reboot(&mut self, running: &[&Container]) -> Result<()> {
        let mut processes = Vec::new();
        for container in running {
            processes.push(shim_of(container)?);
            processes.push(container.pid()?);
        }
        self.reboot_under(&processes)
    }

    /// The same, with the processes that run.
    pub fn reboot_under(&mut self, processes: &[u32]) -> Result<()> {
        self.kill_containerd()?;
        self.kill_capsuled()?;
        for pid in processes {
            kill(*pid)?;
        }
        for mount in mounts_below(&RUN)? {
            unmount(&mount, UnmountFlags::DETACH).with_context(|| format!("unmount {mount}"))?;
        }
        for folder in RUN {
            for entry in fs::read_dir(folder).with_context(|| format!("read {folder}"))? {
                let path = entry.with_context(|| format!("read {folder}"))?.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.with_context(|| format!("remove {}", path.display()))?;
            }
        }
        // In the order of the units.
        self.restart_capsuled_alone()?;
        self.start_containerd()
    }
}

/// The process of the shim that serves a container.
pub fn shim_of(container: &Container) -> Result<u32> {
    shim("default", &container.id)
}

/// The same, of a container in any namespace.
pub fn shim(namespace: &str, container: &str) -> Result<u32> {
    let registration = Path::new("/run/capsule/tasks").join(namespace).join(format!("{container}.json"));
    let text = fs::read_to_string(&registration).context("read a registration")?;
    let registration: serde_json::Value = serde_json::from_str(&text).context("a registration")?;
    let pid = registration["shim_pid"].as_u64().context("shim_pid")?;
    u32::try_from(pid).context("a process id")
}

/// Kills a process, and waits until it is gone.
pub fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).context("kill"),
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while test_kill_process(pid).is_ok() {
        ensure!(Instant::now() < deadline, "process {pid:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Mount points below the folders, the last mounted first.
fn mounts_below(folders: &[&str]) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let below = |point: &&str| {
        folders.iter().any(|folder| point.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    };
    let mut points: Vec<String> = points.filter(below).map(str::to_owned).collect();
    points.reverse();
    Ok(points)
}
