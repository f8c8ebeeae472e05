//! What lasts: attachments over a restart of the node, and what is told of all that happens.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::capsulectl::{done, json, refused};
use super::ctr::{Container, OURS, ctr};
use super::follow::{Follower, last};
use super::others;
use super::sets::{expect, publish};
use super::told;
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start_with(true, others::MONITOR)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        for label in ["lib@1", "lib@2", "tool@1", "late@1"] {
            publish(label, &[])?;
        }
        Ok(((), String::new()))
    })?;
    reporter.check("events are followed, over a restart of capsuled too", || followed(&mut world));
    reporter.check("events are told on containerd's stream", told_by_containerd);
    reporter.check("and what happens while containerd is away, when it is back", || {
        told::by_containerd(&mut world)
    });
    reporter.check("what is undone is told", || told::undone(&mut world));
    reporter.check("what is lost, given back and removed is told", || told::lost(&mut world));
    reporter.check("tags are told, and what they stood for before", tags_told);
    reporter.check("what drains is told, over a restart of capsuled too", || drains_told(&mut world));
    reporter.check("what is not kept, or has not happened, is said", not_kept);
    reporter
        .check("a container has its attachments again after the node's restart", || restarted(&mut world));
    reporter
        .check("what was acknowledged last is there, what was detached is not", || at_the_last(&mut world));
    reporter.check("what another container of the id had is not another's", || another(&mut world));
    reporter.check("what containerd's monitor starts again has its attachments", others::monitored);
    reporter.check("one inside another: the outer stays", others::nested);
    reporter.check("images of what is in use are removed, and garbage is collected", || {
        others::images_removed(&mut world)
    });
    world.stop()
}

fn followed(world: &mut World) -> Result<String> {
    let all = Follower::start("capsulectl", &["events", "--all", "-o", "json"])?;
    let published = all.kinds(4)?;
    ensure!(published.contains(&"published lib 1".to_owned()), "{published:?}");
    let of_lib =
        Follower::start("capsulectl", &["events", "--capsule", "lib", "-o", "json", "--after", &last()?])?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    done(&["attach", "shop", "lib@1"])?;
    done(&["upgrade", "shop", "lib"])?;
    ensure!(of_lib.kinds(2)? == ["attached lib 1", "upgraded lib 2"], "of lib");
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    done(&["rollback", "shop", "lib"])?;
    done(&["detach", "shop", "tool"])?;
    let seen = all.kinds(5)?;
    let expected =
        ["attached tool 1", "attached lib 1", "upgraded lib 2", "rolled-back lib 1", "detached tool 1"];
    ensure!(seen == expected, "{seen:?}");
    shop.remove()?;
    let ended = all.kinds(2)?;
    ensure!(ended == ["waiting lib 1", "ended lib 1"], "{ended:?}");
    ensure!(
        of_lib.kinds(3)? == ["rolled-back lib 1", "waiting lib 1", "ended lib 1"],
        "of lib, after the restart"
    );
    Ok(done(&["events", "--all", "--no-follow"])?.lines().last().unwrap_or_default().to_owned())
}

/// Nobody asks for anything here while it drains: capsuled follows it by itself.
fn drains_told(world: &mut World) -> Result<String> {
    let follower = Follower::start("capsulectl", &["events", "-o", "json", "--after", &last()?])?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    done(&["attach", "shop", "lib@1"])?;
    let uses = |file: &str| format!("exec 3<{file}; echo $$ >/user-of; exec sleep 100000");
    let (mut began, mut pids) = (Vec::new(), Vec::new());
    for (name, capsule) in [("one", "tool"), ("two", "lib")] {
        shop.spawn(name, &["/bin/sh", "-c", &uses(&format!("/opt/{capsule}/version"))])?;
        until("the user has it open", || {
            Ok(shop.sh("look", "test -s /user-of && echo yes || echo no")?.trim() == "yes")
        })?;
        pids.push(shop.sh("pid", "cat /user-of; rm /user-of")?.trim().to_owned());
    }
    done(&["detach", "shop", "tool", "--lazy"])?;
    done(&["upgrade", "shop", "lib"])?;
    began.extend(follower.kinds(6)?);
    began.sort();
    let mut expected = [
        "attached tool 1",
        "attached lib 1",
        "detached tool 1",
        "draining tool 1",
        "upgraded lib 2",
        "draining lib 1",
    ];
    expected.sort_unstable();
    ensure!(began == expected, "{began:?}");
    shop.sh("end-one", &format!("kill {}", pids[0]))?;
    let drained = follower.kinds(1)?;
    ensure!(drained == ["drained tool 1"], "{drained:?}");
    // The last that uses it ends while capsuled is away.
    world.kill_capsuled()?;
    shop.sh("end-two", &format!("kill {}", pids[1]))?;
    world.restart_capsuled()?;
    let drained = follower.kinds(1)?;
    ensure!(drained == ["drained lib 1"], "{drained:?}");
    shop.remove()?;
    Ok(expected.join(", "))
}

