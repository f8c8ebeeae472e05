//! What is attached to Docker's containers outlives what Docker does to them, and ends with them.
//!
//! dockerd deletes containerd's container whenever its own stops, and makes another of the same id at the next start.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::client::{Container, NAMESPACE, Setup, done as docker_done};
use super::{node, until};
use crate::scenario::capsulectl::{done, json, ps, refused};
use crate::scenario::ctr::OURS;
use crate::scenario::reboot::{kill, shim};
use crate::scenario::sets::publish;
use crate::scenario::world::{Daemon, World, log_of};

/// What the container of these cases runs: its first act shows what it had then.
const SCRIPT: &str =
    "for f in /opt/*/version; do cat $f; done >> /starts 2>/dev/null; echo . >> /starts; exec sleep 100000";

/// One that Docker starts again when its process ends, and when dockerd is started.
fn run(name: &str) -> Result<Container> {
    run_with("always", name)
}

fn run_with(policy: &str, name: &str) -> Result<Container> {
    Container::run(OURS.runtime, name, &["--restart", policy], &["/bin/sh", "-c", SCRIPT])
}

/// What a container's last start found below `/opt`, from before its program ran.
fn found_at_start(container: &Container) -> Result<String> {
    let file = format!("/proc/{}/root/starts", container.pid()?);
    until("at work", || Ok(fs::read_to_string(&file).unwrap_or_default().ends_with(".\n")))?;
    let starts = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    Ok(starts.trim_end_matches(".\n").rsplit(".\n").next().unwrap_or_default().to_owned())
}

/// That its last start found this. Until the new one has written its line, the last is one of before.
fn starts_with(container: &Container, expected: &str) -> Result<()> {
    let found = || found_at_start(container);
    until(&format!("at its start, {expected}"), || Ok(found()? == expected))
        .with_context(|| format!("at its start: {:?}", found()))
}

/// A process that is killed is started again by Docker.
pub fn policy() -> Result<String> {
    let web = run("web")?;
    ensure!(found_at_start(&web)?.is_empty(), "something is there already");
    done(&["attach", &web.id[..12], "lib@1", "tool"])?;
    for _ in 0..3 {
        web.kill_and_wait()?;
        starts_with(&web, "11")?;
        web.expect(&["lib@1 attached", "tool@1 attached"])?;
    }
    done(&["upgrade", &web.id, "lib"])?;
    docker_done(&["restart", "-t", "0", "web"])?;
    starts_with(&web, "21")?;
    done(&["rollback", &web.id, "lib"])?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    web.inspect("restarted {{.RestartCount}} times")
}

/// `stop`, and `start` later.
pub fn stopped() -> Result<String> {
    let web = run("web")?;
    done(&["attach", &web.id, "lib@1", "tool"])?;
    docker_done(&["stop", "-t", "0", "web"])?;
    web.is_away()?;
    web.waits(&["lib@1 waiting", "tool@1 waiting"])?;
    let said = refused(&["attach", &web.id, "lib@2", "--target", "/opt/other"], &["is not running"])?;
    refused(&["rm", "lib@1"], &["lib@1", "attachment"])?;
    done(&["detach", &web.id[..12], "tool"])?;
    docker_done(&["start", "web"])?;
    starts_with(&web, "1")?;
    web.expect(&["lib@1 attached"])?;
    Ok(said)
}

/// capsuled, containerd and dockerd are killed while a container is stopped, and while it runs.
pub fn daemons(world: &mut World, dockerd: &mut Daemon) -> Result<String> {
    let web = run("web")?;
    done(&["attach", &web.id, "lib@1"])?;
    docker_done(&["stop", "-t", "0", "web"])?;
    web.waits(&["lib@1 waiting"])?;
    let before = listed()?;
    world.kill_capsuled()?;
    world.restart_containerd()?;
    world.restart_capsuled_alone()?;
    until("followed", || Ok(listed()? > before))?;
    web.expect(&["lib@1 waiting"])?;
    world.wait_for_snapshotter()?;
    // dockerd takes its time before it connects again.
    until("reached by dockerd", || Ok(docker_done(&["images"]).is_ok()))?;
    docker_done(&["start", "web"])?;
    starts_with(&web, "1")?;
    // capsuled is away for a restart as a whole: it is there again before the start is given up.
    let before = web.pid()?;
    world.kill_capsuled()?;
    kill(before)?;
    world.restart_capsuled()?;
    until("started again by Docker", || Ok(!matches!(web.pid()?, 0) && web.pid()? != before))?;
    starts_with(&web, "1")?;
    // dockerd is killed: the next one ends what runs, and starts it again.
    dockerd.kill()?;
    *dockerd = Setup::OURS.start_again()?;
    until("started again by Docker", || Ok(web.inspect("{{.State.Running}}")? == "true"))?;
    starts_with(&web, "1")?;
    web.expect(&["lib@1 attached"])?;
    Ok(String::new())
}

/// How often a capsuled has listed what containerd has.
fn listed() -> Result<usize> {
    let log = log_of("capsuled");
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    Ok(text.matches("following containerd").count())
}

