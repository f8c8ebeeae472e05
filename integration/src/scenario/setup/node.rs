//! A node whose containerd has the configuration that containerd looks for by itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::super::capsulectl::capsulectl;
use super::super::ctr::ctr;
use super::super::world::{CAPSULED_SOCKET, CONTAINERD_SOCKET, Daemon, path};
use crate::workspace::output_of;

/// containerd's own configuration.
pub const CONFIG: &str = "/etc/containerd/config.toml";
/// capsuled's.
pub const OWN_CONFIG: &str = "/etc/capsule/config.toml";

/// The daemons; they are killed when this is dropped.
pub struct Node {
    /// None while it is down.
    containerd: Option<Daemon>,
    capsuled: Option<Daemon>,
    /// Whether containerd is 1.7.
    pub is_1_7: bool,
}

impl Node {
    /// Starts capsuled, and no containerd yet.
    pub fn new() -> Result<Self> {
        let version = output_of(Command::new("containerd").arg("--version").env("PATH", path()))?;
        let is_1_7 = version.contains(" 1.7.");
        if is_1_7 {
            // What doctor says of this release, and docs/setup.md.
            fs::write(OWN_CONFIG, "[snapshots]\nremap_ids = false\n")
                .context("write capsuled's configuration")?;
        }
        let mut node = Self { containerd: None, capsuled: None, is_1_7 };
        node.start_capsuled()?;
        Ok(node)
    }

    /// Starts capsuled, and waits until it answers.
    pub fn start_capsuled(&mut self) -> Result<()> {
        let mut capsuled = Daemon::start("capsuled", Command::new("capsuled").env("PATH", path()))?;
        capsuled.wait_until(|| std::os::unix::net::UnixStream::connect(CAPSULED_SOCKET).is_ok())?;
        self.capsuled = Some(capsuled);
        Ok(())
    }

    /// Kills capsuled.
    pub fn kill_capsuled(&mut self) -> Result<()> {
        self.capsuled.take().map_or(Ok(()), |mut daemon| daemon.kill())
    }

    /// Kills containerd.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.take().map_or(Ok(()), |mut daemon| daemon.kill())
    }

    /// Starts containerd anew, without a word about its configuration, and waits until it answers.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.restart_containerd_on(path())
    }

    /// The same, with another search path.
    pub fn restart_containerd_on(&mut self, search: &str) -> Result<()> {
        self.kill_containerd()?;
        let mut containerd = Daemon::start("containerd", Command::new("containerd").env("PATH", search))?;
        let answers = || ctr(&["version"]).is_ok_and(|output| output.code == 0);
        containerd.wait_until(|| Path::new(CONTAINERD_SOCKET).exists() && answers())?;
        self.containerd = Some(containerd);
        Ok(())
    }

    /// Ends both.
    pub fn stop(mut self) -> Result<()> {
        self.kill_containerd()?;
        self.kill_capsuled()
    }
}

/// What doctor finds, whatever its exit status, as JSON.
pub fn findings() -> Result<Value> {
    let output = capsulectl(&["doctor", "-o", "json"])?;
    serde_json::from_str(&output.out).with_context(|| format!("no JSON: {}{}", output.out, output.err))
}

/// Each check with its state, and the counts at the end.
pub fn states(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = report["findings"].as_array().into_iter().flatten();
    let mut states: Vec<_> = all.map(|finding| (text(&finding["check"]), text(&finding["state"]))).collect();
    states.extend(["errors", "warnings"].map(|count| (count.to_owned(), report[count].to_string())));
    states
}

/// What doctor finds in one check: its state, what was found, and what to do.
pub fn finding(check: &str) -> Result<(String, String)> {
    let report = findings()?;
    let all = report["findings"].as_array().context("findings")?;
    let one =
        all.iter().find(|one| one["check"] == check).with_context(|| format!("no {check}: {report}"))?;
    let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), format!("{}: {}", text("found"), text("advice"))))
}
