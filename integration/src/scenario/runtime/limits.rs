//! Limits of the shim's process (setrlimit(2)), and those that the processes of its containers have.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Case;
use super::bed::{Bed, SLEEP};
use super::task::{Stdio, Task, read_all, text_of};

/// The cases.
pub const CASES: &[Case] =
    &[Case::new("a shim serves more processes than its soft limit of open files has room for", open_files)
        .in_vm()];

/// Less than a shim needs for [`EXECS`], more than it needs to begin.
const SOFT: u64 = 96;
/// Each with two FIFOs: no shim has fewer than two descriptors for one.
const EXECS: usize = 60;

/// The limit is for the shim's containers, who get it as it was.
fn open_files(bed: &Bed) -> Result<String> {
    with_soft_limit(bed, SOFT, || {
        let task = Task::started(bed, "many", &Stdio::default(), &SLEEP)?;
        let mut readers = Vec::new();
        for exec in 0..EXECS {
            let stdio = Stdio::fifos(bed, &["stdout"])?;
            readers.push(read_all(&stdio.stdout));
            task.run_exec(&format!("e{exec}"), &stdio, &["/bin/sh", "-c", "ulimit -Sn; exec sleep 100000"])?;
        }
        let pids = task.pids()?;
        ensure!(pids.len() == EXECS + 1, "{} processes run: {pids:?}", pids.len());
        task.end()?;
        task.remove()?;
        for reader in readers {
            let limit = text_of(reader)?;
            ensure!(limit.trim() == SOFT.to_string(), "an exec has the limit {limit:?}");
        }
        Ok(format!("{EXECS} execs with {SOFT}"))
    })
}

/// Does `work` with a containerd whose service has this limit, as a service manager starts it.
fn with_soft_limit(bed: &Bed, soft: u64, work: impl FnOnce() -> Result<String>) -> Result<String> {
    let own = getrlimit(Resource::Nofile);
    let limit = |current| setrlimit(Resource::Nofile, Rlimit { current, ..own }).context("set a limit");
    bed.world().kill_containerd()?;
    let started = limit(Some(soft)).and_then(|()| bed.world().start_containerd());
    limit(own.current)?;
    let done = started.and_then(|()| work());
    bed.world().restart_containerd()?;
    done
}
