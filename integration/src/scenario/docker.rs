//! Docker, as its own command line drives it: what is attached to its containers by hand outlives what Docker does to them.
//!
//! dockerd deletes containerd's container whenever its own stops, and makes another of the same id at the next start.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{done, json, ps, refused};
use super::ctr::{ctr, run as run_program};
use super::reboot::{kill, shim};
use super::sets::publish;
use super::world::{Daemon, World, log_of, path, until, with_logs};
use crate::event::Reporter;
use crate::images::Image;

const CONFIG: &str = "/etc/docker/daemon.json";
const NAMESPACE: &str = "moby";
/// The test image as Docker saves it.
const SAVED: &str = "/var/lib/containerd/saved.tar";
/// What the container of these cases runs: its first act shows what it had then.
const SCRIPT: &str =
    "for f in /opt/*/version; do cat $f; done >> /starts 2>/dev/null; echo . >> /starts; exec sleep 100000";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    let mut dockerd =
        reporter.must("dockerd is there, with images in containerd, and capsules are", || {
            for label in ["lib@1", "lib@2", "tool@1"] {
                publish(label, &[])?;
            }
            let dockerd = start("capsule", true)?;
            docker(&["save", "-o", SAVED, Image::Busybox.name()])?;
            Ok((dockerd, docker(&["version", "--format", "{{.Server.Version}}"])?))
        })?;
    reporter.check("a process that is killed is started again, with what is attached", restarted_by_policy);
    reporter.check("stop and start: what is attached waits, and can be detached meanwhile", stopped);
    reporter.check("capsuled and containerd are started anew while a container is stopped", || {
        daemons_restarted(&mut world, &mut dockerd)
    });
    reporter.check("the node restarts", || rebooted(&mut world, &mut dockerd));
    reporter.check("rm ends what is attached, of a stopped container too", || removed(&mut world));
    drop(dockerd);
    for (driver, in_containerd, lasts) in [("overlayfs", true, true), ("vfs", false, false)] {
        reporter.check(&format!("on Docker's storage driver {driver}"), || {
            other_driver(driver, in_containerd, lasts)
        });
    }
    world.stop()
}

/// Starts dockerd with a storage driver: one that Docker has itself, or a snapshotter of containerd's.
fn start(driver: &str, in_containerd: bool) -> Result<Daemon> {
    fs::create_dir_all("/etc/docker").context("create Docker's folder")?;
    let config = serde_json::json!({
        "containerd": super::world::CONTAINERD_SOCKET,
        "storage-driver": driver,
        "features": {"containerd-snapshotter": in_containerd},
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "ip-forward": false,
    });
    fs::write(CONFIG, config.to_string()).with_context(|| format!("write {CONFIG}"))?;
    let mut dockerd =
        Daemon::start("dockerd", Command::new("dockerd").env("PATH", path()).env("HOME", "/root"))?;
    dockerd.wait_until(|| {
        let mut info = Command::new("docker");
        let info = info.args(["info"]).env("PATH", path()).env("HOME", "/root").stdin(Stdio::null());
        info.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })?;
    let archive = Image::Busybox.in_machine();
    // Without containerd, Docker loads no archive but of its own kind.
    let archive = if in_containerd { archive.as_path() } else { Path::new(SAVED) };
    docker(&["load", "-i", archive.to_str().context("an archive's path is no text")?])?;
    Ok(dockerd)
}

fn docker(args: &[&str]) -> Result<String> {
    let output = run_program("docker", args, b"")?.success(&format!("docker {}", args.join(" ")))?;
    Ok(output.trim().to_owned())
}

/// A container of Docker's; it is removed when this is dropped.
struct Container {
    name: &'static str,
    id: String,
}

impl Container {
    /// One that Docker starts again when its process ends, and when dockerd is started.
    fn run(name: &'static str) -> Result<Self> {
        Self::run_with("always", name)
    }

    fn run_with(policy: &str, name: &'static str) -> Result<Self> {
        let fixed = ["run", "-d", "--name", name, "--network", "none", "--restart", policy];
        let ours = ["--runtime", super::ctr::OURS.runtime, Image::Busybox.name(), "/bin/sh", "-c", SCRIPT];
        let id = docker(&[&fixed[..], &ours[..]].concat())?;
        Ok(Self { name, id })
    }

