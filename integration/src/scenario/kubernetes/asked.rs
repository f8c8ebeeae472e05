//! What the cluster is asked for, and the two programs that see to it.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::files::{NODE, file};
use super::kubectl::{NAMESPACE, administer, get, kubectl_with};
use super::until;
use crate::scenario::world::{Daemon, path};
use crate::workspace::output_of;

const PROGRAM: &str = "capsule-controller";

/// The two programs.
pub struct Parts {
    /// The cluster's.
    pub controller: Daemon,
    /// The node's.
    pub agent: Daemon,
}

impl Parts {
    /// Starts both, with more words for the controller.
    pub fn start(more: &[&str]) -> Result<Self> {
        Ok(Self { controller: controller("one", more)?, agent: agent()? })
    }
}

fn part(name: &str, words: &[&str]) -> Result<Daemon> {
    let mut command = Command::new(PROGRAM);
    command.args(words).env("PATH", path()).env("KUBECONFIG", file("admin.conf"));
    Daemon::start(name, &mut command)
}

/// A controller of this name. One that is started again under its name need not wait for its own lease.
pub fn controller(name: &str, more: &[&str]) -> Result<Daemon> {
    part(&format!("capsule-controller-{name}"), &[&["controller", "--identity", name], more].concat())
}

/// The node's agent.
pub fn agent() -> Result<Daemon> {
    part("capsule-agent", &["agent", "--node", NODE])
}

/// Those of a state before this one, which had no volumes (configs/kustomize/crds.yaml of 2026-11-30).
const BEFORE: &str = include_str!("definitions-before.yaml");

/// Gives the API server definitions of before.
pub fn definitions_before() -> Result<()> {
    kubectl_with(&["apply", "-f", "-"], BEFORE.as_bytes())?.success("apply the definitions of before")?;
    let crd = "crd/nodecapsules.resourcecapsules.io";
    administer("kubectl", &["wait", "--for=condition=Established", crd, "--timeout=60s"]).map(drop)
}

/// Gives the API server the definitions.
pub fn definitions() -> Result<()> {
    let yaml = output_of(Command::new(PROGRAM).arg("crds").env("PATH", path()))?;
    kubectl_with(&["apply", "-f", "-"], yaml.as_bytes())?.success("apply the definitions")?;
    for name in ["capsules", "capsuleattachments", "capsulerollouts", "nodecapsules", "storagecontracts"] {
        let crd = format!("crd/{name}.resourcecapsules.io");
        administer("kubectl", &["wait", "--for=condition=Established", &crd, "--timeout=60s"])?;
    }
    Ok(())
}

/// An object of ours.
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "resourcecapsules.io/v1alpha1", "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
    })
}

/// An object of ours that is of no namespace.
pub fn of_cluster(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = object(kind, name, spec);
    object["metadata"].as_object_mut().map(|metadata| metadata.remove("namespace"));
    object
}

/// A part of what the node is told, and of what its agent says.
pub fn of_node(jsonpath: &str) -> Result<String> {
    administer("kubectl", &["get", "nodecapsules", NODE, "-o", &format!("jsonpath={jsonpath}")])
}

/// A `CapsuleAttachment`.
pub fn wanted(name: &str, spec: Value) -> Value {
    object("CapsuleAttachment", name, spec)
}

/// Waits until a `CapsuleAttachment` says so of its present generation; its status.
pub fn ready(name: &str, status: &str, what: &str) -> Result<Value> {
    let condition = || {
        let object = get(&["capsuleattachment", name])?;
        let now = object["metadata"]["generation"] == object["status"]["observedGeneration"];
        Ok::<_, anyhow::Error>((now, object["status"].clone()))
    };
    let is = || {
        let (now, seen) = condition()?;
        let ready = &seen["conditions"][0];
        Ok(now && ready["status"] == status && ready.to_string().contains(what))
    };
    until(&format!("{name} Ready={status} {what}"), is).with_context(|| format!("{:?}", condition()))?;
    Ok(condition()?.1)
}
