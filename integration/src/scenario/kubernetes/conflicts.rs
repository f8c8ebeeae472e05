//! Where two want different things, where somebody else has written what is ours, and deletions at moments that do not suit.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::asked::{of_node, ready, wanted};
use super::everyday::SLEEP;
use super::files::NODE;
use super::kubectl::{Manifest, administer, apply, done as kubectl, get};
use super::wanted::{all_have, of_shelf};
use super::{OURS, until};

/// Of two for one place the first by name decides, the other is told, and has its way once the first is gone.
pub fn two() -> Result<String> {
    apply(&wanted("tool-a", of_shelf("tool", "1")))?;
    ready("tool-a", "True", "4 containers")?;
    let mut other = of_shelf("tool", "1");
    other["resources"] = json!({ "caps": { "pids.max": "1000" } });
    apply(&wanted("tool-b", other))?;
    let told = ready("tool-b", "False", "shop/tool-a asks for another of it")?;
    ready("tool-a", "True", "4 containers")?;
    // One that asks for the same is content.
    apply(&wanted("tool-c", of_shelf("tool", "1")))?;
    ready("tool-c", "True", "4 containers")?;
    for name in ["tool-a", "tool-b"] {
        kubectl(&["delete", "capsuleattachment", name, "--timeout=120s"])?;
        all_have(&["lib@1 attached", "tool@1 attached"])?;
    }
    kubectl(&["delete", "capsuleattachment", "tool-c", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    Ok(told["conditions"][0]["message"].as_str().unwrap_or_default().to_owned())
}

/// What somebody else writes into objects that the controller and the agent write is put right.
pub fn written() -> Result<String> {
    let patch = |kind: &str, name: &str, part: &[&str], change: &Value| {
        let change = change.to_string();
        let args = [&["-n", "shop", "patch", kind, name, "--type=merge", "-p", &change][..], part].concat();
        administer("kubectl", &args)
    };
    let status = &["--subresource=status"];
    patch("capsuleattachment", "lib", status, &json!({ "status": { "attached": 99, "conditions": [] } }))?;
    until("put right: the status of lib", || {
        Ok(get(&["capsuleattachment", "lib"])?["status"]["attached"] == 4)
    })?;
    ready("lib", "True", "4 containers")?;
    // Nothing of it stays attached for a moment; then all has it again.
    patch("nodecapsules", NODE, &[], &json!({ "spec": { "attachments": [] } }))?;
    let count =
        || Ok::<_, anyhow::Error>(of_node("{.spec.attachments[*].capsule}")?.split_whitespace().count());
    until("put right: what the node is told", || Ok(count()? == 4))?;
    until("attached again", || Ok(all_have(&["lib@1 attached"]).is_ok()))?;
    ready("lib", "True", "4 containers")?;
    // The finalizer is ours, too: without it the object would go before the capsule.
    patch("capsuleattachment", "lib", &[], &json!({ "metadata": { "finalizers": null } }))?;
    let held = || {
        Ok(get(&["capsuleattachment", "lib"])?["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| all.len() == 1))
    };
    until("put right: the finalizer", held)?;
    // The whole object: it is made again, and nobody loses anything.
    until("attached, as before", || Ok(all_have(&["lib@1 attached"]).is_ok()))?;
    let before = of_node("{.metadata.uid}")?;
    administer("kubectl", &["delete", "nodecapsules", NODE])?;
    until("made again", || Ok(of_node("{.metadata.uid}").is_ok_and(|now| !now.is_empty() && now != before)))?;
    ready("lib", "True", "4 containers")?;
    all_have(&["lib@1 attached"])?;
    Ok(String::new())
}

/// It goes at once where no container has it: while it fails, while it waits for a container, and while it was never begun.
pub fn deleted() -> Result<String> {
    let delete = |name: &str| kubectl(&["delete", "capsuleattachment", name, "--timeout=60s"]);
    apply(&wanted("late", of_shelf("lost", "1")))?;
    ready("late", "False", "Failed")?;
    delete("late")?;
    // A pod whose first container runs on: those that are to have it do not run yet.
    let mut pod = Manifest::new("slow", OURS, &[("app", SLEEP)]).with(|spec| {
        let mut first = spec["containers"][0].clone();
        first["name"] = json!("first");
        spec["initContainers"] = json!([first]);
    });
    pod.0["metadata"]["labels"] = json!({ "app": "slow" });
    let pod = pod.applied()?;
    let waiting = |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object();
    pod.comes_to("its first container runs", waiting)?;
    let spec =
        || json!({ "podSelector": { "matchLabels": { "app": "slow" } }, "capsule": "tool", "version": "1" });
    apply(&wanted("late", spec()))?;
    let status = ready("late", "False", "0 of 1 containers")?;
    ensure!(status["failed"] == 0, "a container that is not there yet counts as failed: {status}");
    delete("late")?;
    // The pod goes first.
    apply(&wanted("late", spec()))?;
    ready("late", "False", "0 of 1 containers")?;
    pod.delete()?;
    ready("late", "True", "no container is to have it")?;
    delete("late")?;
    let left = of_node("{.status.attachments[*].owner.name}")?;
    ensure!(left.split_whitespace().all(|owner| owner == "lib"), "the node has still: {left}");
    all_have(&["lib@1 attached"]).context("those of lib").map(|()| String::new())
}
