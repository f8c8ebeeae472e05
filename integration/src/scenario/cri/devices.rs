//! Devices of a pod's containers: by CRI's own field, by the kubelet's annotations, and by ours.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::{CdiDevice, ContainerConfig};
use serde_json::Value;

use super::kubelet::{Kubelet, Member, SLEEP};
use super::{BY_PATH, K8S, OURS, REFERENCE};
use crate::scenario::world::World;

/// The device that the cases have.
pub const DEVICE: &str = "example.com/gpu=0";
const SPEC: &str = "/etc/cdi/example.yaml";
const CONFIG: &str = "/etc/capsule/config.toml";
const NAMED: &str = "resourcecapsules.io/devices.app";

fn by_field(config: &mut ContainerConfig) {
    config.cdi_devices = vec![CdiDevice { name: DEVICE.to_owned() }];
}

fn by_annotation(config: &mut ContainerConfig) {
    config.annotations.insert("cdi.k8s.io/example".to_owned(), DEVICE.to_owned());
}

type Tweak = fn(&mut ContainerConfig);

/// Puts the spec of [`DEVICE`] in its place.
pub fn write_spec() -> Result<()> {
    fs::create_dir_all("/etc/cdi").context("create the folder of specs")?;
    fs::copy("/payload/configs/cdi-example.yaml", SPEC).with_context(|| format!("write {SPEC}")).map(drop)
}

/// Each way to name a device gives it once, and all of them together do.
pub fn once(world: &mut World, kubelet: &Kubelet) -> Result<String> {
    write_spec()?;
    let mut theirs = None;
    let ways: [(&str, Tweak); 2] = [("field", by_field), ("annotation", by_annotation)];
    for handler in [REFERENCE, OURS, BY_PATH] {
        for (way, tweak) in ways {
            let pod = kubelet.pod(handler, "devices", &[])?;
            let app = pod.start_with("app", SLEEP, tweak)?;
            let has = parts(&app)?;
            let expected = theirs.get_or_insert_with(|| has.clone());
            ensure!(*expected == has, "{handler}, by {way}: {has:?} instead of {expected:?}");
            pod.remove()?;
        }
    }
    let expected = theirs.unwrap_or_default();
    let counts: Vec<usize> = expected.iter().map(Vec::len).collect();
    ensure!(counts == [2, 1, 1, 1], "{counts:?}: {expected:?}");
    let refused = not_for_pods(kubelet)?;
    allow(world, kubelet)?;
    for (handler, tweak) in
        [(OURS, by_field as fn(&mut ContainerConfig)), (BY_PATH, by_annotation), (OURS, |_| {})]
    {
        let pod = kubelet.pod(handler, "devices", &[(NAMED, DEVICE)])?;
        let (app, other) = (pod.start_with("app", SLEEP, tweak)?, pod.start("other", SLEEP)?);
        let (has, none) = (parts(&app)?, parts(&other)?);
        let now: Vec<usize> = has.iter().map(Vec::len).collect();
        ensure!(now == counts, "{handler}, together: {has:?} instead of {expected:?}");
        ensure!(none.iter().all(Vec::is_empty), "the other container: {none:?}");
        pod.remove()?;
    }
    Ok(refused)
}

/// Whoever may make a pod may not have every device of the node.
fn not_for_pods(kubelet: &Kubelet) -> Result<String> {
    let pod = kubelet.pod(OURS, "devices", &[(NAMED, DEVICE)])?;
    let app = pod.create_with("app", SLEEP, |_| {})?;
    let error = app.start().err().context("it has a device that pods may not name")?;
    for word in [NAMED, "example.com/gpu", "devices.pods_may_name"] {
        ensure!(error.message().contains(word), "no {word:?} in {}", error.message());
    }
    pod.remove()?;
    Ok(error.message().to_owned())
}

fn allow(world: &mut World, kubelet: &Kubelet) -> Result<()> {
    let text = fs::read_to_string(CONFIG).context("read the configuration")?;
    let with = text.replace("pods_may_name = []", "pods_may_name = [\"example.com/gpu\"]");
    ensure!(with != text, "the configuration has no pods_may_name");
    fs::write(CONFIG, with).context("write the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    kubelet.wait()
}

/// What the runtime was given of the device, and what the container has: its nodes, mounts, variables and hooks.
fn parts(app: &Member<'_>) -> Result<Vec<Vec<String>>> {
    let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/{K8S}/{}/config.json", app.id);
    let text = fs::read(&bundle).with_context(|| format!("read {bundle}"))?;
    let config: Value = serde_json::from_slice(&text).with_context(|| format!("parse {bundle}"))?;
    let of = |value: &Value, word: &str| -> Vec<String> {
        let all = value.as_array().cloned().unwrap_or_default();
        let mut found: Vec<String> =
            all.iter().map(Value::to_string).filter(|one| one.contains(word)).collect();
        found.sort();
        found
    };
    let nodes = of(&config["linux"]["devices"], "/dev/example");
    let root = format!("/proc/{}/root", app.pid()?);
    let seen = ["dev/example0", "dev/examplectl"].iter().filter(|node| Path::new(&root).join(node).exists());
    ensure!(seen.count() == nodes.len(), "nodes: {nodes:?}");
    let variable = app.sh("echo \"$EXAMPLE_VISIBLE_DEVICES\"")?;
    let variables = of(&config["process"]["env"], "EXAMPLE");
    ensure!(variable == if variables.is_empty() { "\n" } else { "void\n" }, "{variable:?} of {variables:?}");
    Ok(vec![
        nodes,
        of(&config["mounts"], "libexample"),
        variables,
        of(&config["hooks"]["createContainer"], "cat"),
    ])
}
