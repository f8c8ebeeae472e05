//! Containers with rules of their own, few and many: an attached device is opened beside all of them, and denied afterwards.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{DENIED, SLEEP, options};
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
pub fn life(binary: &str, systemd: bool, count: u32) -> Result<String> {
    let named = format!("resourcecapsules.io/devices=example.com/many=n{count}");
    let options = options("rules", binary, systemd)?;
    let options: Vec<&str> = options.iter().map(String::as_str).chain(["--annotation", &named]).collect();
    let container = OURS.start("rules", &options, &SLEEP)?;
    container.sh("own", "mknod /dev/own c 10 229; mknod /dev/none c 240 100000")?;
    let all = format!("/dev/many/1 /dev/many/{count} /dev/none /dev/own");
    // Of its own devices the first and the last, one that nobody allows, and the one that is attached.
    let look = |exec: &str, own: &str| -> Result<()> {
        let script = format!("for path in {all}; do ( : <>$path ) 2>&1 && echo opened; done; true");
        let said = container.sh(exec, &script)?;
        let lines: Vec<&str> = said.lines().collect();
        let wanted = [NO_DRIVER, NO_DRIVER, DENIED, own];
        let as_wanted = lines.iter().zip(wanted).all(|(line, wanted)| line.contains(wanted));
        ensure!(lines.len() == 4 && as_wanted, "{exec}: {said}, instead of {wanted:?}");
        Ok(())
    };
    look("before", DENIED)?;
    done(&["attach", "rules", "--device", "example.com/gpu=0"])?;
    look("attached", "opened")?;
    done(&["detach", "rules", "--device", "example.com/gpu=0"])?;
    look("after", DENIED)?;
    container.remove().map(|_| format!("{count} rules"))
}
