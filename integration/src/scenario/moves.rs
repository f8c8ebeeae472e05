//! Sets that move: what new versions require comes along and goes back with them, and a container that is not well with it
//! has what it had.

use std::fs;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{capsulectl, done, json, refused};
use super::ctr::{Container, OURS};
use super::reboot::{kill, shim_of};
use super::sets::{expect, publish};
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// What the container has before each case.
const BEFORE: [&str; 2] = ["app@1", "lib@1.0"];
/// And with the next version of `app`.
const AFTER: [&str; 3] = ["app@2", "extra@1", "lib@2.0"];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        for (label, requires) in [
            ("lib@1.0", &[][..]),
            ("lib@1.5", &[]),
            ("lib@2.0", &[]),
            ("extra@1", &[]),
            ("app@1", &["lib <2"]),
            ("app@2", &["lib >=2", "extra"]),
            ("plugin@1", &["lib <2"]),
        ] {
            publish(label, requires)?;
        }
        Ok(((), String::new()))
    })?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "lib@1.0"])?;
    done(&["attach", "shop", "app@1"])?;
    reporter.check("what a new version requires comes along, and goes back with it", || along(&shop));
    reporter.check("a plan is shown, and changes nothing", || plan(&shop));
    reporter.check("what has to stay as it is is told", || stays(&shop));
    reporter.check("several move to the newest that go together", || together(&shop));
    reporter.check("a container that is well keeps the new versions", || well(&shop));
    reporter.check("a command that fails, or is none, moves all back", || ill(&shop));
    reporter.check("a command that hangs is ended, and all moves back", || hung(&shop));
    reporter.check("a command that needs a while is waited for", || late(&shop));
    reporter.check("capsuled killed while it waits: all is as before", || killed(&mut world, &shop));
    shop.remove()?;
    reporter.check("a shim killed while a set moves leaves all of it or none", shim_killed);
    reporter.check("a container that ends while it is proved", ended);
    world.stop()
}

fn back(shop: &Container) -> Result<()> {
    done(&["rollback", "shop", "app"])?;
    done(&["detach", "shop", "extra"])?;
    expect(shop, &BEFORE)
}

fn along(shop: &Container) -> Result<String> {
    let said = done(&["upgrade", "shop", "app"])?;
    expect(shop, &AFTER)?;
    back(shop)?;
    Ok(said.trim().replace('\n', " | "))
}

fn plan(shop: &Container) -> Result<String> {
    let plan = json(&["upgrade", "shop", "app", "--dry-run"])?;
    let planned = plan["planned"].as_array().context("planned")?.iter();
    let planned: Vec<String> = planned
        .map(|p| format!("{} {} {}", p["capsule"], p["from_version"], p["version"]).replace('"', ""))
        .collect();
    ensure!(planned == ["lib 1.0 2.0", "extra null 1", "app 1 2"], "{planned:?}");
    expect(shop, &BEFORE)?;
    Ok(done(&["upgrade", "shop", "app", "--dry-run"])?.trim().replace('\n', " | "))
}

fn stays(shop: &Container) -> Result<String> {
    done(&["attach", "shop", "plugin"])?;
    let words =
        ["the container has plugin@1: move it too", "plugin@1 requires lib <2", "app@2 requires lib >=2"];
    let line = refused(&["upgrade", "shop", "app"], &words)?;
    done(&["detach", "shop", "plugin"])?;
    expect(shop, &BEFORE)?;
    refused(&["upgrade", "shop", "app", "nothing"], &["nothing", "is not attached"])?;
    refused(&["rollback", "shop", "app"], &["app", "no earlier version"])?;
    expect(shop, &BEFORE)?;
    Ok(line)
}

fn together(shop: &Container) -> Result<String> {
    let said = done(&["upgrade", "shop", "lib", "app"])?;
    expect(shop, &AFTER)?;
    back(shop)?;
    Ok(said.trim().replace('\n', " | "))
}