/// The node restarts: what has a policy comes back by itself, the other when it is started.
pub fn reboot(world: &mut World, dockerd: &mut Daemon) -> Result<String> {
    let (web, idle) = (run("web")?, run_with("unless-stopped", "idle")?);
    done(&["attach", &web.id, "lib@1", "tool"])?;
    done(&["attach", &idle.id, "lib@2"])?;
    docker_done(&["stop", "-t", "0", "idle"])?;
    idle.waits(&["lib@2 waiting"])?;
    let running = [shim(NAMESPACE, &web.id)?, web.pid()?];
    dockerd.kill()?;
    world.reboot_under(&running)?;
    *dockerd = Setup::OURS.start_again()?;
    until("started again by Docker", || Ok(web.inspect("{{.State.Running}}")? == "true"))?;
    starts_with(&web, "11")?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    idle.expect(&["lib@2 waiting"])?;
    docker_done(&["start", "idle"])?;
    starts_with(&idle, "2")?;
    Ok(String::new())
}

/// `rm`, of containers that run and that do not, and while capsuled is away.
pub fn removed(world: &mut World) -> Result<String> {
    let missed = run("missed")?;
    done(&["attach", "missed", "lib@1"])?;
    docker_done(&["stop", "-t", "0", "missed"])?;
    missed.waits(&["lib@1 waiting"])?;
    let took = nothing_is_left()?;
    missed.expect(&["lib@1 waiting"])?;
    // What nobody could tell capsuled is found when it is back.
    world.kill_capsuled()?;
    let without = docker_done(&["rm", "missed"]);
    world.restart_capsuled()?;
    if without.is_err() {
        world.wait_for_snapshotter()?;
        docker_done(&["rm", "missed"])?;
    }
    until("ended", || Ok(missed.has()?.is_empty()))?;
    ensure!(json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty), "{:?}", ps()?);
    let marks = Path::new("/run/capsule/kept").join(NAMESPACE);
    let marks = fs::read_dir(&marks).with_context(|| format!("read {}", marks.display()))?.count();
    ensure!(marks == 0, "{marks} marks");
    // Nothing pins it any more.
    done(&["rm", "lib@1"])?;
    // containerd takes its time before it connects to capsuled again.
    until("published again", || Ok(publish("lib@1", &[]).is_ok()))?;
    Ok(format!("{took} ms after rm"))
}

/// One that runs and one that does not; how many milliseconds after that their attachments have ended.
fn nothing_is_left() -> Result<u128> {
    let before = node()?;
    let (web, idle) = (run("web")?, run("idle")?);
    for name in ["web", "idle"] {
        done(&["attach", name, "lib@1", "tool"])?;
    }
    docker_done(&["stop", "-t", "0", "idle"])?;
    idle.waits(&["lib@1 waiting", "tool@1 waiting"])?;
    docker_done(&["rm", "idle"])?;
    let ids = [web.id.clone(), idle.id.clone()];
    web.remove()?;
    let at_once = Instant::now();
    until("ended", || Ok(!ps()?.iter().any(|seen| ids.contains(&seen.container))))?;
    let took = at_once.elapsed().as_millis();
    before.is_the_same()?;
    let found = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    ensure!(!ids.iter().any(|id| found.contains(id)), "they are mounted: {found}");
    Ok(took)
}

/// Where containers outlive dockerd, what is attached does too, and can be changed meanwhile.
pub fn live_restored(dockerd: &mut Daemon) -> Result<String> {
    let live = Setup { live_restore: true, ..Setup::OURS };
    dockerd.kill()?;
    *dockerd = live.start_again()?;
    let web = run_with("no", "web")?;
    done(&["attach", "web", "lib@1", "tool"])?;
    let pid = web.pid()?;
    dockerd.kill()?;
    web_is(&web, pid, "1")?;
    done(&["upgrade", "web", "lib"])?;
    web_is(&web, pid, "2")?;
    *dockerd = live.start_again()?;
    ensure!(web.pid()? == pid, "process {} instead of {pid}", web.pid()?);
    ensure!(web.sh("cat /opt/lib/version")? == "2", "what was attached meanwhile");
    web.expect(&["lib@2 attached", "tool@1 attached"])?;
    done(&["rollback", "web", "lib"])?;
    docker_done(&["restart", "-t", "0", "web"])?;
    starts_with(&web, "11")?;
    web.remove()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    dockerd.kill()?;
    *dockerd = Setup::OURS.start_again()?;
    Ok(format!("process {pid}"))
}

/// That its process is this one, and has this version of lib.
fn web_is(web: &Container, pid: u32, version: &str) -> Result<()> {
    let file = format!("/proc/{pid}/root/opt/lib/version");
    let found = fs::read_to_string(&file).with_context(|| format!("{}: read {file}", web.name))?;
    ensure!(found.trim() == version, "{file} is {found:?}");
    Ok(())
}

/// On the storage driver that dockerd has. What Docker keeps outside of containerd nobody can tell of: there, what is attached ends
/// when the container stops.
pub fn other_driver(lasts: bool) -> Result<String> {
    let web = run("web")?;
    done(&["attach", "web", "lib@1"])?;
    docker_done(&["stop", "-t", "0", "web"])?;
    if lasts {
        web.waits(&["lib@1 waiting"])?;
    } else {
        until("ended", || Ok(web.has()?.is_empty()))?;
    }
    docker_done(&["start", "web"])?;
    let found = found_at_start(&web)?;
    ensure!(found == if lasts { "1" } else { "" }, "at its start: {found:?}");
    drop(web);
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(if lasts { "it lasts" } else { "it ends with the container's stop" }.to_owned())
}
