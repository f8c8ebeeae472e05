//! What is told of what was not asked for: of calls that are undone, of what is lost, given back and removed; and to those who
//! follow containerd.

use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::capsulectl::{capsulectl, done, refused};
use super::ctr::{Container, OURS};
use super::follow::{Follower, last};
use super::sets::{expect, publish};
use super::world::{World, until};

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// How often containerd is killed until its follower is there before capsuled is: capsuled tries once a second.
const TRIES: usize = 8;

fn follow() -> Result<Follower> {
    Follower::start("capsulectl", &["events", "-o", "json", "--after", &last()?])
}

fn told(events: &Follower, expected: &[&str]) -> Result<()> {
    let seen = events.kinds(expected.len())?;
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    Ok(())
}

/// An upgrade whose check fails, and one whose capsuled is killed meanwhile.
pub fn undone(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "lib@1"])?;
    let events = follow()?;
    refused(
        &["upgrade", "shop", "lib", "--wait-healthy", "/bin/false"],
        &["default/shop", "it has what it had"],
    )?;
    let failed = events.kinds(1)?.remove(0);
    ensure!(failed.starts_with("undone lib "), "{failed}");
    expect(&shop, &["lib@1"])?;
    let caller = spawn(|| {
        let check = "/bin/sh -c 'touch /checked; exec sleep 100'";
        capsulectl(&["upgrade", "shop", "lib", "--wait-healthy", check, "--health-timeout", "110s"])
    });
    until("it is checked", || Ok(shop.sh("look", "test -e /checked && echo yes || true")?.trim() == "yes"))?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    let output = caller.join().map_err(|_| anyhow!("a thread"))??;
    ensure!(output.code != 0, "{output:?}");
    let killed = events.kinds(1)?.remove(0);
    ensure!(killed.starts_with("undone lib "), "{killed}");
    expect(&shop, &["lib@1"])?;
    shop.remove()?;
    told(&events, &["waiting lib 1", "ended lib 1"])?;
    Ok(format!("{failed} | {killed}"))
}

/// Somebody unmounts one behind capsuled's back; the task is restarted; a version is removed.
pub fn lost(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let events = follow()?;
    done(&["attach", "shop", "tool"])?;
    done(&["attach", "shop", "lib@1"])?;
    // It is connected before capsuled goes.
    told(&events, &["attached tool 1", "attached lib 1"])?;
    world.kill_capsuled()?;
    let pid = shop.pid()?.to_string();
    let unmounted = Command::new("nsenter").args(["-t", &pid, "-m", "umount", "/opt/tool"]).status();
    ensure!(unmounted.context("run nsenter")?.success(), "umount in the container");
    world.restart_capsuled_alone()?;
    told(&events, &["lost tool 1"])?;
    expect(&shop, &["lib@1"])?;
    world.wait_for_snapshotter()?;
    restart(&shop)?;
    told(&events, &["waiting lib 1", "restored lib 1"])?;
    expect(&shop, &["lib@1"])?;
    publish("old@1", &[])?;
    done(&["rm", "old@1"])?;
    told(&events, &["published old 1", "removed old 1"])?;
    shop.remove()?;
    told(&events, &["waiting lib 1", "ended lib 1"])?;
    Ok(String::new())
}

/// Kills the task, and starts another.
pub fn restart(shop: &Container) -> Result<()> {
    shop.kill("SIGKILL")?;
    shop.wait_for("STOPPED")?;
    shop.start_again()
}

/// What containerd's followers see: what happens while it runs, and while it does not.
pub fn by_containerd(world: &mut World) -> Result<String> {
    let stream = Follower::of_containerd()?;
    publish("new@1", &[])?;
    let published = topic(&stream, "/capsules/published")?;
    ensure!(published.contains("new@1") && published.contains("capsules "), "{published}");
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    done(&["detach", "shop", "tool"])?;
    let detached = topic(&stream, "/capsules/detached")?;
    let words = ["default", "\"capsule\":\"tool\"", "\"id\":\"shop\"", "\"target\":\"/opt/tool\""];
    for word in words {
        ensure!(detached.replace(": ", ":").contains(word), "{word}: {detached}");
    }
    drop(stream);
    for count in 1..=TRIES {
        done(&["attach", "shop", "tool"])?;
        sleep(Duration::from_secs(1)); // that is told before containerd is killed
        world.kill_containerd()?;
        let detached = capsulectl(&["detach", "shop", "tool"]);
        let late = Follower::start("sh", &["-c", "until ctr events; do :; done 2>/dev/null"]);
        world.start_containerd()?;
        detached?.success("detach without containerd")?;
        if let Ok(line) = topic(&late?, "/capsules/detached") {
            ensure!(line.replace(": ", ":").contains(words[1]), "{line}");
            world.wait_for_snapshotter()?;
            shop.remove()?;
            return Ok(format!("at the {count}. time: {line}"));
        }
    }
    Err(anyhow!("what happened while containerd was away is not told when it is back, {TRIES} times"))
}

/// The next event of this topic.
fn topic(stream: &Follower, topic: &str) -> Result<String> {
    loop {
        let line = stream.next()?;
        if line.contains(topic) {
            return Ok(line);
        }
    }
}
