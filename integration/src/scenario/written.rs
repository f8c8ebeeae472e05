//! What is written to attachments: kept and dropped as asked, published while it is written to, and bounded.

use std::fs;
use std::path::Path;
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::capsulectl::{capsulectl, done, json, refused};
use super::ctr::{Container, OURS, ctr};
use super::reboot::{kill, shim_of};
use super::sets::publish;
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// What capsuled has of attachments that are written to.
const OWN: &str = "/var/lib/capsule/attachments";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        for label in ["tool@1", "tool@2", "other@1"] {
            publish(label, &[])?;
        }
        Ok(((), String::new()))
    })?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    reporter.check("what is written is published while the container runs", published);
    reporter.check("a tree of every kind of file comes out as it went in", every_kind);
    reporter.check("what is written becomes the base's next layer again and again", again_and_again);
    reporter.check("nothing is dropped unless it is asked for", || asked(&mut world));
    reporter.check("what has a name outlives its container, and has a size", || named(&mut world));
    reporter.check("what still drains is not given to another", draining);
    reporter.check("a publish beside a writer is whole, or says what to do", beside_a_writer);
    reporter.check("a disk that has no room is said, and nothing is made", no_room);
    reporter.check("capsuled, containerd and shims are killed, and what was written stays", || {
        killed(&mut world)
    });
    reporter.check("nothing is left on the node", || left(&mounts));
    world.stop()
}

/// The one attachment of a container.
fn attachment(container: &str) -> Result<Value> {
    let list = json(&["ps", container])?;
    Ok(list["attachments"].as_array().context("attachments")?.first().context("no attachment")?.clone())
}

/// Names in the directory of what is written without a name, once there are so many.
fn own(count: usize) -> Result<Vec<String>> {
    let list = || -> Result<Vec<String>> {
        let entries = fs::read_dir(OWN).context("what is written")?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    until(&format!("there are {count} in {OWN}"), || Ok(list()?.len() == count))?;
    list()
}

fn published() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool@1", "--writable"])?;
    let seen = attachment("shop")?;
    ensure!(seen["writable"]["persist"].is_null() && !seen["writable"].is_null(), "{seen}");
    ensure!(done(&["ps", "shop"])?.contains(" rw "), "ps does not show that it is writable");
    let empty = refused(&["commit", "shop", "tool", "--version", "1.1"], &["nothing was written"])?;
    let write = "cd /opt/tool && echo more > new && rm label && mkdir -p deep/er && echo x > deep/er/file";
    shop.sh("write", write)?;
    let said = done(&["commit", "shop", "tool", "--version", "1.1", "--tag", "local"])?;
    let again = done(&["commit", "shop", "tool", "--version", "1.1"])?;
    ensure!(again.contains("was there already"), "{again}");
    // It goes on, and what is published does not change any more.
    shop.sh("more", "echo later > /opt/tool/later; test -e /opt/tool/new")?;
    refused(&["commit", "shop", "tool", "--version", "1.1"], &["tool@1.1", "other content"])?;
    let other = OURS.start("other", &[], &SLEEP)?;
    done(&["attach", "other", "tool@local"])?;
    let tree = other.sh("tree", "cd /opt/tool && for f in * deep/er/*; do echo $f; done; cat new version")?;
    let want = "deep\nnew\nversion\ndeep/er/file\nmore\n1";
    ensure!(tree.trim() == want, "{tree:?}");
    refused(&["upgrade", "shop", "tool@2"], &["tool@1", "is writable", "capsulectl commit"])?;
    ensure!(attachment("shop")?["version"] == "1", "it moved");
    let undecided = refused(&["detach", "shop", "tool"], &["--keep NAME or --drop"])?;
    done(&["detach", "shop", "tool", "--drop"])?;
    own(0)?;
    other.remove()?;
    shop.remove()?;
    Ok(format!("{} | {empty} | {undecided}", said.trim()))
}

