//! `StorageContract`s: directories of one node that outlive who uses them.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::driver::{Driver, is_registered, volumes};
use super::{AT, FOLDER, claim, claimed as volume_of, is_bound, pod_with, start};
use crate::scenario::kubernetes::REFERENCE;
use crate::scenario::kubernetes::asked::{Parts, definitions};
use crate::scenario::kubernetes::cluster::{Cluster, node_is_ready};
use crate::scenario::kubernetes::files::NODE;
use crate::scenario::kubernetes::kubectl::{NAMESPACE, apply, done as kubectl, get, kubectl_with};
use crate::scenario::kubernetes::until;

fn directories() -> Value {
    json!([
        { "name": "db", "size": "16Mi", "owner": { "user": 70, "group": 71 }, "permissions": "0700",
          "claim": { "namespace": NAMESPACE, "name": "db" } },
        { "name": "uploads", "path": "files", "size": "16Mi", "accessModes": ["ReadWriteMany"] },
        { "name": "tools", "size": "16Mi", "capsule": { "name": "lib", "version": "1" }, "claim": { "namespace": NAMESPACE, "name": "tools" } },
    ])
}

fn contract(directories: &Value) -> Value {
    json!({
        "apiVersion": "resourcecapsules.io/v1alpha1", "kind": "StorageContract", "metadata": { "name": "stack" },
        "spec": { "nodeName": NODE, "directories": directories },
    })
}

fn is_ready(what: &str) -> Result<Value> {
    let seen = || get(&["storagecontract", "stack"]);
    let is = || {
        let object = seen()?;
        let now = object["metadata"]["generation"] == object["status"]["observedGeneration"];
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|one| one["type"] == "Ready");
        Ok(now && ready.is_some_and(|one| one["status"] == "True"))
    };
    until(what, is).with_context(|| format!("{}", seen().unwrap_or_default()["status"]))?;
    seen()
}

fn state(name: &str) -> Result<Value> {
    let object = get(&["storagecontract", "stack"])?;
    let all = object["status"]["directories"].as_array().context("directories")?;
    Ok(all.iter().find(|one| one["name"] == name).cloned().unwrap_or_default())
}

fn claims() -> Result<()> {
    for (name, mode) in [("db", "ReadWriteOnce"), ("uploads", "ReadWriteMany"), ("tools", "ReadWriteOnce")] {
        claim(name, "stack", mode, "16Mi")?;
    }
    // The third waits for a pod: it is for any claim.
    for name in ["db", "tools"] {
        is_bound(name)?;
    }
    Ok(())
}

pub fn claimed() -> Result<String> {
    apply(&contract(&directories()))?;
    let object = is_ready("the contract is kept")?;
    ensure!(object["status"]["wanted"] == 3 && object["status"]["usable"] == 3, "{}", object["status"]);
    // What is for one claim is for no other.
    claim("thief", "stack", "ReadWriteOnce", "16Mi")?;
    claims()?;
    ensure!(get(&["pvc", "thief"])?["status"]["phase"] == "Pending", "another claim got it");
    kubectl(&["delete", "pvc", "thief", "--timeout=60s"])?;
    let db = start(pod_with("db", REFERENCE, volume_of("db")).with(|spec| {
        spec["containers"][0]["securityContext"] = json!({ "runAsUser": 70, "runAsGroup": 71 })
    }))?;
    let app = db.member("app")?;
    ensure!(app.sh(&format!("stat -c '%u:%g %a' {AT}"))? == "70:71 700", "its owner and mode");
    app.sh(&format!("echo rows >{AT}/table"))?;
    let tools = start(pod_with("tools", REFERENCE, volume_of("tools")))?;
    let app = tools.member("app")?;
    ensure!(app.sh(&format!("cat {AT}/version"))? == "1", "the capsule below");
    app.sh(&format!("echo mine >{AT}/mine"))?;
    let pods = ["one", "two"].map(|name| start(pod_with(name, REFERENCE, volume_of("uploads"))));
    let [one, two] = pods;
    let (one, two) = (one?, two?);
    one.member("app")?.sh(&format!("echo told >{AT}/said"))?;
    ensure!(two.member("app")?.sh(&format!("cat {AT}/said"))? == "told", "two pods, one directory");
    for path in ["db", "files", "tools"] {
        ensure!(fs::metadata(format!("{FOLDER}/stack/{path}/about.json")).is_ok(), "{FOLDER}/stack/{path}");
    }
    let table = kubectl(&["get", "storagecontracts"])?;
    for pod in [db, tools, one, two] {
        pod.delete()?;
    }
    Ok(table.lines().last().unwrap_or_default().to_owned())
}

