//! What the services of each profile take, as the documentation lists it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::remote;
use crate::scenario::boots::systemctl;
use crate::scenario::capsulectl::done;
use crate::scenario::http::get;
use crate::scenario::world::within;

/// The services, each with how much it may take, in KiB: `MemoryMax` of its unit, or what a laptop does not feel.
const SERVICES: [(&str, u64); 3] = [
    ("capsuled.service", 48 << 10),
    ("capsule-metrics.service", 32 << 10),
    ("capsule-remote.service", 128 << 10),
];

/// Starts the metrics' server, uses all, and measures them. The remote API serves already.
pub fn measured() -> Result<String> {
    done(&["profile", "full"])?;
    done(&["ls"])?;
    remote::called()?;
    within(Duration::from_secs(60), "metrics", || {
        Ok(get("127.0.0.1:9470", "/metrics").is_ok_and(|text| text.contains("capsule_")))
    })?;
    let mut told = Vec::new();
    for (unit, most) in SERVICES {
        let pid = systemctl(&["show", "--property=MainPID", "--value", unit])?;
        let path = format!("/proc/{}/smaps_rollup", pid.trim());
        let rollup = fs::read_to_string(&path).with_context(|| path.clone())?;
        let [rss, pss, anonymous] = ["Rss:", "Pss:", "Anonymous:"].map(|key| kib(&rollup, key));
        let (rss, pss, anonymous) = (rss?, pss?, anonymous?);
        ensure!(rss < most, "{unit} has {rss} KiB resident, and may have {most}");
        told.push(format!("{unit}: {rss} KiB resident, {pss} proportional, {anonymous} anonymous"));
    }
    done(&["profile", "standard"])?;
    Ok(told.join("; "))
}

fn kib(rollup: &str, key: &str) -> Result<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{key} {line}"))
}
