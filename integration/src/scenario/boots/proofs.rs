//! What is to be there after a boot.

use std::fs;
use std::mem::ManuallyDrop;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::node::HAND;
use crate::scenario::capsulectl::{done, json};
use crate::scenario::ctr::{Container, ctr};
use crate::scenario::follow::last;

/// Where what is written goes to, in the container that is started by hand.
const WRITTEN: [&str; 3] = ["sized", "plain", "own"];
/// How long containerd's monitor and what follows a call may take where processors are emulated.
const PATIENCE: Duration = Duration::from_secs(60);

fn container_of(id: &str) -> ManuallyDrop<Container> {
    // It is to outlive this.
    ManuallyDrop::new(Container { id: id.to_owned() })
}

/// Versions, tags and names are those that there were; the newest event comes after `event`.
pub fn node(event: u64) -> Result<String> {
    let list = json(&["ls"])?;
    let versions = list["versions"].as_array().context("versions")?;
    let mut labels = Vec::new();
    for version in versions {
        ensure!(version["complete"] == true, "{version}");
        labels.push(format!("{}@{}", version["capsule"], version["version"]).replace('"', ""));
    }
    labels.sort();
    for label in ["lib@1", "lib@2", "tool@1"] {
        ensure!(labels.iter().any(|found| found == label), "{label} is gone: {labels:?}");
    }
    json(&["inspect", "lib@stable"]).context("the tag")?;
    let names = json(&["uppers"])?;
    let names: Vec<&str> =
        names["uppers"].as_array().context("uppers")?.iter().filter_map(|u| u["name"].as_str()).collect();
    for name in ["sized", "plain"] {
        ensure!(names.contains(&name), "{name} is gone: {names:?}");
    }
    // Events themselves are of one boot.
    done(&["tag", "lib@1", "booted"]).and_then(|_| done(&["untag", "lib@booted"]))?;
    let newest: u64 = last()?.parse().context("a number")?;
    ensure!(newest > event, "event {newest}, after event {event} of the boot before");
    Ok(format!("{}; {}; events {event} and {newest}", labels.join(" "), names.join(" ")))
}

/// What was published from what was written holds `text`; the tag is where it was moved to.
pub fn published(text: &str) -> Result<String> {
    let stable = json(&["inspect", "lib@stable"])?;
    ensure!(stable["version"]["version"] == "2", "the tag went back: {stable}");
    for version in ["of-plain", "of-sized"] {
        done(&["attach", HAND, &format!("tool@{version}"), "--target", "/opt/look"])?;
        let found = container_of(HAND).sh("look", "cat /opt/look/text")?;
        ensure!(found.trim() == text, "tool@{version} holds {found:?}, not {text:?}");
        done(&["detach", HAND, "tool", "--target", "/opt/look"])?;
    }
    Ok(String::new())
}

/// The container has so many capsules and devices, and its first process found `lib` at this version, and the union.
pub fn container(id: &str, lib: &str, capsules: usize, devices: usize) -> Result<String> {
    let container = container_of(id);
    let deadline = Instant::now() + PATIENCE;
    while container.task()?.is_none_or(|(_, status)| status != "RUNNING") {
        ensure!(Instant::now() < deadline, "{id} is not started");
        sleep(Duration::from_millis(500));
    }
    let seen = format!("/proc/{}/root/seen", container.pid()?);
    let wanted = format!("{lib}tool@1");
    while fs::read_to_string(&seen).context("what the first process saw")? != wanted {
        let found = fs::read_to_string(&seen).unwrap_or_default();
        ensure!(Instant::now() < deadline, "the first process saw {found:?}, not {wanted:?}");
        sleep(Duration::from_millis(200));
    }
    let list = json(&["ps", id])?;
    let states: Vec<&str> = list["attachments"]
        .as_array()
        .context("attachments")?
        .iter()
        .filter_map(|a| a["state"].as_str())
        .collect();
    let count = capsules + devices;
    ensure!(states.len() == count && states.iter().all(|state| *state == "attached"), "{list}");
    let mounts = container.mounts()?.iter().filter(|line| line.contains(" - overlay capsule:")).count();
    ensure!(mounts == capsules, "{mounts} mounts of {capsules}: {:?}", container.mounts()?);
    if devices > 0 {
        container.sh("device", "exec 3<>/dev/box").context("open the device")?;
    }
    Ok(format!("{count} attached"))
}

