//! What is attached to nerdctl's containers outlives what nerdctl does to them, and ends with them.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, done as nerdctl_done, nerdctl};
use super::{node, until};
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::OURS;
use crate::scenario::reboot::shim;
use crate::scenario::world::World;

/// capsuled's marks of containers that have something attached.
const KEPT: &str = "/run/capsule/kept/default";

/// Its first act shows what it had then.
const SCRIPT: &str =
    "for f in /opt/*/version; do cat $f; done >> /starts 2>/dev/null; echo . >> /starts; exec sleep 100000";

fn run(name: &str, options: &[&str]) -> Result<Container> {
    Container::run(OURS, name, options, &["/bin/sh", "-c", SCRIPT])
}

/// That the last of so many starts has found this below `/opt` from before its program ran.
fn found(container: &Container, starts: usize, expected: &str) -> Result<()> {
    let seen = || container.read("/starts");
    until("started so often", || Ok(seen().is_ok_and(|text| text.matches(".\n").count() == starts)))
        .with_context(|| format!("{starts} starts: {:?}", seen()))?;
    let text = seen()?;
    let last = text.trim_end_matches(".\n").rsplit(".\n").next().unwrap_or_default();
    ensure!(last == expected, "at its start {last:?} instead of {expected:?}: {text:?}");
    Ok(())
}

/// `restart`, and `stop` with `start` later.
pub fn restarts() -> Result<String> {
    let web = run("web", &[])?;
    found(&web, 1, "")?;
    done(&["attach", "web", "lib@1", "tool"])?;
    nerdctl_done(&["restart", "-t", "0", "web"])?;
    found(&web, 2, "11")?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    done(&["upgrade", "web", "lib"])?;
    nerdctl_done(&["stop", "-t", "0", "web"])?;
    web.comes_to(&["lib@2 waiting", "tool@1 waiting"])?;
    let said = refused(&["attach", "web", "late"], &["not running", "late"])?;
    refused(&["rm", "lib@2"], &["lib@2", "attachment"])?;
    done(&["detach", "web", "tool"])?;
    nerdctl_done(&["start", "web"])?;
    found(&web, 3, "2")?;
    // What a rollback goes to is kept, too.
    done(&["rollback", "web", "lib"])?;
    nerdctl_done(&["kill", "web"])?;
    web.comes_to(&["lib@1 waiting"])?;
    nerdctl_done(&["start", "web"])?;
    found(&web, 4, "1")?;
    web.remove()?;
    Ok(said)
}

/// A process that is killed is started again by containerd.
pub fn policy() -> Result<String> {
    let web = run("web", &["--restart", "always"])?;
    done(&["attach", "web", "lib@1", "tool"])?;
    for starts in 2..=3 {
        web.kill_and_wait()?;
        found(&web, starts, "11")?;
        web.expect(&["lib@1 attached", "tool@1 attached"])?;
    }
    let pid = web.pid()?;
    web.remove()?;
    Ok(format!("process {pid} is the third"))
}

/// capsuled and containerd are killed while a container is stopped, and capsuled while one runs.
pub fn daemons(world: &mut World) -> Result<String> {
    let (web, idle) = (run("web", &[])?, run("idle", &[])?);
    done(&["attach", "web", "lib@1"])?;
    done(&["attach", "idle", "lib@2", "tool"])?;
    nerdctl_done(&["stop", "-t", "0", "idle"])?;
    idle.comes_to(&["lib@2 waiting", "tool@1 waiting"])?;
    let pid = web.pid()?;
    world.kill_capsuled()?;
    world.restart_containerd()?;
    world.restart_capsuled()?;
    ensure!(web.pid()? == pid, "another process");
    // By its name, of which a capsuled that was just started has to hear first.
    done(&["detach", "web", "lib"])?;
    done(&["attach", "web", "lib@2"])?;
    nerdctl_done(&["start", "idle"])?;
    found(&idle, 2, "21")?;
    nerdctl_done(&["restart", "-t", "0", "web"])?;
    found(&web, 2, "2")?;
    web.remove()?;
    idle.remove()?;
    Ok(String::new())
}

/// The node restarts: what has a policy comes back by itself, the other when it is started.
pub fn reboot(world: &mut World) -> Result<String> {
    let (web, idle) = (run("web", &["--restart", "always"])?, run("idle", &[])?);
    done(&["attach", "web", "lib@1", "tool"])?;
    done(&["attach", "idle", "lib@2"])?;
    nerdctl_done(&["stop", "-t", "0", "idle"])?;
    idle.comes_to(&["lib@2 waiting"])?;
    let before = web.pid()?;
    world.reboot_under(&[shim("default", &web.id)?, before])?;
    world.wait_for_snapshotter()?;
    web.runs_again(before)?;
    found(&web, 2, "11")?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    idle.expect(&["lib@2 waiting"])?;
    nerdctl_done(&["start", "idle"])?;
    found(&idle, 2, "2")?;
    web.remove()?;
    idle.remove()?;
    Ok(String::new())
}

/// `rm`, of containers that run and that do not.
pub fn removed() -> Result<String> {
    // capsuled forgets the containers of before once it follows containerd again, after what was a restart of the node.
    until("nothing of the containers of before is on record", || {
        let nothing = json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty);
        Ok(nothing && fs::read_dir(KEPT).map_or(0, Iterator::count) == 0)
    })?;
    let before = node()?;
    let (web, idle) = (run("web", &[])?, run("idle", &[])?);
    for name in ["web", "idle"] {
        done(&["attach", name, "lib@1", "tool"])?;
    }
    nerdctl_done(&["stop", "-t", "0", "idle"])?;
    idle.comes_to(&["lib@1 waiting", "tool@1 waiting"])?;
    let without_force = nerdctl(&["rm", "web"])?;
    ensure!(without_force.code != 0, "what runs is removed without force");
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    nerdctl_done(&["rm", "idle"])?;
    let ids = [web.id.clone(), idle.id.clone()];
    web.remove()?;
    before.is_the_same()?;
    for id in ids {
        let found = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        ensure!(!found.contains(&id), "{id} is mounted");
        refused(&["ps", &id], &["is not known"])?;
    }
    // Nothing pins it any more.
    done(&["rm", "tool@1"])?;
    super::publish("tool@1", &[])?;
    Ok(without_force.err.trim().to_owned())
}