fn upgrade(command: &str, timeout: &str) -> Vec<String> {
    let words = ["upgrade", "shop", "app", "--wait-healthy", command, "--health-timeout", timeout];
    words.map(str::to_owned).to_vec()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn well(shop: &Container) -> Result<String> {
    let check =
        "/bin/sh -c 'read v < /opt/app/version; read l < /opt/lib/version; test \"$v $l\" = \"2 2.0\"'";
    let said = done(&words(&upgrade(check, "20s")))?;
    expect(shop, &AFTER)?;
    back(shop)?;
    Ok(said.trim().replace('\n', " | "))
}

fn ill(shop: &Container) -> Result<String> {
    let check = upgrade("/bin/sh -c 'echo port 80 is closed >&2; exit 3'", "1500ms");
    let line = refused(
        &words(&check),
        &["default/shop", "ends with status 3: port 80 is closed", "it has what it had"],
    )?;
    expect(shop, &BEFORE)?;
    refused(&words(&upgrade("/no/such/command", "20s")), &["/no/such/command"])?;
    expect(shop, &BEFORE)?;
    no_check(shop)?;
    Ok(line)
}

fn hung(shop: &Container) -> Result<String> {
    let line = refused(&words(&upgrade("/bin/sleep 7777", "2s")), &["has not ended in 2 s"])?;
    expect(shop, &BEFORE)?;
    no_check(shop)?;
    Ok(line)
}

fn late(shop: &Container) -> Result<String> {
    // Not before the second run.
    let check = "/bin/sh -c 'test -e /tmp/seen || { echo > /tmp/seen; exit 1; }'";
    shop.sh("tmp", "rm -f /tmp/seen; mkdir -p /tmp")?;
    done(&words(&upgrade(check, "20s")))?;
    expect(shop, &AFTER)?;
    back(shop)?;
    Ok(String::new())
}

fn killed(world: &mut World, shop: &Container) -> Result<String> {
    let caller = spawn(|| capsulectl(&words(&upgrade("/bin/sleep 7778", "60s"))));
    until("the command runs", || Ok(processes(shop)?.contains("sleep 7778")))?;
    world.kill_capsuled()?;
    caller.join().map_err(|_| anyhow::anyhow!("the caller's thread"))??;
    world.mend()?;
    until("all is as before", || Ok(expect(shop, &BEFORE).is_ok()))?;
    until("the command is gone", || Ok(!processes(shop)?.contains("sleep 7778")))?;
    no_check(shop)?;
    done(&["upgrade", "shop", "app"])?;
    expect(shop, &AFTER)?;
    back(shop)?;
    Ok(String::new())
}

/// With the shim ends the task; what waits for the next one is of before the call, or of after it.
fn shim_killed() -> Result<String> {
    let mut waiting = [0; 2];
    for round in 0..8_u64 {
        let id = format!("frail-{round}");
        let shop = OURS.start(&id, &[], &SLEEP)?;
        done(&["attach", &id, "lib@1.0"])?;
        done(&["attach", &id, "app@1"])?;
        let caller = spawn({
            let id = id.clone();
            move || capsulectl(&["upgrade", &id, "app"])
        });
        sleep(Duration::from_micros(700 * round));
        kill(shim_of(&shop)?)?;
        caller.join().map_err(|_| anyhow::anyhow!("the caller's thread"))??;
        until("its attachments wait", || Ok(states(&id)?.iter().all(|state| state.ends_with(" waiting"))))?;
        let all = states(&id)?;
        let before = all == ["app@1 waiting", "lib@1.0 waiting"];
        ensure!(before || all == ["app@2 waiting", "extra@1 waiting", "lib@2.0 waiting"], "{all:?}");
        waiting[usize::from(before)] += 1;
        shop.remove()?;
        until("its attachments end", || Ok(states(&id)?.is_empty()))?;
    }
    Ok(format!("{} before, {} after", waiting[1], waiting[0]))
}

/// `NAME@VERSION STATE` of each attachment of a container.
fn states(container: &str) -> Result<Vec<String>> {
    let list = json(&["ps"])?;
    let all = list["attachments"].as_array().context("attachments")?.iter();
    let mut states: Vec<String> = all
        .filter(|a| a["container"] == container)
        .map(|a| format!("{}@{} {}", a["capsule"], a["version"], a["state"]).replace('"', ""))
        .collect();
    states.sort();
    Ok(states)
}

fn ended() -> Result<String> {
    let shop = OURS.start("shop", &[], &["/bin/sleep", "4"])?;
    done(&["attach", "shop", "app@1"])?;
    let began = Instant::now();
    let line = refused(&words(&upgrade("/bin/sleep 7779", "60s")), &["default/shop"])?;
    ensure!(began.elapsed() < Duration::from_secs(55), "it took {:?}", began.elapsed());
    until("its attachments wait", || Ok(states("shop")? == ["app@1 waiting", "lib@1.5 waiting"]))?;
    shop.remove()?;
    Ok(line)
}

/// Nothing of a check is left.
fn no_check(shop: &Container) -> Result<()> {
    let pipes = fs::read_dir("/run/capsule/checks").map(Iterator::count).unwrap_or_default();
    ensure!(pipes == 0, "{pipes} pipes are left");
    let seen = processes(shop)?;
    ensure!(!seen.contains("sleep 777"), "still runs: {seen}");
    Ok(())
}

/// The command lines of the container's processes.
fn processes(shop: &Container) -> Result<String> {
    shop.sh("ps", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null")
}
