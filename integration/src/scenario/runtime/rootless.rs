//! A node without root: what is different there. Everything else in the suite holds there as it is.

use anyhow::{Context as _, Result, ensure};

use super::bed::{Bed, SLEEP, eventually};
use super::kills::{self, At};
use super::task::{Stdio, Task};
use super::{Case, Need};
use crate::scenario::capsulectl::{done, ps, tzdata};

/// The cases.
pub const CASES: &[Case] =
    &[Case::new("a shim that is killed leaves nothing", |bed| kills::shim(bed, At::Running)).needs(ROOTLESS)];

/// Of a container without a control group containerd's own runtime does not know the processes, and so a containerd that is
/// started anew ends its shim and leaves the container.
pub const OWN: &[Case] = &[
    Case::new("processes are known, and a containerd that is started anew has the task", kept)
        .needs(ROOTLESS),
    Case::new("capsules are attached, upgraded, rolled back and detached", capsules).needs(ROOTLESS),
];

const ROOTLESS: &[Need] = &[Need::Rootless];

fn kept(bed: &Bed) -> Result<String> {
    let command = ["/bin/sh", "-c", "sleep 100000 & exec sleep 100000"];
    let task = Task::started(bed, "kept", &Stdio::default(), &command)?;
    let (init, exec) = (task.get("")?.pid, task.run_exec("e1", &Stdio::default(), &SLEEP)?);
    let told = || -> Result<usize> {
        let listed = task.pids()?;
        let find = |pid| listed.iter().find(|info| info.pid == pid);
        let named = find(exec).and_then(|info| info.info.clone()).context("an exec without a name")?;
        ensure!(named.value == b"\x0a\x02e1" && find(init).is_some(), "{listed:?}");
        Ok(listed.len())
    };
    eventually("the init, its child and the exec", || {
        let count = told()?;
        ensure!(count == 3, "{count} processes");
        Ok(())
    })?;
    bed.world().restart_containerd()?;
    let count = told().context("after containerd was started anew")?;
    ensure!(count == 3, "{count} processes after containerd was started anew");
    ensure!(task.end()? == 137, "not by SIGKILL");
    task.remove().map(|()| String::new())
}

fn capsules(bed: &Bed) -> Result<String> {
    let container = bed.start_container("capsules", &SLEEP)?;
    let (id, [(older, _), (newer, _)]) = (container.id.as_str(), tzdata()?);
    let version = || -> Result<Vec<String>> {
        let seen = ps()?.into_iter().filter(|seen| seen.container == id);
        Ok(seen.map(|seen| seen.version).collect())
    };
    // What root made in the capsule is root's here.
    let look =
        "cd /usr/share/zoneinfo && ls && test -s Europe/Berlin && stat -c %u:%g Europe/Berlin | grep 0:0";
    let read = |exec| container.sh(exec, look);
    done(&["attach", id, &format!("tzdata@{older}")])?;
    let first = read("first")?;
    done(&["upgrade", id, "tzdata"])?;
    ensure!(version()? == [newer] && !read("second")?.is_empty(), "{:?}", version()?);
    done(&["rollback", id, "tzdata"])?;
    ensure!(version()? == [older] && read("third")? == first, "{:?}", version()?);
    done(&["attach", id, "debug-tools", "--mode", "union"])?;
    done(&["detach", id, "tzdata"])?;
    done(&["detach", id, "debug-tools"])?;
    ensure!(version()?.is_empty() && read("last").is_err(), "{:?}", version()?);
    container.remove().map(|_| String::new())
}