fn told_by_containerd() -> Result<String> {
    let stream = Follower::of_containerd()?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    let line = loop {
        let line = stream.next()?;
        if line.contains("/capsules/attached") {
            break line;
        }
    };
    for word in ["default", "\"capsule\":\"tool\"", "\"id\":\"shop\"", "\"target\":\"/opt/tool\""] {
        ensure!(line.replace(": ", ":").contains(word), "{word}: {line}");
    }
    shop.remove()?;
    Ok(line)
}

fn tags_told() -> Result<String> {
    let follower = Follower::start("capsulectl", &["events", "-o", "json", "--after", &last()?])?;
    done(&["tag", "lib@1", "stable"])?;
    done(&["tag", "lib@2", "stable"])?;
    done(&["untag", "lib@stable"])?;
    let seen = follower.kinds(3)?;
    ensure!(seen == ["tagged lib 1", "tagged lib 2", "untagged lib 2"], "{seen:?}");
    let all = done(&["events", "--all", "--no-follow"])?;
    let line = all.lines().find(|line| line.contains("lib 1 -> 2 as stable")).context("no such line")?;
    Ok(line.to_owned())
}

fn not_kept() -> Result<String> {
    // Others' events may come in between.
    let newest = || last()?.parse::<u64>().context("a number");
    let before = newest()?;
    let said = refused(&["events", "--after", &(before + 1000).to_string()], &["has not happened"])?;
    let told = said.rsplit(' ').next().and_then(|number| number.trim_end_matches('.').parse().ok());
    let after = newest()?;
    ensure!(
        told.is_some_and(|told: u64| before <= told && told <= after),
        "not the newest, {before}: {said}"
    );
    Ok(said)
}

fn restarted(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "lib@1", "tool"])?;
    done(&["upgrade", "shop", "lib"])?;
    let before: u64 = last()?.parse().context("a number")?;
    world.reboot(&[&shop])?;
    let states: Vec<String> = list("shop")?.iter().map(|a| a["state"].to_string()).collect();
    ensure!(states == ["\"waiting\"", "\"waiting\""], "{states:?}");
    // Its first process finds them.
    start_again(&shop)?;
    expect(&shop, &["lib@2", "tool@1"])?;
    let after: u64 = last()?.parse().context("a number")?;
    ensure!(after > before, "event {after} after the restart, {before} before it");
    done(&["rollback", "shop", "lib"])?;
    expect(&shop, &["lib@1", "tool@1"])?;
    shop.remove()?;
    Ok(format!("events {before} and {after}"))
}

fn at_the_last(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    done(&["attach", "shop", "lib@1"])?;
    for round in 0..3 {
        done(&["detach", "shop", "tool"])?;
        done(&["attach", "shop", "late"])?;
        world.reboot(&[&shop])?;
        start_again(&shop)?;
        expect(&shop, &["late@1", "lib@1"]).with_context(|| format!("round {round}"))?;
        done(&["detach", "shop", "late"])?;
        done(&["attach", "shop", "tool"])?;
        world.reboot(&[&shop])?;
        start_again(&shop)?;
        expect(&shop, &["lib@1", "tool@1"]).with_context(|| format!("round {round}"))?;
    }
    shop.remove()?;
    let kept = fs::metadata("/var/lib/capsule/attachments.redb").context("the records")?.len();
    Ok(format!("6 restarts; the records take {kept} bytes"))
}

fn another(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool"])?;
    world.reboot(&[&shop])?;
    shop.remove()?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    expect(&shop, &[])?;
    shop.remove()?;
    Ok(String::new())
}

fn list(container: &str) -> Result<Vec<Value>> {
    Ok(json(&["ps", container])?["attachments"].as_array().context("attachments")?.clone())
}

fn start_again(shop: &Container) -> Result<()> {
    ctr(&["task", "start", "-d", "--null-io", &shop.id])?.success("ctr task start")?;
    shop.wait_for("RUNNING")
}
