//! What is shipped for Kubernetes: a RuntimeClass, a pod, k3s's template.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::capsules::expect;
use super::kubelet::{Kubelet, NAMESPACE, SLEEP};
use super::{K8S, OURS};
use crate::scenario::capsulectl::ps;
use crate::scenario::sets::publish;
use crate::scenario::world::{path, until};
use crate::workspace::output_of;

const FILES: &str = "/payload/configs/kubernetes";

fn read(name: &str) -> Result<Value> {
    let path = format!("{FILES}/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    yaml_serde::from_str(&text).with_context(|| format!("parse {path}"))
}

/// The RuntimeClass names a handler of the containerd configuration that is shipped; the pod names the RuntimeClass, and its annotations do.
pub fn pod(kubelet: &Kubelet) -> Result<String> {
    let (class, pod) = (read("runtimeclass.yaml")?, read("pod.yaml")?);
    ensure!(class["apiVersion"] == "node.k8s.io/v1" && class["kind"] == "RuntimeClass", "{class}");
    ensure!(pod["apiVersion"] == "v1" && pod["kind"] == "Pod", "{pod}");
    ensure!(pod["spec"]["runtimeClassName"] == class["metadata"]["name"], "{class} {pod}");
    let handler = class["handler"].as_str().context("no handler")?;
    ensure!(handler == OURS, "the handler is {handler}");
    let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("no text: {value}"));
    let metadata = &pod["metadata"];
    ensure!(metadata["namespace"] == NAMESPACE, "{metadata}");
    let annotations = metadata["annotations"].as_object().context("no annotations")?;
    let annotations = annotations
        .iter()
        .map(|(key, value)| Ok((key.as_str(), text(value)?)))
        .collect::<Result<Vec<_>>>()?;
    let annotations: Vec<_> = annotations.iter().map(|(key, value)| (*key, value.as_str())).collect();
    for label in ["tzdata@2026.1", "debug-tools@1"] {
        publish(label, &[])?;
    }
    let run = kubelet.pod(handler, &text(&metadata["name"])?, &annotations)?;
    let containers = pod["spec"]["containers"].as_array().context("no containers")?;
    let members = containers
        .iter()
        .map(|container| run.start(&text(&container["name"])?, SLEEP))
        .collect::<Result<Vec<_>>>()?;
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    ensure!(names == ["app", "log"], "{names:?}");
    expect(&members[0].id, &["debug-tools@1 attached", "tzdata@2026.1 attached"])?;
    expect(&members[1].id, &["tzdata@2026.1 attached"])?;
    run.remove()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    for label in ["tzdata@2026.1", "debug-tools@1"] {
        crate::scenario::capsulectl::done(&["rm", label])?;
    }
    Ok(format!("{handler} in {K8S}"))
}

/// As k3s does, with a base of its kind in the place of its own; containerd has to understand what comes of it.
pub fn k3s() -> Result<String> {
    let template = format!("{FILES}/config-v3.toml.tmpl");
    let template = fs::read_to_string(&template).with_context(|| format!("read {template}"))?;
    let base = "version = 3\nroot = \"/var/lib/rancher/k3s/agent/containerd\"\n\
                [plugins.'io.containerd.cri.v1.runtime']\n  enable_selinux = false\n\
                [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
                \x20 runtime_type = \"io.containerd.runc.v2\"\n";
    ensure!(template.matches("{{ template \"base\" . }}").count() == 1, "it has no base: {template}");
    let rendered =
        template.replace("{{ template \"base\" . }}", base).replace("{{ .SystemdCgroup }}", "true");
    ensure!(!rendered.contains("{{"), "something else is to be filled in: {rendered}");
    let file = "/tmp/k3s.toml";
    fs::write(file, rendered).with_context(|| format!("write {file}"))?;
    let dump =
        output_of(Command::new("containerd").args(["--config", file, "config", "dump"]).env("PATH", path()))?;
    for line in [
        "runtimes.capsule]",
        "runtime_path = '/usr/bin/containerd-shim-capsule-v1'",
        "pod_annotations = ['resourcecapsules.io/*']",
        "address = '/run/capsule/capsuled.sock'",
        "SystemdCgroup = true",
        "snapshotter = 'capsule'",
    ] {
        ensure!(dump.contains(line), "no {line:?} in {dump}");
    }
    Ok(String::new())
}
