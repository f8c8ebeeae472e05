//! A node without root inside a machine: what `rootlesskit` makes for `containerd-rootless.sh`.
//!
//! Three processes of the test bed's own binary make it, as they make the machine. `enter`, still the machine's root,
//! prepares what the node's user owns and becomes `nsenter(1)` into a user namespace in which that user is root, and then
//! `unshare(1)`; `join` makes the cgroup namespace; `init` mounts what the node has of its own, starts the scenario and
//! reaps. Nothing in there has any right over the machine's files, mounts or cgroups: they belong to nobody.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use overlayfs_utils::{IdMapping, new_user_namespace};
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use super::Hierarchy;
use super::init::{mount_at, run_scenario};
use crate::workspace::output_of;

/// The user on the machine who is root in the node.
const USER: u32 = 1000;
/// As `newuidmap` maps them by default: the user, and the first ids that `/etc/subuid` gives away.
const MAP: &str = "0:1000:1,1:100000:65535";

/// What the node's user owns on the machine's disk: a folder in each.
const ON_DISK: [&str; 3] = ["/var/lib/containerd", "/var/lib/capsule", "/logs"];
/// How those begin, and the cgroup's name.
const OWN: &str = "rootless";
/// What the node has instead of the machine's, empty at first.
const FRESH: [&str; 6] = ["/run", "/tmp", "/dev/shm", "/etc/containerd", "/etc/capsule", "/var/lib/faulty"];

/// Where version 2 is mounted on a host that has both, and where on one that has nothing else.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", CGROUPS];
const CGROUPS: &str = "/sys/fs/cgroup";

/// What of the machine's cgroups is the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Delegation {
    /// One of version 2, with what controllers the machine's has: as systemd does it with `Delegate=yes`.
    Unified,
    /// None: as on a host with version 1.
    Nothing,
}

/// One of the three processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// The first.
    Enter,
    /// The second, which is process 1.
    Join,
    /// The same process later.
    Init,
}

/// A scenario on such a node.
#[derive(Debug, Clone, clap::Args)]
pub struct Node {
    /// What is the node's.
    pub delegation: Delegation,
    /// The scenario's name.
    pub scenario: String,
}

impl Node {
    /// The command that makes the node and runs the scenario. With it ends all of the node.
    pub fn command(&self) -> Result<Command> {
        self.itself(Command::new(testbed()?), Step::Enter)
    }

    /// Does one step; the scenario's exit status after the last. The others return only if something failed.
    pub fn step(&self, step: Step) -> Result<i32> {
        let error = match step {
            Step::Enter => self.enter()?.exec(),
            Step::Join => self.join()?.exec(),
            Step::Init => return self.init(),
        };
        Err(error).context("start the next step")
    }

    /// A command with this program's next step as its last arguments.
    fn itself(&self, mut command: Command, step: Step) -> Result<Command> {
        command.args(["rootless".to_owned(), name(step), name(self.delegation), self.scenario.clone()]);
        Ok(command)
    }

    fn enter(&self) -> Result<Command> {
        for folder in ON_DISK {
            let own = self.own(folder);
            fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
            give(&own)?;
            // As a home directory often is. In the node these flags are locked.
            mount_bind(&own, &own).with_context(|| format!("bind {}", own.display()))?;
            mount_remount(&own, MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV, "")
                .with_context(|| format!("remount {}", own.display()))?;
        }
        for folder in FRESH {
            fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
        }
        if self.delegation == Delegation::Unified {
            delegate()?;
        }
        let map = IdMapping::parse(MAP).context("the node's ids")?;
        let users = new_user_namespace(&map, &map).context("make the node's user namespace")?;
        let mut command = Command::new("nsenter");
        command
            .stdin(users)
            .args(["--user=/proc/self/fd/0", "--setuid=0", "--setgid=0", "--", "unshare"])
            .args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--"])
            .arg(testbed()?);
        self.itself(command, Step::Join)
    }

    fn join(&self) -> Result<Command> {
        if self.delegation == Delegation::Unified {
            hierarchy().join_root()?;
        }
        let mut command = Command::new("unshare");
        command.args(["--cgroup", "--"]).arg(testbed()?);
        self.itself(command, Step::Init)
    }

    fn init(&self) -> Result<i32> {
        mount_at(Path::new("/proc"), "proc", "")?;
        if self.delegation == Delegation::Unified {
            // The kernel mounts no file system on a mount of the same, which is there on a host of version 2 alone.
            mount_at(Path::new("/sys"), "sysfs", "")?;
            mount_at(Path::new(CGROUPS), "cgroup2", "")?;
            hierarchy().leave_root(Path::new("/"))?;
        }
        for folder in ON_DISK {
            mount_bind(self.own(folder), folder).with_context(|| format!("bind {folder}"))?;
        }
        for folder in FRESH {
            mount_at(Path::new(folder), "tmpfs", "mode=755")?;
        }
        mount_at(Path::new("/dev/mqueue"), "mqueue", "")?;
        output_of(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        run_scenario(&self.scenario)
    }

    /// The node's own folder in one of the machine's.
    fn own(&self, folder: &str) -> PathBuf {
        Path::new(folder).join(format!("{OWN}-{}", name(self.delegation)))
    }
}

fn testbed() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// As the command line has it.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Makes a cgroup, enters it and gives it away.
fn delegate() -> Result<()> {
    let hierarchy = hierarchy();
    hierarchy.create_and_join()?;
    // What cgroups(7) says under "Cgroup delegation".
    let files = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "supervisor/cgroup.procs"];
    files.iter().chain(&[""]).try_for_each(|file| give(&hierarchy.path.join(file)))
}

/// The node's cgroup, which hands on what controllers it can get.
fn hierarchy() -> Hierarchy {
    let mount_point = UNIFIED.iter().find(|at| Path::new(at).join("cgroup.procs").exists());
    let mount_point = Path::new(mount_point.unwrap_or(&CGROUPS)).to_owned();
    let (parent, path) = (mount_point.clone(), mount_point.join(OWN));
    Hierarchy { controllers: String::new(), mount_point, parent, path, unified: true }
}

fn give(path: &Path) -> Result<()> {
    chown(path, Some(USER), Some(USER)).with_context(|| format!("give {} away", path.display()))
}
