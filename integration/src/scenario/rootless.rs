//! The runtime suite on a node without root, as `containerd-rootless.sh` makes one: with a cgroup of version 2 of its own,
//! and with none.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Access, access};

use crate::event::{Event, Reporter};
use crate::machine::listen;
use crate::native::rootless::{Delegation, Node};

const CGROUPS: &str = "/sys/fs/cgroup";
/// How long a case may be silent.
const SILENCE: Duration = Duration::from_secs(240);

/// What control groups containers can have on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroups {
    /// They can have their own.
    pub own: bool,
    /// With controllers, which count and limit.
    pub controllers: bool,
}

/// Whether this process is root in a user namespace only (user_namespaces(7)).
pub fn is_here() -> bool {
    // Where that cannot be read, nothing of the host's root is to be expected.
    overlayfs_utils::in_user_namespace().unwrap_or(true)
}

/// Finds out what control groups there are to be had here.
pub fn cgroups() -> Cgroups {
    let unified = fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"));
    match unified {
        _ if !is_here() => Cgroups { own: true, controllers: true },
        Ok(controllers) if access(CGROUPS, Access::WRITE_OK).is_ok() => {
            Cgroups { own: true, controllers: !controllers.trim().is_empty() }
        }
        _ => Cgroups { own: false, controllers: false },
    }
}

/// What `ctr` has to be told here when it makes a container: unless told otherwise it asks for a share of the processor and
/// for a control group, and a runtime that cannot give them fails.
pub fn options() -> &'static [&'static str] {
    static OPTIONS: OnceLock<&[&str]> = OnceLock::new();
    OPTIONS.get_or_init(|| match cgroups() {
        Cgroups { own: false, .. } => &["--cpu-shares", "0", "--cgroup", ""],
        Cgroups { controllers: false, .. } => &["--cpu-shares", "0"],
        _ => &[],
    })
}

/// Runs `suite`, a scenario of the runtime suite, on such nodes.
pub fn run(reporter: &mut Reporter, suite: &str) -> Result<()> {
    let mut failed = Vec::new();
    for (delegation, what) in
        [(Delegation::Unified, "with a cgroup"), (Delegation::Nothing, "without a cgroup")]
    {
        if let Err(error) = run_on(reporter, &Node { delegation, scenario: suite.to_owned() }, what) {
            failed.push(format!("{what}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn run_on(reporter: &mut Reporter, node: &Node, what: &str) -> Result<()> {
    let errors = std::env::temp_dir().join("rootless.log");
    let log = File::create(&errors).with_context(|| format!("create {}", errors.display()))?;
    let mut command = node.command()?;
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
    let report =
        listen(&mut started.context("start a node without root")?, SILENCE, |event| match event.clone() {
            Event::Done { .. } => {}
            Event::Step { name, ok, detail, took_us } => {
                let name = format!("{what}: {name}");
                reporter.send(&Event::Step { name, ok, detail, took_us });
            }
            event => reporter.send(&event),
        })?;
    // Which case did not hold has been told.
    ensure!(report.expect_ok().is_ok(), "{}", fs::read_to_string(&errors).unwrap_or_default().trim());
    Ok(())
}
