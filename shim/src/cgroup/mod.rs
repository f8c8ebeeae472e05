//! Which control groups a container is in: found by its init when the container is made, as containerd's own shim does
//! it, and kept. An init that moves on later, or has ended, changes nothing.
//!
//! Here are paths, `controllers`, which hands controllers down to a container of version 2, and `leftover`, which removes
//! what no runtime knows of. What is read in the
//! paths is for `stats` and `oom`.

pub mod controllers;
pub mod leftover;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use rustix::fs::statfs;
use thiserror::Error;

/// Where every node has its control groups.
const MOUNT: &str = "/sys/fs/cgroup";
/// The type of a unified hierarchy's file system (statfs(2)).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
/// The controllers of version 1 of which something is read.
const CONTROLLERS: [&str; 7] = ["blkio", "cpu", "cpuacct", "hugetlb", "memory", "pids", "rdma"];

/// Why a container's control groups are not known.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A file of `/proc`.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The process has none that can be reached.
    #[error("process {pid} is in no control group below {MOUNT}: {text:?}")]
    None {
        /// The process.
        pid: i32,
        /// Its `/proc/PID/cgroup`.
        text: String,
    },
}

/// The control groups of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// Version 2: one directory for all controllers.
    Unified(PathBuf),
    /// Version 1, or a hybrid: one directory for each controller.
    Legacy(Vec<(&'static str, PathBuf)>),
}

/// The node's hierarchies, which do not change while it runs; looked at when the first container is made.
#[derive(Debug, Default)]
pub struct Hierarchies(OnceLock<Kind>);

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Unified,
    Legacy(Vec<Hierarchy>),
}

/// One controller of version 1.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    controller: &'static str,
    /// The control group that is mounted.
    root: PathBuf,
    mount_point: PathBuf,
}

impl Hierarchies {
    /// The control groups that the process `pid` is in now.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn of(&self, pid: i32) -> Result<Cgroup, CgroupError> {
        let kind = match self.0.get() {
            Some(kind) => kind,
            None => {
                let kind = read_kind()?;
                self.0.get_or_init(|| kind)
            }
        };
        let text = read(format!("/proc/{pid}/cgroup").into())?;
        let cgroup = match kind {
            Kind::Unified => parse_unified(&text).map(|path| Cgroup::Unified(Path::new(MOUNT).join(path))),
            Kind::Legacy(hierarchies) => Some(Cgroup::Legacy(plan_legacy(&text, hierarchies))),
        };
        cgroup.and_then(Cgroup::that_is_there).ok_or(CgroupError::None { pid, text })
    }
}

impl Cgroup {
    /// Where the files of a controller are; of version 2, where those of all are.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::Unified(path) => Some(path),
            Self::Legacy(paths) => {
                paths.iter().find(|(name, _)| *name == controller).map(|(_, path)| path.as_path())
            }
        }
    }

    /// Without the directories that are not there; none without any.
    fn that_is_there(self) -> Option<Self> {
        match self {
            Self::Unified(path) => path.is_dir().then_some(Self::Unified(path)),
            Self::Legacy(mut paths) => {
                paths.retain(|(_, path)| path.is_dir());
                (!paths.is_empty()).then_some(Self::Legacy(paths))
            }
        }
    }
}

/// Whether the hierarchy is unified: one whose kind cannot be seen is not.
pub fn is_unified() -> bool {
    let found = statfs(Path::new(MOUNT));
    found.is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC))
}

fn read_kind() -> Result<Kind, CgroupError> {
    let at = Path::new(MOUNT);
    let found = statfs(at).map_err(|e| CgroupError::Read(at.to_owned(), e.into()))?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC) {
        return Ok(Kind::Unified);
    }
    Ok(Kind::Legacy(parse_mounts(&read("/proc/self/mountinfo".into())?)))
}

