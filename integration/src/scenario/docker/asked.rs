//! How a container is named, what its annotations ask for, and where nothing can be attached.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::client::{Container, Setup, docker, done as docker_done};
use super::{SLEEP, node, until};
use crate::images::Image;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::{self, OURS, REFERENCE};
use crate::scenario::world::{Daemon, World};

const ATTACH: &str = "resourcecapsules.io/attach";

fn run(name: &str) -> Result<Container> {
    Container::run(OURS.runtime, name, &[], &SLEEP)
}

/// By its name, its id, the beginning of its id.
pub fn names() -> Result<String> {
    let web = run("web")?;
    let in_moby = format!("moby/{}", &web.id[..8]);
    let called: [&str; 5] = ["web", "moby/web", &web.id, &web.id[..12], &in_moby];
    for name in called {
        let said = done(&["attach", name, "lib@1"])?;
        ensure!(said.contains("moby/web: lib@1"), "{said}");
        let shown = json(&["ps", name])?;
        let one = &shown["attachments"][0];
        ensure!(one["container"] == *web.id && one["container_name"] == "web", "{shown}");
        let said = done(&["upgrade", name, "lib"])?;
        ensure!(said.contains("moby/web: lib 1 -> 2"), "{said}");
        done(&["rollback", name, "lib"])?;
        done(&["detach", name, "lib"])?;
    }
    refused(&["attach", "we", "lib@1"], &["\"we\" is not known", "docker ps"])?;
    // A rename is followed at once, and the old name is another's.
    docker_done(&["rename", "web", "shop"])?;
    refused(&["attach", "web", "lib@1"], &["\"web\" is not known"])?;
    let other = run("web")?;
    done(&["attach", "shop", "lib@1"])?;
    done(&["attach", "web", "tool"])?;
    web.expect(&["lib@1 attached"])?;
    other.expect(&["tool@1 attached"])?;
    docker_done(&["rename", "shop", "store"])?;
    let table = done(&["ps"])?;
    ensure!(table.contains("store") && !table.contains("shop") && !table.contains(&web.id), "{table}");
    other.remove()?;
    // A name that another's id begins with, of one that is stopped.
    let other = run(&web.id[..4])?;
    done(&["attach", &web.id[..4], "tool"])?;
    docker_done(&["stop", "-t", "0", &other.name])?;
    other.waits(&["tool@1 waiting"])?;
    done(&["detach", &web.id[..4], "tool"])?;
    web.expect(&["lib@1 attached"])?;
    other.remove()?;
    web.remove()?;
    Ok(table.lines().nth(1).unwrap_or_default().to_owned())
}

/// What is told of a container has the name that it had then, and is found by that when it is gone.
pub fn told() -> Result<String> {
    let of = |name: &str| done(&["events", "--all", "--no-follow", "--container", name]);
    let web = run("told")?;
    done(&["attach", "told", "lib@1"])?;
    docker_done(&["rename", "told", "shop"])?;
    done(&["upgrade", "shop", "lib"])?;
    let all = of("shop")?;
    let seen =
        [("attached", "lib 1 in moby/told at /opt/lib"), ("upgraded", "lib 1 -> 2 in moby/shop at /opt/lib")];
    ensure!(seen.iter().all(|(kind, what)| all.contains(kind) && all.contains(what)), "{all}");
    ensure!(of("told")?.lines().count() == 1, "by what it was called: {}", of("told")?);
    let newest = of(&web.id)?.lines().count();
    ensure!(newest >= all.lines().count(), "by its id {newest}, by its name: {all}");
    let json = done(&["events", "--all", "--no-follow", "--container", "shop", "-o", "json"])?;
    let last: serde_json::Value =
        serde_json::from_str(json.lines().last().unwrap_or_default()).context("JSON")?;
    ensure!(last["container"] == *web.id && last["container_name"] == "shop", "{last}");
    web.remove()?;
    until("told of its end", || Ok(of("shop")?.contains("ended")))?;
    let ended = of("shop")?.lines().last().unwrap_or_default().to_owned();
    ensure!(ended.contains("ended") && ended.contains(" in moby/shop at "), "{ended}");
    Ok(ended)
}

/// A container of containerd's with the label that nerdctl gives its own.
fn run_as_nerdctl(name: &str) -> Result<ctr::Container> {
    OURS.import()?;
    let label = format!("nerdctl/name={name}");
    let id = format!("nerdctls-{name}");
    let run = ["run", "-d", "--null-io", "--label", &label];
    let run = [&run[..], &OURS.words(), &[Image::Busybox.name(), &id], &SLEEP].concat();
    ctr::ctr(&run)?.success("ctr run")?;
    Ok(ctr::Container { id })
}

/// Two clients have one name.
pub fn clients() -> Result<String> {
    let (web, other) = (run("web")?, run_as_nerdctl("web")?);
    let both = [format!("moby/{}", web.id), format!("default/{}", other.id)];
    let said = refused(&["attach", "web", "lib@1"], &["ambiguous", &both[0], &both[1], "--namespace"])?;
    done(&["attach", "web", "lib@1", "--namespace", "moby"])?;
    done(&["attach", "default/web", "lib@2"])?;
    web.expect(&["lib@1 attached"])?;
    ensure!(json(&["ps", "default/web"])?["attachments"][0]["version"] == "2", "the other's");
    other.remove()?;
    done(&["detach", "web", "lib"])?;
    web.remove()?;
    Ok(said)
}

