//! Limits that are changed while a device is attached: the device is there at once after each change, without anybody repairing it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::created::config;
use super::{opens, told};
use crate::scenario::capsulectl::done;
use crate::scenario::ctr::Container;
use crate::scenario::runtime::cgroups::group::Group;
use crate::scenario::runtime::client::Client;

const MIB: u64 = 1 << 20;
const GRANTS: [&str; 10] = [
    "--grant",
    "memory.max=64MiB",
    "--grant",
    "memory.high=16MiB",
    "--grant",
    "cpu.max=0.5cpus",
    "--grant",
    "cpu.weight=50",
    "--cap",
    "pids.max=300",
];

/// Attaches and detaches limits, with updates of both kinds in between. The container has no limits of its own at first.
pub fn limits(container: &Container) -> Result<()> {
    let (id, client) = (container.id.as_str(), Client::connect()?);
    done(&[&["attach", id, "tool"], &GRANTS[..]].concat())?;
    opens(container, "l-attached", "<>", "/dev/example0")?;
    expect(container, "attached", &[("pids.max", "300"), ("memory.max", "max")])?;

    client.update_task(id, r#"{"memory": {"limit": 100663296}}"#).context("an update of one limit")?;
    opens(container, "l-updated", "<>", "/dev/example0")?;
    expect(container, "updated", &[("memory.max", &(160 * MIB).to_string())])?;

    client.update_task(id, &as_cri_does(id)?.to_string()).context("an update as CRI's")?;
    opens(container, "l-resized", "<>", "/dev/example0")?;
    let (most, high) = ((192 * MIB).to_string(), (116 * MIB).to_string());
    let resized = [("memory.max", most.as_str()), ("memory.high", &high), ("cpu.max", "100000 100000")];
    expect(container, "resized", &resized)?;
    expect(container, "resized", &[("pids.max", "300"), ("cpuset.cpus", "0")])?;
    let weight: u64 = read(container, "cpu.weight")?.parse().context("cpu.weight")?;

    done(&["detach", id, "tool"])?;
    opens(container, "l-detached", "<>", "/dev/example0")?;
    let (most, high) = ((128 * MIB).to_string(), (100 * MIB).to_string());
    let own = [("memory.max", most.as_str()), ("memory.high", &high), ("cpu.max", "50000 100000")];
    expect(container, "detached", &own)?;
    expect(container, "detached", &[("cpu.weight", &(weight - 50).to_string()), ("pids.max", "400")])?;
    // Nobody had to repair anything, as capsuled's question every five seconds would.
    let repairs = told("repaired", id)?;
    ensure!(repairs.is_empty(), "{repairs:?}");
    Ok(())
}

/// What CRI sends for a pod that is resized in place: the whole of the container's resources, its rules of devices among them, with
/// the new amounts in their places.
fn as_cri_does(id: &str) -> Result<Value> {
    let mut resources = config(id)?["linux"]["resources"].take();
    ensure!(resources["devices"].as_array().is_some_and(|rules| !rules.is_empty()), "no rules: {resources}");
    resources["memory"] = json!({"limit": 128 * MIB, "swap": 128 * MIB});
    resources["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0", "mems": "0"});
    resources["unified"] = json!({"memory.high": (100 * MIB).to_string(), "pids.max": "400"});
    let has_huge_pages = fs::exists("/sys/kernel/mm/hugepages/hugepages-2048kB").context("huge pages")?;
    if has_huge_pages {
        resources["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
    }
    Ok(resources)
}

fn read(container: &Container, file: &str) -> Result<String> {
    Group::of(container.pid()?)?.read("memory", file)
}

fn expect(container: &Container, when: &str, limits: &[(&str, &str)]) -> Result<()> {
    for (file, value) in limits {
        let seen = read(container, file)?;
        ensure!(seen == *value, "{when}: {file} is {seen}, not {value}");
    }
    Ok(())
}
