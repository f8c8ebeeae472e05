//! A large cluster without its nodes: what the controller takes, and how many calls it makes. A real API server and a real etcd; nodes and
//! their agents are `capsule-simulator`'s.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::asked::{controller, definitions};
use super::cluster::Control;
use super::{files, until};
use crate::event::Reporter;
use crate::kubernetes;
use crate::scenario::http;
use crate::scenario::world::{Daemon, path, resident};

/// The scenario's name.
pub const SCENARIO: &str = "kubernetes-large";
const LISTEN: &str = "127.0.0.1:9471";
/// How many nodes, pods on each, and attachments that share them.
const LARGE: [&str; 6] = ["--nodes", "5000", "--pods", "20", "--attachments", "100"];
/// What the controller may take, in KiB: its limit in configs/kustomize.
const MEMORY_KIB: u64 = 1 << 20;

/// Measures, and prints what was measured.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    reporter.must("Kubernetes is there", || {
        kubernetes::install()?;
        files::write()?;
        fs::create_dir_all("/var/log").context("a folder for logs")?;
        Ok(((), kubernetes::VERSION.to_owned()))
    })?;
    let control = reporter.must("the API server answers", || Ok((Control::start()?, String::new())))?;
    definitions()?;
    let daemon = reporter.must("the controller starts", || {
        let daemon = controller("one", &["--listen", LISTEN])?;
        until("there: the controller", || Ok(http::get(LISTEN, "/readyz").is_ok()))?;
        let said = format!("{} KiB", resident(daemon.pid())?);
        Ok((daemon, said))
    })?;
    simulate(reporter)?;
    reporter.check("memory of the controller", || memory(&daemon));
    reporter.check("what a pass takes", passes);
    drop((daemon, control));
    Ok(())
}

/// Tells each line when it comes: all of it takes longer than a scenario may be silent.
fn simulate(reporter: &mut Reporter) -> Result<()> {
    let mut command = Command::new("capsule-simulator");
    command
        .args(LARGE)
        .env("PATH", path())
        .env("KUBECONFIG", files::file("admin.conf"))
        .stdout(Stdio::piped());
    let mut simulator = command.spawn().context("start the simulator")?;
    for line in BufReader::new(simulator.stdout.take().context("its output")?).lines() {
        let line = line.context("read what it says")?;
        let told: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        reporter.check(told["what"].as_str().unwrap_or_default(), || Ok(line));
    }
    let status = simulator.wait().context("wait for the simulator")?;
    ensure!(status.success(), "the simulator ended: {status}");
    Ok(())
}

fn memory(daemon: &Daemon) -> Result<String> {
    let resident = resident(daemon.pid())?;
    ensure!(resident < MEMORY_KIB, "{resident} of {MEMORY_KIB} KiB");
    Ok(format!("{resident} KiB"))
}

fn passes() -> Result<String> {
    let text = http::get(LISTEN, "/metrics")?;
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next())
            .and_then(|number| number.parse::<f64>().ok())
            .with_context(|| name.to_owned())
    };
    let (count, sum) = (
        of("capsule_controller_pass_duration_seconds_count")?,
        of("capsule_controller_pass_duration_seconds_sum")?,
    );
    Ok(format!("{count} passes, {:.3} s each", sum / count.max(1.0)))
}
