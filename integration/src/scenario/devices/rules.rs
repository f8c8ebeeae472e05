//! Containers with rules of their own, few and many: an attached device is opened beside all of them, and denied afterwards.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{DENIED, FILES, SLEEP, denied, opens};
use crate::scenario::capsulectl::done;
use crate::scenario::ctr::OURS;

/// How many devices of its own a container has.
pub const COUNTS: [u32; 3] = [1, 64, 512];
/// A major number that no driver has: what is allowed is not there, and what is not allowed is denied.
const MAJOR: u32 = 240;
const NO_DRIVER: &str = "o such device";

/// Devices of as many nodes as each of [`COUNTS`].
pub fn prepare() -> Result<()> {
    let device = |count: &u32| {
        let nodes: Vec<_> = (1..=*count)
            .map(|minor| {
                json!({"path": format!("/dev/many/{minor}"), "type": "c", "major": MAJOR, "minor": minor, "permissions": "rw"})
            })
            .collect();
        json!({"name": format!("n{count}"), "containerEdits": {"deviceNodes": nodes}})
    };
    let devices: Vec<_> = COUNTS.iter().map(device).collect();
    let spec = json!({"cdiVersion": "0.6.0", "kind": "example.com/many", "devices": devices});
    fs::write("/etc/cdi/many.json", spec.to_string()).context("a spec")
}

/// One life with `count` rules.
pub fn life(binary: &str, count: u32) -> Result<String> {
    let toml = format!("{FILES}/rules-{binary}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\n")).context("options")?;
    let named = format!("resourcecapsules.io/devices=example.com/many=n{count}");
    let container = OURS.start("rules", &["--runtime-config-path", &toml, "--annotation", &named], &SLEEP)?;
    container.sh("own", "mknod /dev/own c 10 229; mknod /dev/none c 240 100000")?;
    let (first, last) = ("/dev/many/1".to_owned(), format!("/dev/many/{count}"));
    let beside = |when: &str| -> Result<()> {
        for path in [&first, &last] {
            denied(&container, &format!("{when}-{}", path.replace('/', "-")), "<>", path, NO_DRIVER)?;
        }
        denied(&container, &format!("{when}-none"), "<>", "/dev/none", DENIED)
    };
    beside("before")?;
    denied(&container, "before", "<>", "/dev/own", DENIED)?;
    done(&["attach", "rules", "--device", "example.com/gpu=0"])?;
    opens(&container, "attached", "<>", "/dev/own")?;
    beside("attached")?;
    done(&["detach", "rules", "--device", "example.com/gpu=0"])?;
    denied(&container, "after", "<>", "/dev/own", DENIED)?;
    beside("after")?;
    container.remove().map(|_| format!("{count} rules"))
}
