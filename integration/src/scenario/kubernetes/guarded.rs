//! What was installed does its work by accounts of its own, and those may do no more.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::asked::{object, ready, wanted};
use super::everyday::SLEEP;
use super::files::{ADDRESS, FOLDER, NODE};
use super::installed::{SYSTEM, daemon};
use super::kubectl::{Manifest, NAMESPACE, administer, apply, done as kubectl, kubectl_with};
use super::{OURS, until};
use crate::scenario::ctr::{Output, run};

/// As the two programs are in the cluster.
pub fn served() -> Result<String> {
    let mut pod = Manifest::new("asks", OURS, &[("app", SLEEP)]);
    pod.0["metadata"]["labels"] = json!({ "app": "asks" });
    let pod = pod.ready()?;
    let spec = |version: &str| json!({ "podSelector": { "matchLabels": { "app": "asks" } }, "capsule": "lib", "version": version });
    apply(&wanted("lib", spec("1")))?;
    ready("lib", "True", "1 containers")?;
    pod.member("app")?.expect(&["lib@1 attached"])?;
    apply(&object(
        "CapsuleRollout",
        "lib-2",
        json!({ "attachment": "lib", "version": "2", "health": { "settleSeconds": 1 } }),
    ))?;
    kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "capsulerollout/lib-2", "--timeout=120s"])?;
    pod.member("app")?.expect(&["lib@2 attached"])?;
    let events = kubectl(&["events", "--for", "capsulerollout/lib-2"])?;
    ensure!(events.contains("Succeeded"), "{events}");
    kubectl(&["delete", "capsuleattachment", "lib", "--timeout=120s"])?;
    kubectl(&["delete", "capsulerollout", "lib-2"])?;
    pod.member("app")?.expect(&[])?;
    pod.delete()?;
    Ok(events.lines().last().unwrap_or_default().to_owned())
}

/// `kubectl` with a token, and nobody's configuration.
fn with_token(token: &str, args: &[&str], input: &[u8]) -> Result<Output> {
    let (server, authority) = (
        format!("--server=https://{ADDRESS}"),
        format!("--certificate-authority={FOLDER}/pki/apiserver.crt"),
    );
    let token = format!("--token={token}");
    run("env", &[&["HOME=/nowhere", "kubectl", &server, &authority, &token], args].concat(), input)
}

pub fn own_node() -> Result<String> {
    let pod = daemon()?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={pod}")];
    let token =
        administer("kubectl", &[&["-n", SYSTEM, "create", "token", "capsule-agent"][..], &bound].concat())?;
    let other = json!({
        "apiVersion": "resourcecapsules.io/v1alpha1", "kind": "NodeCapsules", "metadata": { "name": "other" }, "spec": { "attachments": [] },
    });
    kubectl_with(&["apply", "-f", "-"], other.to_string().as_bytes())?.success("another node's")?;
    // As an agent does it: applied, for it may not even look at one alone.
    let says = |token: &str, name: &str| {
        let mut status = other.clone();
        status["metadata"]["name"] = json!(name);
        status["status"] = json!({ "observedGeneration": 1 });
        let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
        with_token(token, &apply, status.to_string().as_bytes())
    };
    let refused = says(&token, "other")?.ended_with(1)?;
    ensure!(refused.err.contains("an agent writes of the node that it is on"), "{}", refused.err);
    says(&token, NODE)?.success("its own")?;
    // Of no pod, and so of no node.
    let unbound = administer("kubectl", &["-n", SYSTEM, "create", "token", "capsule-agent"])?;
    let nowhere = says(&unbound, NODE)?.ended_with(1)?;
    ensure!(nowhere.err.contains("an agent writes of the node that it is on"), "{}", nowhere.err);
    for args in [
        &["get", "pods", "-A"][..],
        &["get", "secrets", "-A"],
        &["patch", "nodecapsules", NODE, "--type=merge", "-p", "{\"spec\":{\"attachments\":[]}}"],
        &["get", "capsuleattachments", "-A"],
    ] {
        let refused = with_token(&token, args, b"")?.ended_with(1)?;
        ensure!(refused.err.contains("orbidden"), "{args:?}: {}", refused.err);
    }
    administer("kubectl", &["delete", "nodecapsules", "other"])?;
    Ok(refused.err.trim().to_owned())
}

/// The devices that a namespace may have.
fn devices_allowed(attachment: &Value) -> Result<()> {
    let devices = "resourcecapsules.io/allowed-devices";
    let annotate = |what: &str| {
        administer(
            "kubectl",
            &["annotate", "namespace", NAMESPACE, &format!("{devices}{what}"), "--overwrite"],
        )
    };
    annotate("=example.com/gpu=*")?;
    let with = |device: &str| {
        let mut made = attachment.clone();
        made["spec"]["devices"] = json!([device]);
        kubectl_with(&["apply", "--dry-run=server", "-f", "-"], made.to_string().as_bytes())
    };
    until("refused by the policy", || Ok(with("example.com/other=0")?.code != 0))?;
    let refused = with("example.com/other=0")?.ended_with(1)?;
    ensure!(refused.err.contains("the namespace may not have example.com/other=0:"), "{}", refused.err);
    with("example.com/gpu=0")?.success("a device that is allowed")?;
    annotate("-").map(drop)
}

