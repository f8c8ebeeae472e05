//! What others do to containerd's images and tasks: what is attached does not mind.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{done, json, refused};
use super::ctr::{Container, OURS, ctr};
use super::sets::{expect, publish};
use super::told::restart;
use super::world::{World, until};

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// containerd's monitor of restarts looks each second.
pub const MONITOR: &str = "\n[plugins.\"io.containerd.internal.v1.restart\"]\ninterval = \"1s\"\n";

/// The images of versions in use are removed, and containerd's garbage is collected at once.
pub fn images_removed(world: &mut World) -> Result<String> {
    for label in ["held@1", "held@2", "drain@1"] {
        publish(label, &[])?;
    }
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "held@1", "drain"])?;
    done(&["upgrade", "shop", "held"])?;
    // It looks up a file that nobody has looked up before.
    let reader = "cd /opt/drain && touch /inside; until test -e /go; do sleep 1; done; cat label > /read";
    shop.spawn("reader", &["/bin/sh", "-c", reader])?;
    until("the reader is inside", || is_there(&shop, "/inside"))?;
    done(&["detach", "shop", "drain", "--lazy"])?;
    for image in ["held:1", "held:2", "drain:1"] {
        let image = format!("localhost/capsules/{image}");
        ctr(&["-n", "capsules", "images", "rm", "--sync", &image])?.success("ctr images rm")?;
    }
    until("no version is listed", || {
        let list = json(&["ls"])?.to_string();
        Ok(!list.contains("\"held\"") && !list.contains("\"drain\""))
    })?;
    let label = |shop: &Container, expected: &str| -> Result<()> {
        let found = read(shop, "/opt/held/label")?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    };
    label(&shop, "held@2").context("what is attached")?;
    shop.sh("go", "touch /go")?;
    until("the reader has read", || Ok(read(&shop, "/read").is_ok_and(|text| text == "drain@1")))
        .context("what drains")?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    restart(&shop)?;
    expect_held(&shop, "2").context("after a restart of capsuled and of the task")?;
    label(&shop, "held@2")?;
    done(&["rollback", "shop", "held"]).context("a rollback")?;
    expect_held(&shop, "1")?;
    label(&shop, "held@1").context("what is gone back to")?;
    restart(&shop)?;
    expect_held(&shop, "1").context("after a restart of the task")?;
    refused(&["upgrade", "shop", "held@2"], &["held"])?;
    for label in ["held@1", "held@2", "drain@1"] {
        publish(label, &[]).with_context(|| format!("publish {label} again"))?;
    }
    done(&["upgrade", "shop", "held"])?;
    expect_held(&shop, "2").context("published again")?;
    done(&["attach", "shop", "drain"])?;
    ensure!(read(&shop, "/opt/drain/label")? == "drain@1", "the label of drain");
    shop.remove()?;
    until("nothing is in use", || Ok(json(&["ps"])?["attachments"].as_array().is_some_and(Vec::is_empty)))?;
    for label in ["held@1", "held@2", "drain@1"] {
        done(&["rm", label])?;
    }
    Ok(String::new())
}

fn expect_held(shop: &Container, version: &str) -> Result<()> {
    expect(shop, &[&format!("held@{version}")])
}

fn read(shop: &Container, path: &str) -> Result<String> {
    let path = format!("/proc/{}/root{path}", shop.pid()?);
    Ok(fs::read_to_string(&path).with_context(|| format!("read {path}"))?.trim().to_owned())
}

fn is_there(shop: &Container, path: &str) -> Result<bool> {
    Ok(fs::exists(format!("/proc/{}/root{path}", shop.pid()?))?)
}

/// containerd starts the task again by itself, as it does for `nerdctl run --restart`.
pub fn monitored() -> Result<String> {
    let status = "containerd.io/restart.status";
    let shop = OURS.start("shop", &["--label", &format!("{status}=running")], &SLEEP)?;
    done(&["attach", "shop", "lib@1", "tool"])?;
    let mut pids = vec![shop.pid()?];
    for round in 1..=2 {
        let before = shop.pid()?;
        shop.kill("SIGKILL")?;
        until("it is started again", || {
            Ok(shop.task()?.is_some_and(|(pid, status)| pid != before && status == "RUNNING"))
        })?;
        expect(&shop, &["lib@1", "tool@1"]).with_context(|| {
            let events = done(&["events", "--all", "--no-follow"]).unwrap_or_default();
            let told: Vec<&str> = events.lines().rev().take(8).collect();
            format!("round {round}: {told:?}")
        })?;
        pids.push(shop.pid()?);
    }
    ctr(&["container", "label", "shop", &format!("{status}=stopped")])?.success("ctr container label")?;
    // The monitor ends its task, and deletes it.
    until("it is stopped, and deleted", || Ok(shop.task()?.is_none()))?;
    shop.remove()?;
    Ok(format!("processes {pids:?}"))
}

/// One inside another: the outer stays while it has the inner.
pub fn nested() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let tree = "/tmp/nested/outer";
    for version in ["1", "2"] {
        fs::create_dir_all(format!("{tree}/sub")).context("create a tree")?;
        fs::write(format!("{tree}/version"), version).context("write a file")?;
        done(&["build", tree, "--name", "outer", "--version", version, "--target", "/opt/outer"])?;
    }
    done(&["attach", "shop", "outer@1"])?;
    refused(&["attach", "shop", "tool", "--target", "/opt"], &["/opt/outer", "outer@1"])?;
    refused(&["attach", "shop", "tool", "--target", "/opt/outer"], &["outer@1"])?;
    refused(&["attach", "shop", "tool", "--target", "/opt/outer/none"], &["/opt/outer/none"])?;
    expect(&shop, &["outer@1"])?;
    done(&["attach", "shop", "tool", "--target", "/opt/outer/sub"])?;
    let line = refused(&["detach", "shop", "outer"], &["outer", "tool@1"])?;
    refused(&["detach", "shop", "outer", "--lazy"], &["outer", "tool@1"])?;
    refused(&["upgrade", "shop", "outer"], &["outer", "tool@1"])?;
    expect(&shop, &["outer@1", "tool@1"])?;
    // Its next task has both, the outer first.
    restart(&shop)?;
    expect(&shop, &["outer@1", "tool@1"])?;
    done(&["detach", "shop", "tool"])?;
    done(&["upgrade", "shop", "outer"])?;
    expect(&shop, &["outer@2"])?;
    done(&["detach", "shop", "outer"])?;
    expect(&shop, &[])?;
    shop.remove()?;
    Ok(line)
}