/// Whatever a container can make: links that lead out, pipes, devices, long names, attributes.
fn every_kind() -> Result<String> {
    let shop = OURS.start("shop", &["--privileged"], &SLEEP)?;
    done(&["attach", "shop", "tool@1", "--writable"])?;
    let long = "n".repeat(200);
    let write = format!(
        "cd /opt/tool && ln -s /../../etc/passwd out && ln -s {long} far && mkfifo pipe && mknod null c 1 3 && \
         echo twin > one && ln one two && mkdir {long} && echo deep > {long}/{long} && chown 1234:5678 one && \
         chmod 4750 one && rm version && mkdir version && echo inside > version/file && touch .hidden"
    );
    shop.sh("write", &write)?;
    done(&["commit", "shop", "tool", "--version", "every-kind"])?;
    done(&["attach", "shop", "tool@every-kind", "--target", "/opt/copy"])?;
    let list = |dir: &str| {
        let script =
            format!("cd {dir} && find . ! -name . -exec stat -c '%n %F %a %u:%g %t,%T %N' {{}} + | sort");
        shop.sh("list", &script)
    };
    let (source, copy) = (list("/opt/tool")?, list("/opt/copy")?);
    ensure!(source == copy, "written:\n{source}\npublished:\n{copy}");
    ensure!(
        shop.sh("cat", &format!("cat /opt/copy/{long}/{long} /opt/copy/version/file /opt/copy/two"))?.trim()
            == "deep\ninside\ntwin",
        "content"
    );
    shop.remove()?;
    own(0)?;
    Ok(format!("{} entries", source.lines().count()))
}

fn again_and_again() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let mut version = "1".to_owned();
    for round in 0..4 {
        done(&["attach", "shop", &format!("tool@{version}"), "--writable"])?;
        shop.sh("write", &format!("cd /opt/tool && rm -f r{} && echo {round} > r{round}", round - 1))?;
        version = format!("again-{round}");
        done(&["commit", "shop", "tool", "--version", &version])?;
        done(&["detach", "shop", "tool", "--drop"])?;
    }
    done(&["attach", "shop", &format!("tool@{version}")])?;
    let tree = shop.sh("tree", "cd /opt/tool && echo *")?;
    ensure!(tree.trim() == "label r3 version", "{tree:?}");
    shop.remove()?;
    let layers = json(&["inspect", &format!("tool@{version}")])?["layers"].as_array().map(Vec::len);
    Ok(format!("{} layers", layers.unwrap_or_default()))
}

/// A restart of the task and of the node, and every way to detach.
fn asked(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    shop.sh("own", "mkdir -p /var/tmp && echo own > /var/tmp/own")?;
    done(&["attach", "shop", "tool@1", "--writable", "--mode", "union", "--target", "/var/tmp"])?;
    shop.sh("write", "echo mine > /var/tmp/mine && test -e /var/tmp/own && test -e /var/tmp/version")?;
    shop.kill("KILL")?;
    shop.wait_for("STOPPED")?;
    ctr(&["task", "delete", "shop"])?.success("ctr task delete")?;
    start_again(&shop)?;
    ensure!(shop.sh("read", "cat /var/tmp/mine")?.trim() == "mine", "after a restart of the task");
    world.reboot(&[&shop])?;
    start_again(&shop)?;
    ensure!(shop.sh("read", "cat /var/tmp/mine")?.trim() == "mine", "after a restart of the node");
    refused(&["detach", "shop", "tool", "--lazy"], &["--keep NAME or --drop"])?;
    let said = refused(&["detach", "shop", "tool", "--keep", "No Name"], &["is no name"])?;
    done(&["detach", "shop", "tool", "--keep", "mine"])?;
    shop.sh("gone", "test ! -e /var/tmp/mine && test -e /var/tmp/own")?;
    own(0)?;
    done(&["commit", "--upper", "mine", "--version", "of-mine"])?;
    done(&["attach", "shop", "tool@of-mine", "--target", "/opt/of-mine"])?;
    shop.sh("read", "test $(cat /opt/of-mine/mine) = mine")?;
    refused(&["detach", "shop", "tool", "--drop"], &["read-only"])?;
    done(&["uppers", "rm", "mine"])?;
    refused(&["uppers", "rm", "mine"], &["mine", "capsulectl uppers"])?;
    // With the container goes what has no name.
    done(&["attach", "shop", "other", "--writable"])?;
    own(1)?;
    shop.remove()?;
    own(0)?;
    Ok(said)
}

fn start_again(shop: &Container) -> Result<()> {
    ctr(&["task", "start", "-d", "--null-io", &shop.id])?.success("ctr task start")?;
    shop.wait_for("RUNNING")
}

