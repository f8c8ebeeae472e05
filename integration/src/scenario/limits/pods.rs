//! Budgets of pods: containers that CRI has labelled as of one share it.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::start;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::cri::K8S;
use crate::scenario::ctr::{OURS, in_namespace};
use crate::scenario::world::World;

const CONFIG: &str = "/etc/capsule/config.toml";
const GRANT: [&str; 2] = ["--grant", "memory.max=32MiB"];

/// Runs with a budget of pods; without it afterwards.
pub fn budgets(world: &mut World) -> Result<String> {
    let shipped = fs::read_to_string(CONFIG).context("the configuration")?;
    let with = shipped.replace("\n[budgets.pod]\n", "\n[budgets.pod]\n\"memory.max\" = \"48MiB\"\n");
    ensure!(with != shipped, "the configuration has no [budgets.pod]");
    configure(world, &with)?;
    let said = in_namespace(K8S, shared);
    configure(world, &shipped)?;
    said
}

fn configure(world: &mut World, config: &str) -> Result<()> {
    fs::write(CONFIG, config).context("the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()
}

fn shared() -> Result<String> {
    OURS.import()?;
    let member = |id: &str, pod: &str| {
        let of = format!("io.kubernetes.pod.name={pod}");
        let labels = ["io.cri-containerd.kind=container", "io.kubernetes.pod.namespace=shop", &of];
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let options: Vec<&str> = labels.chain(["--memory-limit", "67108864"]).collect();
        start(id, "runc", false, &options)
    };
    let (one, two, other) = (member("web-one", "web")?, member("web-two", "web")?, member("db-one", "db")?);
    done(&[&["attach", "web-one", "one"], &GRANT[..]].concat())?;
    one.expect("the first", &[("memory.max", "100663296")])?;
    let (before, mounts) = (two.all(), two.container.mounts()?);
    let attach = [&["attach", "web-two", "one"], &GRANT[..]].concat();
    let line =
        refused(&attach, &["memory.max", "the pod shop/web", "48MiB", "32MiB", "web-one", "[budgets.pod]"])?;
    ensure!(two.all() == before && two.container.mounts()? == mounts, "something changed");
    // Another pod has its own.
    done(&[&["attach", "db-one", "one"], &GRANT[..]].concat())?;
    let all = json(&["budget"])?;
    let rows = all["budgets"].as_array().with_context(|| format!("budgets: {all}"))?;
    let of_pods: Vec<_> = rows.iter().filter(|row| row["scope"] == "pod").collect();
    ensure!(of_pods.len() == 2 && of_pods.iter().all(|row| row["used"] == 33_554_432), "{of_pods:?}");
    done(&["detach", "web-one", "one"])?;
    done(&attach)?;
    two.expect("the second", &[("memory.max", "100663296")])?;
    for bin in [one, two, other] {
        bin.container.remove()?;
    }
    Ok(line)
}
