//! Collecting that nobody asks for: every so often, and when a disk is full.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{clear, expect, versions};
use crate::scenario::ctr::run as program;
use crate::scenario::sets::publish;
use crate::scenario::world::{World, until};

const CONFIG: &str = "/etc/capsule/config.toml";

/// A configuration that collects by itself every second.
fn every_second(shipped: &str, keep: &str, high: &str, low: &str) -> String {
    shipped
        .replace("interval = \"0s\"", "interval = \"1s\"")
        .replace("keep_last = 3", &format!("keep_last = {keep}"))
        .replace("older_than = \"7days\"", "older_than = \"0s\"")
        .replace("high_watermark = 0", &format!("high_watermark = {high}"))
        .replace("low_watermark = 0", &format!("low_watermark = {low}"))
}

fn restart(world: &mut World, text: &str) -> Result<()> {
    fs::write(CONFIG, text).context("write the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()
}

pub fn by_the_policy(world: &mut World) -> Result<String> {
    let shipped = fs::read_to_string(CONFIG).context("read the configuration")?;
    for version in ["1", "2", "3"] {
        publish(&format!("a@{version}"), &[])?;
    }
    restart(world, &every_second(&shipped, "2", "0", "0"))?;
    until("the oldest is gone", || Ok(versions()?.iter().eq(["a@2", "a@3"])))?;
    // Every disk is fuller than that. The newest of each capsule stays.
    restart(world, &every_second(&shipped, "100", "2", "1"))?;
    until("only the newest is left", || Ok(versions()?.iter().eq(["a@3"])))?;
    restart(world, &shipped)?;
    clear()?;
    ensure!(Path::new(CONFIG).exists(), "the configuration");
    Ok(String::new())
}

/// containerd's content on a file system of its own, which somebody else fills.
pub fn on_another_disk(world: &mut World) -> Result<String> {
    const CONTENT: &str = "/var/lib/containerd/io.containerd.content.v1.content";
    clear()?;
    program("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", CONTENT], b"")?
        .success("mount a small file system")?;
    let outcome = filled(world, CONTENT);
    let cleared = clear();
    program("umount", &[CONTENT], b"")?.success("umount it")?;
    outcome.and(cleared.map(|()| String::new()))
}

fn filled(world: &mut World, content: &str) -> Result<String> {
    for folder in ["ingest", "blobs/sha256"] {
        fs::create_dir_all(format!("{content}/{folder}")).context("create a folder")?;
    }
    for version in ["1", "2", "3"] {
        publish(&format!("a@{version}"), &[])?;
    }
    let shipped = fs::read_to_string(CONFIG).context("read the configuration")?;
    restart(world, &every_second(&shipped, "100", "98", "97"))?;
    // The disk of the root is not that full, and this one is not yet.
    sleep(Duration::from_secs(3));
    let before = expect(&["a@1", "a@2", "a@3"]);
    let filler = format!("{content}/filler");
    let filled = fs::write(&filler, vec![0; 16 << 20]);
    let left = until("only the newest is left", || Ok(versions()?.iter().eq(["a@3"])));
    fs::remove_file(&filler).context("remove what fills it")?;
    restart(world, &shipped)?;
    // There is less room than it asks for.
    ensure!(filled.is_err(), "the disk is not full");
    before.and(left).map(|()| String::new())
}