fn named(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool@1", "--persist", "notes", "--size", "16MiB"])?;
    shop.sh("write", "echo first > /opt/tool/notes")?;
    let second = OURS.start("second", &[], &SLEEP)?;
    let busy =
        refused(&["attach", "second", "tool@1", "--persist", "notes"], &["notes", "in use", "default/shop"])?;
    let full =
        shop.exec("fill", &["/bin/dd", "if=/dev/zero", "of=/opt/tool/big", "bs=1M", "count=32"], b"")?;
    ensure!(full.code != 0 && full.err.contains("No space left"), "{full:?}");
    shop.sh("clean", "rm /opt/tool/big && echo after > /opt/tool/after")?;
    world.reboot(&[&shop])?;
    start_again(&shop)?;
    ensure!(
        shop.sh("read", "cat /opt/tool/notes /opt/tool/after")?.trim() == "first\nafter",
        "after a restart of the node"
    );
    // The restart took the other container's task.
    shop.remove()?;
    second.remove()?;
    until("it is free", || Ok(json(&["uppers"])?["uppers"][0]["used_by"].is_null()))?;
    let third = OURS.start("third", &[], &SLEEP)?;
    refused(&["attach", "third", "other", "--persist", "notes"], &["notes", "capsule tool"])?;
    refused(&["attach", "third", "tool", "--persist", "notes", "--size", "1GiB"], &["notes", "--size"])?;
    done(&["attach", "third", "tool@2", "--persist", "notes"])?;
    ensure!(
        third.sh("read", "cat /opt/tool/notes /opt/tool/version")?.trim() == "first\n2",
        "over the next version"
    );
    refused(&["uppers", "rm", "notes"], &["notes", "in use"])?;
    let listed = json(&["uppers"])?;
    let upper = &listed["uppers"][0];
    ensure!(upper["name"] == "notes" && upper["size"] == 16 << 20 && upper["version"] == "2", "{listed}");
    done(&["commit", "third", "tool", "--version", "2-notes"])?;
    done(&["detach", "third", "tool"])?;
    ensure!(json(&["uppers"])?["uppers"][0]["used_by"].is_null(), "it is used still");
    done(&["commit", "--upper", "notes", "--version", "2-notes-again"])?;
    let same = json(&["diff", "tool@2-notes", "tool@2-notes-again"])?;
    ensure!(same["changes"].as_array().is_some_and(Vec::is_empty), "{same}");
    done(&["uppers", "rm", "notes"])?;
    third.remove()?;
    Ok(busy)
}

fn draining() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool@1", "--persist", "notes", "--size", "8MiB"])?;
    shop.spawn("user", &["/bin/sh", "-c", "exec 3>/opt/tool/open; echo $$ >/tmp-user; exec sleep 100000"])?;
    until("the process has it open", || {
        Ok(shop.sh("look", "test -s /tmp-user && echo yes || echo no")?.trim() == "yes")
    })?;
    done(&["detach", "shop", "tool", "--lazy"])?;
    let line = refused(&["attach", "shop", "tool@1", "--persist", "notes"], &["notes", "in use", "drain"])?;
    refused(&["uppers", "rm", "notes"], &["notes", "in use"])?;
    shop.sh("end", "kill -9 $(cat /tmp-user)")?;
    until("it can be attached again", || {
        Ok(capsulectl(&["attach", "shop", "tool@1", "--persist", "notes"])?.code == 0)
    })?;
    shop.sh("open", "test -e /opt/tool/open")?;
    // What has no name drains too, and goes when it has.
    done(&["attach", "shop", "other", "--writable"])?;
    shop.spawn(
        "second",
        &["/bin/sh", "-c", "exec 3>/opt/other/open; echo $$ >/tmp-user; exec sleep 100000"],
    )?;
    until("the process has it open", || {
        Ok(shop.sh("look", "test -s /tmp-user && echo yes || echo no")?.trim() == "yes")
    })?;
    sleep(Duration::from_millis(200));
    done(&["detach", "shop", "other", "--lazy", "--drop"])?;
    ensure!(own(1)?.len() == 1, "it is still written to");
    shop.remove()?;
    own(0)?;
    done(&["uppers", "rm", "notes"])?;
    Ok(line)
}

