//! What a case is given: a containerd (with capsuled beside it) and the stack that is tested.

use std::cell::{Cell, RefCell, RefMut};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Need;
use super::client::Client;
use crate::event::Reporter;
use crate::scenario::capsulectl::publish;
use crate::scenario::ctr::{Container, OURS, REFERENCE, Stack, ctr};
use crate::scenario::rootless::{self, Cgroups};
use crate::scenario::world::{World, path};
use crate::workspace::output_of;

/// Where cases put files that a client owns: logs, FIFOs, options.
pub const FILES: &str = "/run/runtime-suite";
/// A process that stays.
pub const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// How long a case waits for what should take no time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Not 1.7.
    pub containerd_2: bool,
    /// Only cgroups of version 2.
    pub unified: bool,
    /// systemd is the first process: it is a VM.
    pub systemd: bool,
    /// Root in a user namespace only.
    pub rootless: bool,
    /// What containers can have.
    pub cgroups: Cgroups,
}

impl Facts {
    fn read() -> Result<Self> {
        let version = output_of(Command::new("containerd").arg("--version").env("PATH", path()))?;
        Ok(Self {
            containerd_2: !version.contains(" 1.7."),
            unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            systemd: Path::new("/run/systemd/system").exists(),
            rootless: rootless::is_here(),
            cgroups: rootless::cgroups(),
        })
    }

    /// Whether this machine has what a case needs.
    pub fn has(self, need: Need) -> bool {
        match need {
            // The only machines with systemd are VMs, of which none is as fast.
            Need::Native => !self.systemd,
            Need::Cgroups => self.cgroups.own,
            Need::Controllers => self.cgroups.controllers,
            Need::UnifiedCgroups => self.unified && self.cgroups.controllers,
            Need::LegacyCgroups => !self.unified && self.cgroups.controllers,
            Need::Systemd => self.systemd,
            Need::Containerd2 => self.containerd_2,
            Need::Root => !self.rootless,
            Need::Rootless => self.rootless,
        }
    }
}

/// What a case is given.
#[derive(Debug)]
pub struct Bed {
    /// What is tested.
    pub stack: Stack,
    world: RefCell<World>,
    facts: Facts,
    /// The newest version of the capsule `tzdata`, where capsuled runs.
    newest: Option<String>,
    next: Cell<u32>,
    client: Client,
}

impl Bed {
    /// Starts containerd, and capsuled with capsules if `with_capsuled`.
    pub fn start(reporter: &mut Reporter, with_capsuled: bool) -> Result<Self> {
        let world = RefCell::new(World::start(with_capsuled)?);
        fs::create_dir_all(FILES).with_context(|| format!("create {FILES}"))?;
        let newest = if with_capsuled {
            let publish = || publish().map(|[_, newest]| (newest, String::new()));
            Some(reporter.must("capsules are there", publish)?)
        } else {
            None
        };
        Ok(Self {
            stack: REFERENCE,
            world,
            facts: Facts::read()?,
            newest,
            next: Cell::new(0),
            client: Client::connect()?,
        })
    }

    /// From now on this stack is tested.
    pub fn use_stack(&mut self, reporter: &mut Reporter, stack: Stack) -> Result<()> {
        self.stack = stack;
        if stack.snapshotter == OURS.snapshotter {
            reporter.check(&format!("{}: ctr plugins ls shows the proxy plugin", stack.name), proxy_plugin);
        }
        reporter.must(&format!("{}: import an image and unpack it", stack.name), || {
            Ok(((), stack.import()?.trim().replace('\t', " ")))
        })
    }

    /// What this machine has.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// Whether containerd's own runtime is tested: for what it is known to do otherwise, with a reason.
    pub fn is_reference(&self) -> bool {
        self.stack.runtime == REFERENCE.runtime
    }

    /// The daemons.
    pub fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// containerd's services.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The newest version of the capsule `tzdata`.
    pub fn newest(&self) -> Result<&str> {
        self.newest.as_deref().context("capsuled does not run")
    }

