//! A machine of private namespaces on this kernel.
//!
//! Three processes of the test bed's own binary make it. `enter` ties itself to the harness's life, joins the run's
//! cgroups and becomes `unshare(1)`; its child is process 1 inside: `join` makes the cgroup namespace, `init` builds
//! the root, pivots into it, starts the scenario and reaps. When the harness ends, however it ends, the kernel kills `enter` and `init`, and with process
//! 1 go all processes, mounts and the network of the machine. What the kernel does not take away (cgroups, the run's
//! folder on disk) `janitor` removes: it outlives the harness for a moment.

mod cgroups;
mod init;
mod janitor;
pub mod rootless;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::event::{Event, Report};
use crate::machine::{Job, listen};

pub use cgroups::Hierarchy;
pub use init::init;
pub use janitor::janitor;

/// Everything about one run; the processes that make the machine read it from the run's folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Unique on the host; the name of the run's cgroups.
    pub id: String,
    /// On the host's disk: the mount point of the new root, the state that must not lie on an overlay, the logs.
    pub folder: PathBuf,
    /// The Debian tree, never written to.
    pub rootfs: PathBuf,
    /// Seen as `/payload` inside.
    pub payload: PathBuf,
    /// Seen as `/peers` inside, where a scenario needs them.
    pub peers: Option<PathBuf>,
    /// The scenario's name.
    pub scenario: String,
    /// Where this run's cgroups are.
    pub hierarchies: Vec<Hierarchy>,
}

impl Spec {
    fn file(folder: &Path) -> PathBuf {
        folder.join("run.json")
    }

    /// Reads the run's file.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = Self::file(folder);
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))
    }

    fn write(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        let file = Self::file(&self.folder);
        fs::write(&file, serde_json::to_vec(self)?).with_context(|| format!("write {}", file.display()))
    }
}

/// Where a native machine is made and of what.
#[derive(Debug, Clone)]
pub struct Site {
    /// The test bed's own binary.
    pub testbed: PathBuf,
    /// A folder on a disk, in which the run makes its own.
    pub runs: PathBuf,
    /// The Debian tree.
    pub rootfs: PathBuf,
    /// The payload.
    pub payload: PathBuf,
    /// Programs of others, for a scenario that needs them.
    pub peers: Option<PathBuf>,
}

/// Runs a scenario in namespaces of its own; see [`crate::machine::Machine::run`].
pub fn run(site: &Site, job: &Job, watch: impl FnMut(&Event)) -> Result<Report> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let id = format!("capsule-run-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let folder = site.runs.join(&id);
    let spec = Spec {
        hierarchies: cgroups::read_hierarchies(&id)?,
        id,
        folder: folder.clone(),
        rootfs: site.rootfs.clone(),
        payload: site.payload.clone(),
        peers: site.peers.clone(),
        scenario: job.scenario.clone(),
    };
    spec.write()?;
    let testbed = &site.testbed;
    // Its own process group: an interrupt at the terminal must not reach it.
    let mut janitor = Command::new(testbed)
        .arg("janitor")
        .arg(&folder)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("start the janitor")?;
    let log = fs::File::create(folder.join("machine.log")).context("create the machine's log")?;
    let mut machine = Command::new(testbed)
        .arg("enter")
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the machine")?;
    let report = listen(&mut machine, job.silence, watch);
    let log = fs::read_to_string(folder.join("machine.log")).unwrap_or_default();
    drop(janitor.stdin.take());
    let swept = janitor.wait().context("wait for the janitor")?;
    let mut report = report?;
    if !matches!(report.events.last(), Some(Event::Done { .. })) {
        report.events.push(Event::Log { program: "machine".to_owned(), tail: log });
    }
    if !swept.success() {
        bail!("the machine left something behind that could not be removed; see above");
    }
    Ok(report)
}

/// Becomes the supervisor of a machine: dies with the process that called it, and everything inside with it.
///
/// Returns only if something failed.
pub fn enter(folder: &Path) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("tie to the parent's life")?;
    let spec = Spec::read(folder)?;
    for hierarchy in &spec.hierarchies {
        hierarchy.create_and_join()?;
    }
    // --kill-child makes the child die with unshare, which dies with the harness. Propagation is private by default:
    // no mount made inside is seen outside.
    unshare(&["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child=KILL"], "join", folder)
}

/// Makes the run's cgroup the root of a cgroup namespace: process 1, before it builds its root. Its parent, the
/// supervisor, must not be in that cgroup (version 2 would hand no controller on), so it cannot make the namespace.
///
/// Returns only if something failed.
pub fn join(folder: &Path) -> Result<()> {
    let spec = Spec::read(folder)?;
    spec.hierarchies.iter().try_for_each(Hierarchy::join_root)?;
    unshare(&["--cgroup"], "init", folder)
}

/// Becomes `unshare(1)` and after it this program with `command`.
fn unshare(namespaces: &[&str], command: &str, folder: &Path) -> Result<()> {
    let testbed = std::env::current_exe().context("find this program")?;
    let error =
        Command::new("unshare").args(namespaces).arg("--").arg(testbed).arg(command).arg(folder).exec();
    Err(error).context("start unshare")
}
