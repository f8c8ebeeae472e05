//! `Capsule`s: what a node has before a pod asks for it, from a registry.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::asked::{of_cluster, of_node, ready, wanted};
use super::kubectl::{administer, apply, done as kubectl, get, kubectl_with};
use super::until;
use super::wanted::all_have;
use crate::scenario::capsulectl::{capsulectl, done, json as json_of};
use crate::scenario::registry::daemon::{Door, Registry};
use crate::scenario::sets::publish;

const PORT: u16 = 5000;

fn capsule(image: &str, versions: &[&str], stable: &str, more: Value) -> Value {
    let mut spec = json!({ "image": image, "versions": versions, "channels": { "stable": stable }, "retention": "Remove" });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    of_cluster("Capsule", "kit", spec)
}

fn said(what: &str) -> Result<Value> {
    let status = || get(&["capsule", "kit"]);
    until(&format!("kit: {what}"), || {
        let kit = status()?;
        let now = kit["metadata"]["generation"] == kit["status"]["observedGeneration"];
        let condition = &kit["status"]["conditions"][0];
        Ok(now
            && format!("{} {} {}", condition["status"], condition["reason"], condition["message"])
                .contains(what))
    })
    .map_err(|error| error.context(format!("{:?}", status())))?;
    Ok(status()?["status"].clone())
}

fn versions() -> Result<Vec<String>> {
    let list = json_of(&["ls"])?;
    let rows = list["versions"].as_array().cloned().unwrap_or_default();
    let kit = rows.iter().filter(|row| row["capsule"] == "kit");
    Ok(kit.map(|row| row["version"].as_str().unwrap_or_default().to_owned()).collect())
}

/// From a registry to a pod, by what the cluster was told alone.
pub fn run() -> Result<String> {
    let mut registry = Registry::start(PORT, Door::Open)?;
    let image = registry.at("team/kit");
    for version in ["1", "2"] {
        let label = format!("kit@{version}");
        publish(&label, &[])?;
        done(&["push", &label, &image])?;
        done(&["rm", &label])?;
    }
    refused(&image)?;
    apply(&capsule(&image, &["1", "2"], "1", json!({})))?;
    let status = said("\"True\" \"Present\" \"1 nodes")?;
    ensure!(status["nodes"] == 1 && status["complete"] == 1 && versions()? == ["2", "1"], "{status}");
    let spec = json!({ "podSelector": { "matchLabels": { "app": "shelf" } }, "capsule": "kit", "version": "stable", "target": "/opt/kit" });
    apply(&wanted("kit", spec))?;
    ready("kit", "True", "4 containers")?;
    all_have(&["kit@1 attached", "lib@1 attached"])?;
    // A channel moves, and who asked for it.
    apply(&capsule(&image, &["1", "2"], "2", json!({})))?;
    until("moved", || Ok(all_have(&["kit@2 attached", "lib@1 attached"]).is_ok()))?;
    said("\"True\"")?;
    let away = said_away(&image)?;
    // What is listed no more stays while it may be gone back to, and goes then; what a person has published stays.
    publish("kit@3", &[])?;
    apply(&capsule(&image, &["2", "3"], "2", json!({})))?;
    until(
        "to be removed: kit@1",
        || Ok(node_says()?.contains("Removing") && node_says()?.contains("kit@1")),
    )?;
    ensure!(versions()? == ["3", "2", "1"], "what may be gone back to is gone");
    said("\"True\"")?;
    kubectl(&["delete", "capsuleattachment", "kit", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    until("gone: kit@1", || Ok(versions()? == ["3", "2"]))?;
    administer("kubectl", &["delete", "capsule", "kit"])?;
    until("gone: kit@2", || Ok(versions()? == ["3"]))?;
    done(&["rm", "kit@3"])?;
    ensure!(capsulectl(&["inspect", "kit"])?.code == 1, "something of it is left");
    registry.stop();
    Ok(away)
}

fn node_says() -> Result<String> {
    of_node("{.status.capsules[?(@.version=='1')]}")
}

/// What is not there is told, and what is there stays.
fn said_away(image: &str) -> Result<String> {
    apply(&capsule(image, &["1", "2", "9"], "2", json!({})))?;
    let status = said("\"False\" \"Failed\"")?;
    let message = status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.contains("kit@9"), "{message}");
    apply(&capsule(
        image,
        &["1", "2"],
        "2",
        json!({ "nodeSelector": { "matchLabels": { "no": "such" } }, "retention": "Keep" }),
    ))?;
    said("\"True\" \"Present\" \"0 nodes")?;
    apply(&capsule(image, &["1", "2"], "2", json!({})))?;
    said("\"True\" \"Present\" \"1 nodes")?;
    Ok(message)
}

fn refused(image: &str) -> Result<()> {
    for (made, word) in [
        (capsule(image, &["1"], "2", json!({})), "a channel stands for one of the versions"),
        (capsule(image, &["stable"], "stable", json!({})), "a channel stands for one of the versions"),
        (capsule("no-repository", &["1"], "1", json!({})), "spec.image"),
        (capsule(&format!("{image}:tag"), &["1"], "1", json!({})), "spec.image"),
        (capsule(image, &["a b"], "a b", json!({})), "spec.versions[0]"),
        (capsule(image, &["1", "1"], "1", json!({})), "Duplicate"),
    ] {
        let output = kubectl_with(&["apply", "-f", "-"], made.to_string().as_bytes())?.ended_with(1)?;
        ensure!(output.err.contains(word), "does not say {word:?}: {}", output.err);
    }
    Ok(())
}