fn beside_a_writer() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    done(&["attach", "shop", "tool@1", "--writable"])?;
    let script = "i=0; while :; do i=$((i+1)); { echo $i; echo $i; } > /opt/tool/f$((i % 50)); done";
    shop.spawn("writer", &["/bin/sh", "-c", script])?;
    let first = format!("/proc/{}/root/opt/tool/f1", shop.pid()?);
    until("something is written", || Ok(Path::new(&first).exists()))?;
    let (mut whole, mut refusals) = (0, Vec::new());
    for round in 0..5 {
        let version = format!("beside-{round}");
        let output = capsulectl(&["commit", "shop", "tool", "--version", &version])?;
        if output.code == 0 {
            whole += 1;
        } else {
            ensure!(output.err.contains("pause the container"), "{}", output.err);
            refusals.push(output.err.trim().to_owned());
        }
    }
    // What the message says to do.
    ctr(&["task", "pause", "shop"])?.success("ctr task pause")?;
    done(&["commit", "shop", "tool", "--version", "paused"])?;
    ctr(&["task", "resume", "shop"])?.success("ctr task resume")?;
    shop.remove()?;
    own(0)?;
    Ok(format!("{whole} whole, {} refused: {}", refusals.len(), refusals.first().map_or("", String::as_str)))
}

fn no_room() -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let words = &["attach", "shop", "tool@1", "--persist", "huge", "--size", "1000TiB"];
    let line = refused(words, &["disk", "--size"])?;
    refused(&["attach", "shop", "tool@1", "--writable", "--size", "1KiB"], &["too few"])?;
    ensure!(json(&["uppers"])?["uppers"].as_array().is_some_and(Vec::is_empty), "something is there");
    own(0)?;
    shop.remove()?;
    Ok(line)
}

fn killed(world: &mut World) -> Result<String> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    for round in 0..6_u64 {
        let name = format!("round-{round}");
        done(&["attach", "shop", "tool@1", "--writable"])?;
        shop.sh("write", &format!("echo {round} > /opt/tool/written"))?;
        let caller = spawn({
            let name = name.clone();
            move || capsulectl(&["detach", "shop", "tool", "--keep", &name])
        });
        sleep(Duration::from_millis(4 * round));
        world.kill_capsuled()?;
        caller.join().map_err(|_| anyhow::anyhow!("the caller's thread"))??;
        world.mend()?;
        let is_kept = || Path::new("/var/lib/capsule/uppers").join(&name).exists();
        let is_read =
            || -> Result<bool> { Ok(shop.exec("look", &["/bin/cat", "/opt/tool/written"], b"")?.code == 0) };
        until("it is one or the other", || Ok(is_kept() || is_read()?))?;
        if is_kept() {
            until("it is detached", || Ok(capsulectl(&["ps", "shop"])?.out.lines().count() == 1))?;
        } else {
            ensure!(
                shop.sh("read", "cat /opt/tool/written")?.trim() == round.to_string(),
                "round {round}: it is attached, and lost"
            );
            done(&["detach", "shop", "tool", "--keep", &name])?;
        }
        let file = format!("/var/lib/capsule/uppers/{name}/upper/written");
        ensure!(fs::read_to_string(&file).context(file)?.trim() == round.to_string(), "round {round}");
        done(&["uppers", "rm", &name])?;
        own(0)?;
    }
    done(&["attach", "shop", "tool@1", "--writable"])?;
    shop.sh("write", "echo lasting > /opt/tool/written")?;
    kill(shim_of(&shop)?)?;
    until("it waits", || Ok(attachment("shop")?["state"] == "waiting"))?;
    world.kill_containerd()?;
    world.start_containerd()?;
    ctr(&["task", "delete", "-f", "shop"])?;
    start_again(&shop)?;
    ensure!(shop.sh("read", "cat /opt/tool/written")?.trim() == "lasting", "after the shim was killed");
    shop.remove()?;
    own(0)?;
    Ok(String::new())
}

/// No directory, no mount on the node, and no loop device of ours.
fn left(mounts: &str) -> Result<String> {
    own(0)?;
    let now = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    let new: Vec<&str> =
        now.lines().filter(|line| line.contains("capsule") && !mounts.contains(*line)).collect();
    ensure!(new.is_empty(), "{new:?}");
    until("no loop device has an image of ours", || {
        let devices = fs::read_dir("/sys/block").context("block devices")?.flatten();
        let files = devices.filter_map(|d| fs::read_to_string(d.path().join("loop/backing_file")).ok());
        Ok(!files.into_iter().any(|file| file.contains("/var/lib/capsule/")))
    })?;
    Ok(String::new())
}