    fn inspect(&self, format: &str) -> Result<String> {
        docker(&["inspect", "--format", format, self.name])
    }

    fn pid(&self) -> Result<u32> {
        self.inspect("{{.State.Pid}}")?.parse().context("a process id")
    }

    /// Kills its first process, and waits until Docker has started another.
    fn kill_and_wait(&self) -> Result<()> {
        let before = self.pid()?;
        kill(before)?;
        until("started again by Docker", || {
            let running = self.inspect("{{.State.Running}}")? == "true";
            Ok(running && !matches!(self.pid()?, 0) && self.pid()? != before)
        })
    }

    /// What its last start found below `/opt`, from before its program ran.
    fn found_at_start(&self) -> Result<String> {
        let file = format!("/proc/{}/root/starts", self.pid()?);
        until("at work", || Ok(fs::read_to_string(&file).unwrap_or_default().ends_with(".\n")))?;
        let starts = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        Ok(starts.trim_end_matches(".\n").rsplit(".\n").next().unwrap_or_default().to_owned())
    }

    /// That its last start found this. Until the new one has written its line, the last is one of before.
    fn starts_with(&self, expected: &str) -> Result<()> {
        let found = || self.found_at_start();
        until(&format!("at its start, {expected}"), || Ok(found()? == expected))
            .with_context(|| format!("at its start: {:?}", found()))
    }

    /// Its attachments, as `NAME@VERSION STATE`.
    fn has(&self) -> Result<Vec<String>> {
        let of_it = ps()?.into_iter().filter(|seen| seen.container == self.id);
        Ok(of_it.map(|seen| format!("{}@{} {}", seen.capsule, seen.version, seen.state)).collect())
    }