pub fn allowed() -> Result<String> {
    let allow = |what: &str| {
        let annotation = format!("resourcecapsules.io/allowed{what}");
        administer("kubectl", &["annotate", "namespace", NAMESPACE, &annotation, "--overwrite"])
    };
    let before = Manifest::new("before", OURS, &[("app", SLEEP)])
        .annotated(&[("resourcecapsules.io/attach.app", "tool@1")])
        .ready()?;
    allow("=tzdata, li*")?;
    let attachment = |capsule: &str| {
        wanted("some", json!({ "podSelector": { "matchLabels": { "app": "nobody" } }, "capsule": capsule }))
    };
    let pod = |attach: &str| {
        Manifest::new("some", OURS, &[("app", SLEEP)])
            .annotated(&[("resourcecapsules.io/attach.app", attach)])
            .0
    };
    let volume = |capsule: &str| {
        let csi = json!({ "driver": "csi.resourcecapsules.io", "volumeAttributes": { "capsule": capsule } });
        let with = |spec: &mut Value| spec["volumes"] = json!([{ "name": "vol", "csi": csi }]);
        Manifest::new("some", OURS, &[("app", SLEEP)]).with(with).0
    };
    let mut said = String::new();
    // A policy is followed some moments after it, or what it looks at, was written.
    for (made, name) in
        [(attachment("tool"), "tool"), (pod("lib@1, tool@1:/opt/x:ro"), "tool"), (volume("tool"), "tool")]
    {
        let asked = |dry: &str| kubectl_with(&["apply", dry, "-f", "-"], made.to_string().as_bytes());
        until("refused by the policy", || Ok(asked("--dry-run=server")?.code != 0))?;
        let refused = asked("--dry-run=server")?.ended_with(1)?;
        ensure!(refused.err.contains(&format!("the namespace may not have {name}:")), "{}", refused.err);
        said = refused.err.trim().to_owned();
    }
    for made in [attachment("lib"), attachment("tzdata"), pod("lib@1, tzdata"), volume("lib")] {
        kubectl_with(&["apply", "--dry-run=server", "-f", "-"], made.to_string().as_bytes())?
            .success("what is allowed")?;
    }
    devices_allowed(&attachment("lib"))?;
    // What runs goes on, and can be changed otherwise.
    kubectl(&["label", "pod", "before", "some=label"])?;
    before.delete()?;
    allow("-")?;
    until("any again", || {
        let made = attachment("tool").to_string();
        Ok(kubectl_with(&["apply", "--dry-run=server", "-f", "-"], made.as_bytes())?.code == 0)
    })?;
    Ok(said)
}

pub fn people() -> Result<String> {
    let mut said = Vec::new();
    for (role, verb, may) in [
        ("view", "get", "yes"),
        ("view", "create", "no"),
        ("edit", "create", "yes"),
        ("admin", "delete", "yes"),
    ] {
        let name = format!("{role}-{verb}");
        let user = format!("--user={name}");
        kubectl(&["create", "rolebinding", &name, &format!("--clusterrole={role}"), &user])?;
        let answer = || {
            Ok::<_, anyhow::Error>(
                kubectl_with(&["auth", "can-i", verb, "capsulerollouts", &format!("--as={name}")], b"")?.out,
            )
        };
        until(&format!("{may}: {name}"), || Ok(answer()?.trim() == may))?;
        said.push(format!("{role} may {verb}: {may}"));
        kubectl(&["delete", "rolebinding", &name])?;
    }
    said.push(exec()?);
    Ok(said.join(", "))
}

/// Who may make rollouts, and run nothing in containers, makes none that does.
fn exec() -> Result<String> {
    kubectl(&[
        "create",
        "role",
        "rolls",
        "--verb=create,patch,get",
        "--resource=capsulerollouts.resourcecapsules.io",
    ])?;
    kubectl(&["create", "rolebinding", "rolls", "--role=rolls", "--user=rolls"])?;
    let make = |health: Value| {
        let made = object(
            "CapsuleRollout",
            "runs",
            json!({ "attachment": "none", "version": "1", "health": health }),
        );
        kubectl_with(&["create", "--dry-run=server", "--as=rolls", "-f", "-"], made.to_string().as_bytes())
    };
    until("allowed: one that runs nothing", || Ok(make(json!({}))?.code == 0))?;
    let refused = make(json!({ "exec": { "command": ["/bin/true"] } }))?.ended_with(1)?;
    ensure!(refused.err.contains("you may not create pods/exec"), "{}", refused.err);
    kubectl(&["create", "role", "runs", "--verb=create", "--resource=pods/exec"])?;
    kubectl(&["create", "rolebinding", "runs", "--role=runs", "--user=rolls"])?;
    until("allowed: one that runs something", || {
        Ok(make(json!({ "exec": { "command": ["/bin/true"] } }))?.code == 0)
    })?;
    kubectl(&["delete", "rolebinding,role", "rolls", "runs"])?;
    Ok(refused.err.trim().to_owned())
}