    /// An id that no container of this machine has had.
    pub fn id(&self, hint: &str) -> String {
        let number = self.next.get();
        self.next.set(number + 1);
        format!("{}-{hint}-{number}", self.stack.name)
    }

    /// Starts a container that stays, without streams.
    pub fn start_container(&self, hint: &str, command: &[&str]) -> Result<Container> {
        self.stack.start(&self.id(hint), &[], command)
    }

    /// Starts a container with a shell's script, with `options` of `ctr run` that send its output somewhere.
    pub fn start_logged(&self, id: &str, options: &[&str], script: &str) -> Result<Container> {
        self.stack.start_with_output(id, options, &["/bin/sh", "-c", script])
    }

    /// Removes what a failed case left, and starts what it killed, as well as it can: the next case should not suffer for
    /// it.
    pub fn clean(&self) {
        if let Err(error) = self.world().mend().and_then(|()| self.wait_for_snapshotter().map(drop)) {
            // The next case says so, too.
            let _ = writeln!(std::io::stderr(), "clean up after a failed case: {error:#}");
        }
        for (list, remove) in [
            (["task", "ls", "-q"], &["task", "rm", "-f"][..]),
            (["container", "ls", "-q"], &["container", "rm"]),
        ] {
            let left = ctr(&list).map(|output| output.out).unwrap_or_default();
            for id in left.lines() {
                let _ = ctr(&[remove, &[id]].concat());
            }
        }
    }

    /// Asserts that no task, shim, mount or active snapshot is left.
    pub fn nothing_left(&self) -> Result<String> {
        let tasks = ctr(&["task", "ls", "-q"])?.success("ctr task ls")?;
        ensure!(tasks.trim().is_empty(), "tasks: {tasks}");
        eventually("shims and mounts to go", || {
            let shims = processes_named("containerd-shim")?;
            let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
            let mounts: Vec<&str> =
                mounts.lines().filter(|line| line.contains("/run/containerd/io.containerd")).collect();
            ensure!(shims.is_empty() && mounts.is_empty(), "left: {shims:?} {mounts:?}");
            Ok(())
        })?;
        let list = self.wait_for_snapshotter()?;
        let active = list.lines().filter(|line| line.trim_end().ends_with("Active")).count();
        ensure!(active == 0, "snapshots: {list}");
        Ok(String::new())
    }

    /// Starts a capsuled that was killed, and waits until containerd asks it again, which it does not at once after it has
    /// asked in vain.
    pub fn restart_capsuled(&self) -> Result<()> {
        self.world().restart_capsuled()
    }

    /// containerd waits a moment before it connects again to a capsuled that was replaced. What `ctr` lists then.
    fn wait_for_snapshotter(&self) -> Result<String> {
        eventually("containerd to list snapshots", || {
            ctr(&["snapshots", "--snapshotter", self.stack.snapshotter, "ls"])?.success("ctr snapshots ls")
        })
    }

    /// Ends the daemons.
    pub fn stop(self) -> Result<()> {
        self.world.into_inner().stop()
    }
}

fn proxy_plugin() -> Result<String> {
    let list = ctr(&["plugins", "ls"])?.success("ctr plugins ls")?;
    let row = list.lines().find(|line| line.split_ascii_whitespace().nth(1) == Some("capsule"));
    let row = row.context("no plugin named capsule")?;
    ensure!(row.trim_end().ends_with("ok"), "{row}");
    Ok(row.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// Tries until it succeeds, for at most [`PATIENCE`]; the last error otherwise.
pub fn eventually<T>(what: &str, step: impl FnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, what, step)
}

/// Tries until it succeeds, for at most `patience`; the last error otherwise.
pub fn within<T>(patience: Duration, what: &str, mut step: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match step() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                bail!("waited {patience:?} for {what}: {error:#}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Processes whose command line starts with a program of this name.
pub fn processes_named(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let program = cmdline.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        if program.rsplit('/').next().is_some_and(|base| base.starts_with(name)) {
            found.push(format!("{} {program}", entry.file_name().display()));
        }
    }
    Ok(found)
}