    fn expect(&self, expected: &[&str]) -> Result<()> {
        let found = self.has()?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    fn waits(&self, expected: &[&str]) -> Result<()> {
        until("waiting", || Ok(self.has()?.iter().all(|one| one.ends_with(" waiting"))))?;
        self.expect(expected)
    }

    /// That it is there with Docker, and not with containerd.
    fn is_away(&self) -> Result<()> {
        let list = ctr(&["-n", NAMESPACE, "containers", "ls", "-q"])?.success("ctr containers ls")?;
        ensure!(!list.contains(&self.id), "containerd has it: {list}");
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker(&["rm", "-f", self.name]);
    }
}

fn restarted_by_policy() -> Result<String> {
    let web = Container::run("web")?;
    ensure!(web.found_at_start()?.is_empty(), "something is there already");
    done(&["attach", &web.id[..12], "lib@1", "tool"])?;
    for _ in 0..3 {
        web.kill_and_wait()?;
        web.starts_with("11")?;
        web.expect(&["lib@1 attached", "tool@1 attached"])?;
    }
    done(&["upgrade", &web.id, "lib"])?;
    docker(&["restart", "-t", "0", "web"])?;
    web.starts_with("21")?;
    done(&["rollback", &web.id, "lib"])?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    web.inspect("restarted {{.RestartCount}} times")
}

fn stopped() -> Result<String> {
    let web = Container::run("web")?;
    done(&["attach", &web.id, "lib@1", "tool"])?;
    docker(&["stop", "-t", "0", "web"])?;
    web.is_away()?;
    web.waits(&["lib@1 waiting", "tool@1 waiting"])?;
    let said = refused(&["attach", &web.id, "lib@2", "--target", "/opt/other"], &["is not running"])?;
    refused(&["rm", "lib@1"], &["lib@1", "attachment"])?;
    done(&["detach", &web.id[..12], "tool"])?;
    docker(&["start", "web"])?;
    web.starts_with("1")?;
    web.expect(&["lib@1 attached"])?;
    Ok(said)
}

fn daemons_restarted(world: &mut World, dockerd: &mut Daemon) -> Result<String> {
    let web = Container::run("web")?;
    done(&["attach", &web.id, "lib@1"])?;
    docker(&["stop", "-t", "0", "web"])?;
    web.waits(&["lib@1 waiting"])?;
    let before = listed()?;
    world.kill_capsuled()?;
    world.restart_containerd()?;
    world.restart_capsuled()?;
    until("followed", || Ok(listed()? > before))?;
    web.expect(&["lib@1 waiting"])?;
    world.wait_for_snapshotter()?;
    // dockerd takes its time before it connects again.
    until("reached by dockerd", || Ok(docker(&["images"]).is_ok()))?;
    docker(&["start", "web"])?;
    web.starts_with("1")?;
    // capsuled is away for a restart as a whole: it is there again before the start is given up.
    let before = web.pid()?;
    world.kill_capsuled()?;
    kill(before)?;
    world.restart_capsuled()?;
    until("started again by Docker", || Ok(!matches!(web.pid()?, 0) && web.pid()? != before))?;
    web.starts_with("1")?;
    // dockerd is killed: the next one ends what runs, and starts it again.
    *dockerd = replace(dockerd)?;
    until("started again by Docker", || Ok(web.inspect("{{.State.Running}}")? == "true"))?;
    web.starts_with("1")?;
    web.expect(&["lib@1 attached"])?;
    Ok(String::new())
}

/// Kills dockerd, and starts another.
fn replace(dockerd: &mut Daemon) -> Result<Daemon> {
    dockerd.kill()?;
    start("capsule", true)
}

/// How often a capsuled has listed what containerd has.
fn listed() -> Result<usize> {
    let log = log_of("capsuled");
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    Ok(text.matches("following containerd").count())
}

fn rebooted(world: &mut World, dockerd: &mut Daemon) -> Result<String> {
    let (web, idle) = (Container::run("web")?, Container::run_with("unless-stopped", "idle")?);
    done(&["attach", &web.id, "lib@1", "tool"])?;
    done(&["attach", &idle.id, "lib@2"])?;
    docker(&["stop", "-t", "0", "idle"])?;
    idle.waits(&["lib@2 waiting"])?;
    let running = [shim(NAMESPACE, &web.id)?, web.pid()?];
    dockerd.kill()?;
    world.reboot_under(&running)?;
    *dockerd = start("capsule", true)?;
    until("started again by Docker", || Ok(web.inspect("{{.State.Running}}")? == "true"))?;
    web.starts_with("11")?;
    web.expect(&["lib@1 attached", "tool@1 attached"])?;
    idle.expect(&["lib@2 waiting"])?;
    docker(&["start", "idle"])?;
    idle.starts_with("2")?;
    Ok(String::new())
}

fn removed(world: &mut World) -> Result<String> {
    let (web, idle, missed) = (Container::run("web")?, Container::run("idle")?, Container::run("missed")?);
    for container in [&web, &idle, &missed] {
        done(&["attach", &container.id, "lib@1"])?;
    }
    docker(&["stop", "-t", "0", "idle", "missed"])?;
    idle.waits(&["lib@1 waiting"])?;
    docker(&["rm", "-f", "web"])?;
    docker(&["rm", "idle"])?;
    let at_once = std::time::Instant::now();
    until("ended", || Ok(web.has()?.is_empty() && idle.has()?.is_empty()))?;
    let took = at_once.elapsed();
    missed.expect(&["lib@1 waiting"])?;
    // What nobody could tell capsuled is found when it is back.
    world.kill_capsuled()?;
    let without = docker(&["rm", "missed"]);
    world.restart_capsuled()?;
    if without.is_err() {
        world.wait_for_snapshotter()?;
        docker(&["rm", "missed"])?;
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
    Ok(format!("{} ms after rm", took.as_millis()))
}

/// What Docker keeps outside of containerd nobody can tell of: there, what is attached ends when the container stops.
fn other_driver(driver: &str, in_containerd: bool, lasts: bool) -> Result<String> {
    let mut dockerd = start(driver, in_containerd)?;
    let web = Container::run("web")?;
    done(&["attach", &web.id, "lib@1"])?;
    docker(&["stop", "-t", "0", "web"])?;
    if lasts {
        web.waits(&["lib@1 waiting"])?;
    } else {
        until("ended", || Ok(web.has()?.is_empty()))?;
    }
    docker(&["start", "web"])?;
    let found = web.found_at_start()?;
    ensure!(found == if lasts { "1" } else { "" }, "at its start: {found:?}");
    drop(web);
    until("ended", || Ok(ps()?.is_empty()))?;
    dockerd.kill()?;
    Ok(if lasts { "it lasts" } else { "it ends with the container's stop" }.to_owned())
}
