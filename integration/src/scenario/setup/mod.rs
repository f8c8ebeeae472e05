//! `capsulectl setup` and `doctor` on a node as it is before anybody has set it up: containerd's own configuration, or none.
//!
//! What setup writes is judged by containerd alone: it is started with it, and the main job is done. What it takes back has to be,
//! to the byte, what was there.

mod cases;
mod node;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use self::node::{CONFIG, Node, findings, states};
use super::capsulectl::{capsulectl, done, refused};
use super::ctr::{OURS, ctr};
use super::sets::publish;
use super::world::{path, with_logs};
use crate::event::Reporter;
use crate::workspace::output_of;

/// What every finding is on a node that lacks nothing but containerd's configuration. What the machine is (its kernel's control
/// groups, the room on its disk) is not asserted.
const MISSING: [(&str, &str); 14] = [
    ("kernel", "ok"),
    ("capsuled-config", "ok"),
    ("capsuled", "ok"),
    ("capsuled-version", "ok"),
    ("containerd", "ok"),
    ("containerd-version", "ok"),
    ("snapshotter", "error"),
    ("unpack", "warning"),
    ("cri-handler", "warning"),
    ("shim", "ok"),
    ("shim-capsuled", "ok"),
    ("runtime", "ok"),
    ("devices", "ok"),
    ("errors", "1"),
];

/// And on one that lacks nothing.
const CLEAN: [(&str, &str); 16] = [
    ("kernel", "ok"),
    ("capsuled-config", "ok"),
    ("capsuled", "ok"),
    ("capsuled-version", "ok"),
    ("containerd", "ok"),
    ("containerd-version", "ok"),
    ("snapshotter", "ok"),
    ("id-mapping", "ok"),
    ("unpack", "ok"),
    ("cri-handler", "ok"),
    ("cgroup-driver", "ok"),
    ("shim", "ok"),
    ("shim-capsuled", "ok"),
    ("runtime", "ok"),
    ("devices", "ok"),
    ("errors", "0"),
];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, all)
}

fn all(reporter: &mut Reporter) -> Result<()> {
    let mut node = Node::new()?;
    let defaults = output_of(Command::new("containerd").args(["config", "default"]).env("PATH", path()))?;
    let shipped = fs::read_to_string(CONFIG).context("read the package's configuration")?;
    for (what, config) in [
        ("no configuration", None),
        ("the configuration that `containerd config default` prints", Some(defaults)),
        ("the package's configuration, with comments", Some(with_comments(&shipped))),
    ] {
        reporter.check(&format!("{what}: set up, used, and taken back"), || {
            there_and_back(&mut node, config.as_deref())
        });
    }
    reporter.check("what is imported is read as containerd reads it", || cases::imports(&mut node));
    reporter.check("what was changed since stays", || cases::changed_since(&mut node));
    reporter.check("what cannot be changed is refused, and stays", cases::refusals);
    reporter.check("nothing is written without being asked for", cases::asked);
    reporter.check("doctor: daemons that are down, or wrong, are findings", || cases::broken(&mut node));
    reporter.check("doctor: a user without root learns what needs it", || cases::without_root(&mut node));
    node.stop()
}

fn with_comments(shipped: &str) -> String {
    format!("# first\r\n{}# last, without an end of line", shipped.replace('\n', "\r\n"))
}

/// Puts a configuration in its place, or none.
fn place(config: Option<&str>) -> Result<()> {
    match config {
        Some(text) => fs::write(CONFIG, text).context("write containerd's configuration"),
        None => fs::remove_file(CONFIG).context("remove containerd's configuration"),
    }
}

fn there_and_back(node: &mut Node, config: Option<&str>) -> Result<String> {
    place(config)?;
    node.restart_containerd()?;
    expect(&MISSING)?;
    let said = refused_with_findings("containerd has no snapshotter capsule: run `capsulectl setup`")?;
    let shown = done(&["setup", "--dry-run"])?;
    ensure!(shown.contains("+[proxy_plugins.capsule]"), "{shown}");
    ensure!(fs::read_to_string(CONFIG).ok().as_deref() == config, "--dry-run has written");
    let wrote = done(&["setup", "--yes"])?;
    ensure!(wrote.starts_with(&shown) && wrote.contains("restart it"), "{wrote}");
    if let Some(before) = config {
        let backup = fs::read_to_string(format!("{CONFIG}.before-capsule")).context("the backup")?;
        ensure!(backup == before, "the backup is not what was there");
    }
    refused_with_findings("its configuration has it: restart containerd")?;
    node.restart_containerd()?;
    expect(&CLEAN)?;
    main_job()?;
    let again = done(&["setup", "--yes"])?;
    ensure!(again == "nothing to change\n", "a second time: {again}");
    done(&["setup", "--undo", "--yes"])?;
    ensure!(fs::read_to_string(CONFIG).ok().as_deref() == config, "not as it was");
    let left: Vec<_> =
        fs::read_dir("/etc/containerd").context("read the folder")?.filter_map(Result::ok).collect();
    let left: Vec<_> = left.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    ensure!(!left.iter().any(|name| name.contains("capsule")), "left behind: {left:?}");
    node.restart_containerd()?;
    expect(&MISSING)?;
    place(Some(""))?;
    Ok(said)
}

/// That doctor finds exactly this, apart from what the machine is.
fn expect(expected: &[(&str, &str)]) -> Result<()> {
    let mut found = states(&findings()?);
    found.retain(|(check, _)| !["cgroups", "disk", "warnings"].contains(&check.as_str()));
    let found: Vec<(&str, &str)> =
        found.iter().map(|(check, state)| (check.as_str(), state.as_str())).collect();
    ensure!(found == expected, "{found:?}");
    Ok(())
}

/// That doctor fails, and says this; the line that does.
fn refused_with_findings(words: &str) -> Result<String> {
    let output = capsulectl(&["doctor"])?.ended_with(1)?;
    let line = output.out.lines().find(|line| line.contains(words));
    ensure!(output.err.lines().count() == 1, "{}", output.err);
    Ok(line.with_context(|| format!("no {words:?}: {}", output.out))?.to_owned())
}

/// A container with our snapshotter and runtime has a capsule attached.
fn main_job() -> Result<()> {
    OURS.import()?;
    let snapshots = ctr(&["snapshots", "--snapshotter", "capsule", "ls"])?.success("ctr snapshots ls")?;
    ensure!(snapshots.contains("Committed"), "nothing was unpacked: {snapshots}");
    publish("tool@1", &[])?;
    let shop = OURS.start("shop", &[], &["/bin/sleep", "100000"])?;
    done(&["attach", "shop", "tool"])?;
    let seen = shop.sh("look", "cat /opt/tool/version")?;
    ensure!(seen == "1", "{seen:?}");
    shop.remove()?;
    refused(&["attach", "shop", "tool"], &["shop"])?;
    Ok(())
}
