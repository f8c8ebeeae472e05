//! containerd 1.7: what its transfer service cannot do is said, and there is another way.

use anyhow::Result;

use super::daemon::{Door, Registry};
use super::publish;
use super::store::{leaves_nothing, wipe};
use crate::event::Reporter;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::ctr;

/// Runs the room.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let registry = Registry::start(5000, Door::Open)?;
    reporter.check("a registry of plain HTTP is refused, with the other way", || other_way(&registry));
    Ok(())
}

fn other_way(registry: &Registry) -> Result<String> {
    wipe()?;
    publish("tz@2026.1", &[])?;
    let digest = json(&["inspect", "tz"])?["version"]["digest"].clone();
    let reference = registry.at("team/zones:2026.1");
    let words = ["containerd 1.7", "capsulectl import"];
    let line = leaves_nothing(|| refused(&["-o", "json", "push", "tz", &reference], &words))?;
    ctr(&["-n", "capsules", "image", "push", "--plain-http", &reference, "localhost/capsules/tz:2026.1"])?
        .success("ctr image push")?;
    wipe()?;
    leaves_nothing(|| refused(&["-o", "json", "pull", &reference], &words))?;
    ctr(&["image", "pull", "--plain-http", &reference])?.success("ctr image pull")?;
    done(&["import", &reference, "--namespace", "default"])?;
    anyhow::ensure!(json(&["inspect", "tz@2026.1"])?["version"]["digest"] == digest);
    Ok(line)
}
