//! One API for both kinds of machine: run a scenario inside, read its events outside.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::event::{Event, Report};
use crate::images::Image;
use crate::native::Site;
use crate::payload::Payload;
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, require_root};
use crate::{image, native, packages, peers, vm};

/// What a scenario runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Private namespaces on this kernel.
    Native,
    /// Debian's own kernel and systemd in qemu.
    Vm,
}

impl Kind {
    /// The lock of those that take turns. Both kinds may run at once: emulated processors take one of the host's, and those that are
    /// not emulated wait more than they work.
    #[must_use]
    pub fn turn(self) -> &'static str {
        match self {
            Self::Native => "native-machine",
            Self::Vm => "vm-machine",
        }
    }
}

/// A kind of machine with a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// What it runs on.
    pub kind: Kind,
    /// Its root file system.
    pub suite: Suite,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Native => write!(f, "native {}", self.suite),
            Kind::Vm => write!(f, "VM {}", self.suite),
        }
    }
}

/// What is run inside a machine.
#[derive(Debug, Clone)]
pub struct Job {
    /// The scenario's name.
    pub scenario: String,
    /// It is given up when it says nothing for this long.
    pub silence: Duration,
}

impl Machine {
    /// Runs a scenario to its end and hands every event to `watch` as it comes.
    ///
    /// Nothing of the machine is left when this returns, nor when this process is killed.
    pub fn run(self, workspace: &Workspace, job: &Job, watch: impl FnMut(&Event)) -> Result<Report> {
        require_root(&format!("a {self} machine"))?;
        let rootfs = rootfs::ready(workspace, self.suite)?;
        let payload = Payload::ready(workspace, Image::needed_by(&job.scenario))?;
        if job.scenario == packages::SCENARIO {
            payload.add(packages::SCENARIO, &packages::made(workspace)?)?;
        }
        if job.scenario == image::SCENARIO {
            payload.add(image::FOLDER, &[image::made(workspace)?])?;
        }
        let peers = peers::of(workspace, &job.scenario)?;
        match self.kind {
            Kind::Native => {
                let (testbed, runs) = (workspace.testbed(), workspace.target("runs")?);
                native::run(&Site { testbed, runs, rootfs, payload: payload.folder, peers }, job, watch)
            }
            Kind::Vm => vm::run(workspace, &vm::Disks { rootfs, payload, peers }, job, watch),
        }
        .with_context(|| format!("scenario {} on {self}", job.scenario))
    }
}

/// Reads a machine's events until it ends. When it says nothing for `silence` it is killed: how long it takes in all
/// depends on how fast it is.
pub(crate) fn listen(
    machine: &mut Child,
    silence: Duration,
    mut watch: impl FnMut(&Event),
) -> Result<Report> {
    let out = machine.stdout.take().context("the machine has no output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut report = Report::default();
    loop {
        match lines.recv_timeout(silence) {
            Ok(line) => {
                let event = parse_event(&line);
                watch(&event);
                report.events.push(event);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                machine.kill().context("kill the machine")?;
                let tail = format!("the machine was killed: it said nothing for {silence:?}");
                report.events.push(Event::Log { program: "test bed".to_owned(), tail });
                break;
            }
        }
    }
    machine.wait().context("wait for the machine")?;
    Ok(report)
}

/// A line that is no event comes from a program that writes where it should not: shown, and never taken for success.
fn parse_event(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|_| Event::Show { line: line.to_owned() })
}