pub fn refused() -> Result<String> {
    let one = |more: Value| {
        let mut directory = json!({ "name": "x", "size": "1Gi" });
        for (key, value) in more.as_object().into_iter().flatten() {
            directory[key] = value.clone();
        }
        json!([directory])
    };
    let mut told = Vec::new();
    for (name, directories, word) in [
        ("other", one(json!({ "size": "much" })), "size"),
        ("other", one(json!({ "path": "../etc" })), "path"),
        ("other", one(json!({ "path": "a/b" })), "path"),
        ("other", one(json!({ "permissions": "rwx" })), "permissions"),
        ("other", one(json!({ "accessModes": ["ReadWriteSometimes"] })), "accessModes"),
        (
            "other",
            json!([{ "name": "a", "path": "p", "size": "1Gi" }, { "name": "b", "path": "p", "size": "1Gi" }]),
            "path of its own",
        ),
        (
            "other",
            json!([{ "name": "a", "size": "1Gi" }, { "name": "a", "path": "b", "size": "1Gi" }]),
            "Duplicate",
        ),
        ("stack", json!([{ "name": "db", "size": "32Mi" }]), "cannot change"),
    ] {
        let mut object = contract(&directories);
        object["metadata"]["name"] = json!(name);
        let output = kubectl_with(&["apply", "-f", "-"], object.to_string().as_bytes())?.ended_with(1)?;
        ensure!(output.err.contains(word), "does not say {word:?}: {}", output.err);
        told.push(output.err.lines().last().unwrap_or_default().to_owned());
    }
    Ok(told.join(" | "))
}

/// Without its claim a directory is there for the next of that name; without the contract the data is.
pub fn deleted() -> Result<String> {
    kubectl(&["delete", "pvc", "db", "uploads", "--timeout=60s"])?;
    until("there for the next claim", || Ok(state("db")?["state"] == "Available"))
        .with_context(|| format!("{:?}", state("db")))?;
    // Whose the next claim would be nobody can say.
    until("kept from the next claim", || Ok(state("uploads")?["state"] == "Released"))
        .with_context(|| format!("{:?}", state("uploads")))?;
    claim("db", "stack", "ReadWriteOnce", "16Mi")?;
    is_bound("db")?;
    kubectl(&["delete", "storagecontract", "stack", "--timeout=60s"])?;
    ensure!(get(&["pvc", "db"])?["status"]["phase"] == "Bound", "a claim has lost its volume");
    let db = start(pod_with("db", REFERENCE, volume_of("db")))?;
    ensure!(db.member("app")?.sh(&format!("cat {AT}/table"))? == "rows", "what was written");
    db.delete()?;
    kubectl(&["delete", "pvc", "--all", "--timeout=60s"])?;
    for path in ["db", "files", "tools"] {
        ensure!(
            fs::metadata(format!("{FOLDER}/stack/{path}/image")).is_ok(),
            "{FOLDER}/stack/{path} is gone"
        );
    }
    Ok(format!("{} directories of nobody", volumes()?.len()))
}

/// The cluster's store is removed, and another cluster is made of the same contract.
pub fn anew(cluster: &mut Option<Cluster>, parts: &mut Option<Parts>, driver: &mut Driver) -> Result<String> {
    *parts = None;
    driver.kill()?;
    *cluster = None;
    fs::remove_dir_all("/var/lib/etcd").context("remove the cluster's store")?;
    fs::create_dir_all("/var/lib/etcd").context("make the folder of another")?;
    *cluster = Some(Cluster::start()?);
    node_is_ready()?;
    definitions()?;
    *driver = Driver::start()?;
    is_registered()?;
    *parts = Some(Parts::start(&[])?);
    apply(&contract(&directories()))?;
    is_ready("the contract is kept")?;
    claims()?;
    let db = start(pod_with("db", REFERENCE, volume_of("db")))?;
    ensure!(db.member("app")?.sh(&format!("cat {AT}/table"))? == "rows", "what was written");
    let tools = start(pod_with("tools", REFERENCE, volume_of("tools")))?;
    ensure!(
        tools.member("app")?.sh(&format!("cat {AT}/mine {AT}/version"))? == "mine\n1",
        "what was written over a capsule"
    );
    let uploads = start(pod_with("uploads", REFERENCE, volume_of("uploads")))?;
    let said = uploads.member("app")?.sh(&format!("cat {AT}/said"))?;
    ensure!(said == "told", "{said}");
    for pod in [db, tools, uploads] {
        pod.delete()?;
    }
    Ok(format!("in a cluster that has never seen it: {said}"))
}
