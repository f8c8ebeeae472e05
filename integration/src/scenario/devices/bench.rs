//! How long devices take: attached to a container that runs, beside recreating it with them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{FILES, SLEEP};
use crate::event::Reporter;
use crate::scenario::capsulectl::done;
use crate::scenario::ctr::OURS;
use crate::scenario::world::{World, with_logs};

/// How often each is done. The slowest of so many is what is told beside the median.
const ATTACHES: usize = 100;
const RECREATIONS: usize = 20;
const NODES: u32 = 6;
const MOUNTS: u32 = 30;

/// Runs it.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, measure)
}

fn measure(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    reporter.must("an image and specs are there", || {
        OURS.import()?;
        super::prepare()?;
        prepare().map(|()| ((), String::new()))
    })?;
    for binary in ["runc", "crun"] {
        for device in ["one", "gpu"] {
            let name = format!("example.com/bench={device}");
            reporter.check(&format!("{binary}: {device}, attach and detach"), || live(binary, &name));
            reporter.check(&format!("{binary}: {device}, recreate with ctr run --device"), || {
                recreate(binary, &name)
            });
        }
    }
    world.stop()
}

/// One node, and what a GPU's spec has: nodes and files of a driver.
fn prepare() -> Result<()> {
    let node = |index: u32| json!({"path": format!("/dev/bench{index}"), "type": "c", "major": 240, "minor": index, "permissions": "rw"});
    let nodes: Vec<_> = (1..=NODES).map(node).collect();
    let mut mounts = Vec::new();
    for index in 1..=MOUNTS {
        let host = format!("{FILES}/libbench.so.{index}");
        fs::write(&host, "library").context("a library")?;
        mounts.push(json!({"hostPath": host, "containerPath": format!("/usr/lib/bench/libbench.so.{index}"),
            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}));
    }
    let spec = json!({"cdiVersion": "0.6.0", "kind": "example.com/bench", "devices": [
        {"name": "one", "containerEdits": {"deviceNodes": [node(1)]}},
        {"name": "gpu", "containerEdits": {"deviceNodes": nodes, "mounts": mounts}},
    ]});
    fs::write("/etc/cdi/bench.json", spec.to_string()).context("a spec")
}

fn options(binary: &str) -> Result<String> {
    let toml = format!("{FILES}/bench-{binary}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\n")).context("options")?;
    Ok(toml)
}

fn live(binary: &str, device: &str) -> Result<String> {
    let container = OURS.start("bench", &["--runtime-config-path", &options(binary)?], &SLEEP)?;
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..ATTACHES {
        attach.push(timed(|| done(&["attach", "bench", "--device", device]).map(drop))?);
        detach.push(timed(|| done(&["detach", "bench", "--device", device]).map(drop))?);
    }
    container.remove()?;
    Ok(format!("attach {}; detach {}", summary(attach), summary(detach)))
}

fn recreate(binary: &str, device: &str) -> Result<String> {
    let toml = options(binary)?;
    let with = ["--runtime-config-path", &toml, "--device", device];
    let mut container = OURS.start("bench", &["--runtime-config-path", &toml], &SLEEP)?;
    let mut all = Vec::new();
    for _ in 0..RECREATIONS {
        let began = Instant::now();
        container.remove()?;
        container = OURS.start("bench", &with, &SLEEP)?;
        all.push(began.elapsed());
    }
    container.remove()?;
    Ok(summary(all))
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    call()?;
    Ok(began.elapsed())
}

/// The median, and the 99th of a hundred.
fn summary(mut all: Vec<Duration>) -> String {
    all.sort();
    let at =
        |percent: usize| all[(all.len() * percent).div_ceil(100).saturating_sub(1)].as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms of {}", at(50), at(99), all.len())
}
