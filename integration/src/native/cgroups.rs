//! The run's cgroups: one below this process's own in every hierarchy of version 1 (and in a hybrid's version 2), at
//! the top of a unified hierarchy, where alone the controllers can be handed on.
//!
//! Touches cgroups that carry the run's name and nothing else. The host's cgroup mounts are left as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The run's cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// As in `/proc/self/cgroup`: `cpu,cpuacct`, `name=systemd`, or nothing for version 2.
    pub controllers: String,
    /// Where the host has it mounted.
    pub mount_point: PathBuf,
    /// The cgroup the run's is made in.
    pub parent: PathBuf,
    /// The run's own.
    pub path: PathBuf,
    /// The host has only this one, of version 2.
    pub unified: bool,
}

/// Where the processes are that make a unified machine: a cgroup that hands controllers on may hold none itself.
const SUPERVISOR: &str = "supervisor";
/// What containers use.
const CONTROLLERS: [&str; 5] = ["+cpu", "+cpuset", "+io", "+memory", "+pids"];

/// Plans the run's cgroups on this host.
pub fn read_hierarchies(run: &str) -> Result<Vec<Hierarchy>> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(plan_hierarchies(&own, &mounts, run))
}

/// Hierarchies that are not mounted are left out: nothing in the machine can use them either.
fn plan_hierarchies(own: &str, mounts: &str, run: &str) -> Vec<Hierarchy> {
    let unified = own.lines().all(|line| line.starts_with("0::"));
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let mount_point = find_mount(mounts, controllers)?;
            let parent =
                if unified { mount_point.clone() } else { mount_point.join(path.trim_start_matches('/')) };
            let path = parent.join(run);
            Some(Hierarchy { controllers: controllers.to_owned(), mount_point, parent, path, unified })
        })
        .collect()
}

/// The mount point of a hierarchy, from lines like `… ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE SUPEROPTIONS`.
fn find_mount(mounts: &str, controllers: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let wanted = match controllers {
            "" => kind == "cgroup2",
            _ => {
                kind == "cgroup"
                    && controllers.split(',').all(|name| options.split(',').any(|option| option == name))
            }
        };
        wanted.then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

impl Hierarchy {
    /// Makes the run's cgroup and moves this process into it, or below it where the hierarchy is unified.
    pub fn create_and_join(&self) -> Result<()> {
        let joined = if self.unified { self.path.join(SUPERVISOR) } else { self.path.clone() };
        fs::create_dir_all(&joined).with_context(|| format!("create {}", joined.display()))?;
        // A cpuset of version 1 takes no process before it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let from = self.parent.join(file);
            if self.controllers.split(',').any(|name| name == "cpuset") && from.exists() {
                let inherited = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
                let to = self.path.join(file);
                fs::write(&to, inherited).with_context(|| format!("write {}", to.display()))?;
            }
        }
        if self.unified {
            self.hand_on_controllers();
        } else if self.controllers.is_empty() {
            self.take_back_controllers();
        }
        join(&joined)
    }

    /// crun 1.28 makes no container where the version 2 of a hybrid host has a controller ("cgroups in hybrid mode not
    /// supported, drop all controllers from cgroupv2"), and the run's cgroup has what its parent hands on. A parent whose
    /// other children use a controller keeps it (`EBUSY`): then crun says so itself.
    fn take_back_controllers(&self) {
        let control = self.parent.join("cgroup.subtree_control");
        for controller in fs::read_to_string(&control).unwrap_or_default().split_whitespace() {
            eprintln!("{} handed {controller} on: taken back, for crun", self.parent.display());
            let _ = fs::write(&control, format!("-{controller}"));
        }
    }

    /// As every runtime does at the top of the hierarchy. A controller that the host does not have is not missed.
    fn hand_on_controllers(&self) {
        for controller in CONTROLLERS {
            let _ = fs::write(self.parent.join("cgroup.subtree_control"), controller);
        }
    }

    /// Moves this process into the run's cgroup itself: what it then unshares has this as its root.
    pub fn join_root(&self) -> Result<()> {
        join(&self.path)
    }

    /// Moves this process out of the root that it has made, as it is seen below `root`, the machine's new root.
    pub fn leave_root(&self, root: &Path) -> Result<()> {
        let inside = self.mount_point.strip_prefix("/").unwrap_or(&self.mount_point);
        if self.unified { join(&root.join(inside).join(SUPERVISOR)) } else { Ok(()) }
    }

    /// Where the hierarchy is seen inside the machine.
    pub fn inside(&self) -> &Path {
        &self.mount_point
    }
}

/// `0` is the process that writes, in whatever PID namespace it is.
fn join(cgroup: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join {}", cgroup.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpuset
32 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 29 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_host_gets_cgroups_below_its_own() {
        let own = "3:name=systemd:/a\n2:cpuset,cpuacct:/b/c\n1:cpu:/\n4:net_cls:/\n0::/d\n";
        let found = plan_hierarchies(own, HYBRID, "run");
        let paths: Vec<_> = found.iter().map(|h| h.path.to_str().unwrap_or_default()).collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/systemd/a/run",
                "/sys/fs/cgroup/cpu,cpuacct/b/c/run",
                "/sys/fs/cgroup/cpu/run",
                "/sys/fs/cgroup/unified/d/run",
            ]
        );
    }

    #[test]
    fn a_unified_host_gets_one_at_the_top() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let found = plan_hierarchies("0::/user.slice/session-1.scope\n", mounts, "run");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new("/sys/fs/cgroup/run"));
    }
}