fn read(path: PathBuf) -> Result<String, CgroupError> {
    // The path of a control group may hold any byte.
    let bytes = fs::read(&path).map_err(|e| CgroupError::Read(path, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The hierarchies of version 1 in a `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): lines of
/// `ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS TAGS… - TYPE SOURCE CONTROLLERS`. The first mount of a controller counts.
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (Some(root), Some(mount_point), Some("cgroup"), Some(options)) =
            (left.next(), left.next(), right.next(), right.nth(1))
        else {
            continue;
        };
        for option in options.split(',') {
            let known = CONTROLLERS.into_iter().find(|controller| *controller == option);
            if let Some(controller) = known.filter(|new| found.iter().all(|h| h.controller != *new)) {
                found.push(Hierarchy { controller, root: root.into(), mount_point: mount_point.into() });
            }
        }
    }
    found
}

/// The path of version 2 in a `/proc/PID/cgroup` (cgroups(7)), relative to the hierarchy's root.
fn parse_unified(text: &str) -> Option<&Path> {
    text.lines().find_map(|line| below(Path::new(line.strip_prefix("0::")?), Path::new("/")))
}

/// The directories of a process' control groups of version 1.
fn plan_legacy(text: &str, hierarchies: &[Hierarchy]) -> Vec<(&'static str, PathBuf)> {
    let of = |hierarchy: &Hierarchy| {
        let path = text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers.split(',').any(|name| name == hierarchy.controller).then(|| fields.next()).flatten()
        })?;
        let relative = below(Path::new(path), &hierarchy.root)?;
        Some((hierarchy.controller, hierarchy.mount_point.join(relative)))
    };
    hierarchies.iter().filter_map(of).collect()
}

/// `path` relative to `root`. None for one that is elsewhere: the kernel shows `/../…` for what is outside of the reader's
/// cgroup namespace, and that is nothing to be joined to a mount point.
fn below<'a>(path: &'a Path, root: &Path) -> Option<&'a Path> {
    let relative = path.strip_prefix(root).ok()?;
    relative.components().all(|part| matches!(part, Component::Normal(_))).then_some(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_path_is_found_and_stays_below_its_mount() {
        for (text, path) in [
            ("0::/system.slice/c1.scope\n", Some("system.slice/c1.scope")),
            ("1:name=systemd:/x\n0::/a:b/c\n", Some("a:b/c")),
            ("0::/\n", Some("")),
            ("0::/../other\n", None),
            ("0::/a/../../etc\n", None),
            ("0::relative\n", None),
            ("1:cpu:/a\n", None),
            ("", None),
        ] {
            assert_eq!(parse_unified(text), path.map(Path::new), "{text:?}");
        }
    }

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /pod /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /elsewhere/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
broken line
";

    #[test]
    fn each_controller_of_version_1_has_its_directory() {
        let mounts = parse_mounts(MOUNTS);
        let names: Vec<_> = mounts.iter().map(|hierarchy| hierarchy.controller).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory"]);
        let own = "9:name=systemd:/x\n4:memory:/pod/c1\n3:cpuset:/\n2:cpuacct,cpu:/default/c:1\n0::/\n";
        let planned = plan_legacy(own, &mounts);
        assert_eq!(
            planned,
            [
                ("cpu", "/sys/fs/cgroup/cpu,cpuacct/default/c:1".into()),
                ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/default/c:1".into()),
                ("memory", "/sys/fs/cgroup/memory/c1".into()),
            ]
        );
        // Outside of what is mounted, and outside of the cgroup namespace.
        assert_eq!(plan_legacy("4:memory:/other\n2:cpu:/../up\n", &mounts), []);
    }

    #[test]
    fn this_process_is_in_a_control_group() {
        let hierarchies = Hierarchies::default();
        let cgroup = hierarchies.of(std::process::id().cast_signed()).unwrap();
        assert!(cgroup.directory("memory").is_some_and(|path| path.join("cgroup.procs").exists()));
        assert!(matches!(hierarchies.of(i32::MAX), Err(CgroupError::Read(..))));
    }
}