/// dockerd hangs, with a capsuled that knows its names and with one that does not; then there is none.
pub fn hung(world: &mut World, dockerd: &mut Daemon) -> Result<String> {
    let (web, other) = (run("web")?, run_as_nerdctl("other")?);
    done(&["attach", "web", "lib@1"])?;
    signal(dockerd, Signal::STOP)?;
    let said = while_hung(world, &web);
    signal(dockerd, Signal::CONT)?;
    let said = said?;
    done(&["attach", "web", "lib@1"])?;
    dockerd.kill()?;
    let away = while_away();
    *dockerd = Setup::OURS.start_again()?;
    away?;
    world.wait_for_snapshotter()?;
    other.remove()?;
    web.remove()?;
    Ok(said)
}

fn while_hung(world: &mut World, web: &Container) -> Result<String> {
    let began = Instant::now();
    done(&["detach", "web", "lib"])?;
    done(&["attach", &web.id[..12], "lib@1"])?;
    done(&["attach", "other", "lib@2"])?;
    let shown = json(&["ps", "web"])?;
    ensure!(shown["attachments"][0]["container_name"] == "web", "{shown}");
    let took = began.elapsed();
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    let words = ["\"web\" is not known", "by its id", "/run/docker.sock", "no answer within 5s"];
    let said = refused(&["detach", "web", "lib"], &words)?;
    done(&["detach", &web.id, "lib"])?;
    done(&["detach", "other", "lib"])?;
    Ok(format!("{} ms for four calls; then: {said}", took.as_millis()))
}

/// The names that it had said before.
fn while_away() -> Result<()> {
    done(&["detach", "web", "lib"])?;
    refused(&["attach", "nope", "lib@1"], &["\"nope\" is not known", "/run/docker.sock"]).map(drop)
}

fn signal(daemon: &Daemon, signal: Signal) -> Result<()> {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, signal).context("signal dockerd")
}

/// Containers with and without capsules, side by side.
pub fn on_and_off() -> Result<String> {
    let before = node()?;
    let asks = format!("{ATTACH}=lib@1");
    let on = Container::run(OURS.runtime, "on", &["--annotation", &asks], &SLEEP)?;
    let plain = run("plain")?;
    let options = ["--annotation", &asks, "--annotation", "resourcecapsules.io/enabled=false"];
    let off = Container::run(OURS.runtime, "off", &options, &SLEEP)?;
    // On runc, an annotation is one that nobody reads.
    let runc = Container::run(REFERENCE.runtime, "runc", &["--annotation", &asks], &SLEEP)?;
    // A volume keeps its place.
    let there = Container::run(OURS.runtime, "there", &["-v", "files:/opt/lib"], &SLEEP)?;
    on.expect(&["lib@1 attached"])?;
    for none in [&plain, &off, &runc] {
        none.expect(&[])?;
        ensure!(none.exec(&["ls", "/opt/lib"])?.code != 0, "{} has it", none.name);
    }
    done(&["attach", "plain", "lib@2"])?;
    ensure!(plain.sh("cat /opt/lib/version")? == "2", "what is attached later");
    refused(&["attach", "off", "lib@1"], &["takes no capsules", "resourcecapsules.io/enabled"])?;
    refused(&["attach", "there", "lib@1"], &["/opt/lib", "lib"])?;
    let words = ["container moby/runc runs on io.containerd.runc.v2", "io.containerd.capsule.v1"];
    let said = refused(&["attach", &runc.id[..12], "lib@1"], &words)?;
    for container in [on, plain, off, runc, there] {
        container.remove()?;
    }
    docker_done(&["volume", "rm", "files"])?;
    before.is_the_same()?;
    Ok(said)
}

/// What cannot be attached keeps a container from being started: Docker says why, and nothing is left that is not left of any
/// other container that cannot be started.
pub fn mistakes() -> Result<String> {
    let before = node()?;
    let cannot_run = |runtime: &str, options: &[&str], command: &[&str]| {
        let fixed = ["run", "-d", "--name", "wrong", "--network", "none", "--runtime", runtime];
        let output = docker(&[&fixed[..], options, &[Image::Busybox.name()], command].concat())?;
        ensure!(output.code != 0, "{options:?} {command:?} runs: {}", output.out);
        let status = docker_done(&["ps", "-a", "--filter", "name=wrong", "--format", "{{.Status}}"])?;
        docker_done(&["rm", "-f", "wrong"])?;
        Ok((output.err.trim().to_owned(), status))
    };
    let (_, kept) = cannot_run(REFERENCE.runtime, &[], &["/bin/no-such-program"])?;
    before.is_the_same().context("the reference")?;
    let mut last = String::new();
    for (annotation, words) in [
        (format!("{ATTACH}=lib@9"), &["lib has no version 9", "it has 2, 1"][..]),
        (format!("{ATTACH}=lib:relative"), &["relative"]),
        // All of them or none.
        (format!("{ATTACH}=lib,no-such"), &[ATTACH, "no-such", "capsulectl ls"]),
    ] {
        let (said, status) = cannot_run(OURS.runtime, &["--annotation", &annotation], &SLEEP)?;
        for word in words {
            ensure!(said.contains(word), "{annotation}: does not name {word:?}: {said}");
        }
        ensure!(status == kept, "{annotation}: {status:?} instead of {kept:?}");
        before.is_the_same().context(annotation)?;
        last = said;
    }
    Ok(last)
}