/// Writes `text` to everything that can be written to, and to the disk.
pub fn written_by_hand(text: &str) -> Result<()> {
    let write: Vec<String> = WRITTEN
        .iter()
        .map(|name| format!("echo {text} | dd of=/opt/{name}/text conv=fsync && sync -f /opt/{name}/text"))
        .collect();
    container_of(HAND).sh("write", &write.join(" && ")).map(drop)
}

/// That `text` is there, under the names too.
pub fn has_written(text: &str) -> Result<String> {
    let names: Vec<String> = json(&["uppers"])?["uppers"]
        .as_array()
        .context("uppers")?
        .iter()
        .filter_map(|upper| upper["name"].as_str().map(str::to_owned))
        .collect();
    for name in WRITTEN {
        // What was kept under a name is in the container no more.
        if name == "own" && names.iter().any(|kept| kept == name) {
            let path = format!("/var/lib/capsule/uppers/{name}/upper/text");
            let found = fs::read_to_string(&path).context(path)?;
            ensure!(found.trim() == text, "{name} holds {found:?}, not {text:?}");
            continue;
        }
        let found = container_of(HAND).sh("read", &format!("cat /opt/{name}/text"))?;
        ensure!(found.trim() == text, "/opt/{name}/text holds {found:?}, not {text:?}");
    }
    Ok(names.join(" "))
}

/// Nothing is there that nothing needs: `names` are kept, and `marked` containers have attachments.
pub fn nothing_left(names: &[&str], marked: usize) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = found()?;
        let wanted = Found {
            uppers: names.len(),
            own: 0,
            marks: marked,
            pipes: 0,
            leases: 0,
            mounts: 0,
            // What gets its name later has no size.
            loops: names.iter().filter(|name| **name != "own").count(),
            directories: found.snapshots,
            snapshots: found.snapshots,
        };
        if found == wanted {
            return Ok(format!("{found:?}"));
        }
        ensure!(Instant::now() < deadline, "{found:?} instead of {wanted:?}");
        // What a crash left is garbage: it goes with the next collection, which this makes.
        ctr(&["-n", "capsules", "leases", "create", "--id", "collect"])?.success("ctr leases create")?;
        ctr(&["-n", "capsules", "leases", "rm", "--sync", "collect"])?.success("ctr leases rm")?;
    }
}

/// How many there are.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    uppers: usize,
    own: usize,
    marks: usize,
    pipes: usize,
    leases: usize,
    /// On the node, of capsules.
    mounts: usize,
    /// Loop devices with a file of ours.
    loops: usize,
    directories: usize,
    snapshots: usize,
}

fn found() -> Result<Found> {
    let count = |folder: &str| fs::read_dir(folder).map(Iterator::count).unwrap_or_default();
    let list = |args: &[&str]| ctr(args)?.success("ctr");
    let mut snapshots = 0;
    for namespace in ["default", "capsules"] {
        let all = list(&["-n", namespace, "snapshots", "--snapshotter", "capsule", "ls"])?;
        snapshots += all.lines().count().saturating_sub(1);
    }
    let table = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    // The root file systems of containers are containerd's.
    let ours = |line: &&str| line.contains("capsule") && !line.contains("/run/containerd/");
    let devices = fs::read_dir("/sys/block").context("block devices")?.flatten();
    let files = devices.filter_map(|d| fs::read_to_string(d.path().join("loop/backing_file")).ok());
    Ok(Found {
        uppers: count("/var/lib/capsule/uppers"),
        own: count("/var/lib/capsule/attachments"),
        marks: count("/run/capsule/kept/default"),
        pipes: count("/run/capsule/checks"),
        leases: list(&["-n", "capsules", "leases", "ls", "-q"])?.lines().count(),
        mounts: table.lines().filter(ours).count(),
        loops: files.filter(|file| file.contains("/var/lib/capsule/")).count(),
        directories: count("/var/lib/capsule/snapshots"),
        snapshots,
    })
}
