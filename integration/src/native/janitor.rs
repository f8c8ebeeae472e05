//! Removes what the kernel does not: the run's cgroups and its folder.
//!
//! Outlives the harness: it waits for the end of its standard input, whose other end only the harness holds.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Spec;
use crate::workspace::remove_tree;

/// The kernel needs a moment to end every process of a machine; longer than this and something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the harness is gone or done with the run in `folder`, then removes what the run left.
pub fn janitor(folder: &Path) -> Result<()> {
    let spec = Spec::read(folder)?;
    let mut sink = Vec::new();
    io::stdin().read_to_end(&mut sink).context("wait for the harness")?;
    let deadline = Instant::now() + PATIENCE;
    let mut left = Vec::new();
    loop {
        left.clear();
        for hierarchy in &spec.hierarchies {
            if remove_cgroups(&hierarchy.path).is_err() {
                left.push(hierarchy.path.display().to_string());
            }
        }
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("cgroups that could not be removed: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    remove_tree(folder)
}

/// Removes a cgroup and all below it, killing what still runs there: it is the run's own.
fn remove_cgroups(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))
}
