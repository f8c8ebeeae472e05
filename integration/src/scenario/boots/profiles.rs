//! Which services run, by `capsulectl profile`.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::node::{copy, systemctl};
use crate::scenario::capsulectl::{json, refused};

const CONFIG: &str = "/etc/capsule/config.toml";
const METRICS: &str = "capsule-metrics.service";

/// Each profile, from any to any other, and in the end the one from before; and one that does not go with the configuration.
pub fn each() -> Result<String> {
    copy(&format!("/payload/configs/{METRICS}"), &format!("/etc/systemd/system/{METRICS}"))?;
    systemctl(&["daemon-reload"])?;
    let shipped = fs::read_to_string(CONFIG).context(CONFIG)?;
    let minimal = shipped.replacen("idle_stop = \"0s\"", "idle_stop = \"10m\"", 1);
    let mut said = Vec::new();
    for (profile, text, metrics) in [
        ("minimal", &minimal, "inactive"),
        ("full", &shipped, "active"),
        ("minimal", &minimal, "inactive"),
        ("standard", &shipped, "inactive"),
    ] {
        let made = json(&["profile", profile])?;
        let shown = json(&["profile"])?;
        ensure!(made["profile"] == profile && shown["profile"] == profile, "{made}, then {shown}");
        let [capsuled, other] = [0, 1].map(|at| &made["services"][at]);
        ensure!(other["state"] == metrics && capsuled["state"] == "active", "{made}");
        ensure!(capsuled["memory"].as_u64() > Some(1 << 20), "{capsuled}");
        ensure!(other["memory"].is_null() == (metrics == "inactive"), "{other}");
        let now = fs::read_to_string(CONFIG).context(CONFIG)?;
        ensure!(now == *text, "{profile}: the configuration is {now}");
        said.push(format!("{profile}: {} and {}", capsuled["memory"], other["memory"]));
    }
    let collects = shipped.replacen("interval = \"0s\"", "interval = \"12h\"", 1);
    fs::write(CONFIG, &collects).context(CONFIG)?;
    refused(&["profile", "minimal"], &["minimal does not go with", "collect.interval"])?;
    ensure!(fs::read_to_string(CONFIG).context(CONFIG)? == collects, "the configuration has changed");
    fs::write(CONFIG, shipped).context(CONFIG)?;
    Ok(said.join("; "))
}
