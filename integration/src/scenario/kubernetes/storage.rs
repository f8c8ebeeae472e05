//! Volumes of pods, by the CSI driver: inline, by claims, and of directories that outlive the cluster.

mod contract;
mod driver;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::driver::{Driver, volumes};
use super::asked::{Parts, agent, controller, definitions};
use super::everyday::SLEEP;
use super::kubectl::{Manifest, Pod, apply, done as kubectl, get, kubectl as try_kubectl};
use super::{Class, OURS, REFERENCE, begin, left, pages, until};
use crate::event::Reporter;
use crate::power::random::Random;
use crate::scenario::capsulectl::done;
use crate::scenario::readers::{Readers, SHARED, expect_seamless};
use crate::scenario::sets::publish;
use crate::scenario::world::{World, with_logs};

/// The scenario's name.
pub const SCENARIO: &str = "kubernetes-storage";
const DRIVER: &str = "csi.resourcecapsules.io";
/// Where pods have their volume.
const AT: &str = "/vol";
/// What is written on the node.
const FOLDER: &str = "/var/lib/capsule/volumes";
/// How often a program is killed while claims and pods come and go.
const KILLS: usize = 40;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let (mut world, cluster) = begin(reporter)?;
    let mut parts = reporter.must("the controller and the agent start", || {
        definitions()?;
        Ok((Parts::start(&[])?, String::new()))
    })?;
    let mut driver = reporter.must("the kubelet finds the driver by itself", || {
        fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
        publish("lib@3", &[])?;
        let driver = Driver::start()?;
        let said = driver::is_registered()?;
        Ok((driver, said))
    })?;
    reporter.check("what the pages tell people to apply is taken", pages::taken);
    for (name, class) in [("runc", REFERENCE), ("capsule", OURS)] {
        reporter.check(&format!("{name}: an inline volume comes and goes with its pod"), || inline(class));
    }
    reporter.check("an inline volume that cannot be is said by the pod's events, and the pod goes", mistakes);
    reporter.check("a claim of a capsule is bound, and moves under readers of two runtimes", moved);
    reporter.check("a claim that is written to has its node, its size and its owner, and goes", written);
    reporter.check("claims that cannot be are told why", refused);
    reporter.check("a pod is deleted in every state, whatever is away", || states(&mut driver, &mut world));
    reporter.check("programs are killed while claims come and go", || killed(&mut parts, &mut driver));
    reporter
        .check("a contract's directories are there for its claims, and for nobody else's", contract::claimed);
    reporter.check("a contract that cannot be is refused", contract::refused);
    reporter.check("the contract and the claims go: what was written stays", contract::deleted);
    let (mut cluster, mut parts) = (Some(cluster), Some(parts));
    reporter.check("the cluster is made anew from nothing: what was written is there", || {
        contract::anew(&mut cluster, &mut parts, &mut driver)
    });
    reporter.check("nothing is left of pods, nor of volumes", nothing);
    drop((parts, driver, cluster));
    world.stop()
}

fn csi(attributes: &Value) -> Value {
    json!({ "name": "vol", "csi": { "driver": DRIVER, "volumeAttributes": attributes } })
}

fn claimed(claim: &str) -> Value {
    json!({ "name": "vol", "persistentVolumeClaim": { "claimName": claim } })
}

/// A pod with this volume, and with what readers need.
fn pod_with(name: &str, class: Class, volume: Value) -> Manifest {
    Manifest::new(name, class, &[("app", SLEEP)]).with(|spec| {
        super::job::shares(spec);
        let sets = json!({ "name": "sets", "hostPath": { "path": "/tmp/sets" } });
        let (volumes, mounts) = (&mut spec["volumes"], json!({ "name": "sets", "mountPath": "/tmp/sets" }));
        volumes.as_array_mut().into_iter().for_each(|all| all.extend([sets.clone(), volume.clone()]));
        let all = spec["containers"][0]["volumeMounts"].as_array_mut();
        all.into_iter()
            .for_each(|all| all.extend([mounts.clone(), json!({ "name": "vol", "mountPath": AT })]));
    })
}

/// Applies a pod, and waits until it is ready; with what is said of it where it is not.
fn start(manifest: Manifest) -> Result<Pod> {
    let pod = manifest.applied()?;
    pod.is_ready().with_context(|| format!("{:?}", events(&pod.name)))?;
    Ok(pod)
}

fn class(name: &str, parameters: &Value, more: &Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
        "provisioner": DRIVER, "parameters": parameters,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    apply(&object)
}

fn claim(name: &str, class: &str, mode: &str, size: &str) -> Result<()> {
    apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "storageClassName": class, "accessModes": [mode], "resources": { "requests": { "storage": size } },
        },
    }))
}

fn is_bound(claim: &str) -> Result<Value> {
    let seen = || get(&["pvc", claim]);
    until(&format!("bound: {claim}"), || Ok(seen()?["status"]["phase"] == "Bound"))
        .with_context(|| format!("{:?}, {:?}", seen().unwrap_or_default()["status"], events(claim)))?;
    seen()
}

/// What is said of an object.
fn events(name: &str) -> Result<String> {
    let all = get(&["events"])?;
    let of =
        all["items"].as_array().context("events")?.iter().filter(|one| one["involvedObject"]["name"] == name);
    Ok(of.map(|one| format!("{}: {}\n", one["reason"], one["message"])).collect())
}

fn says(name: &str, words: &[&str]) -> Result<String> {
    until(&format!("an event of {name} with {words:?}"), || {
        let said = events(name)?;
        Ok(words.iter().all(|word| said.contains(word)))
    })
    .with_context(|| format!("{:?}", events(name)))?;
    let said = events(name)?;
    Ok(said.lines().find(|line| line.contains(words[0])).unwrap_or_default().to_owned())
}

fn inline(class: Class) -> Result<String> {
    let volume = csi(&json!({ "capsule": "lib", "version": "1" }));
    let pod = start(pod_with("inline", class, volume))?;
    let app = pod.member("app")?;
    ensure!(app.sh(&format!("cat {AT}/version"))? == "1", "another version");
    let refused = app.sh(&format!("echo mine 2>/dev/null >{AT}/version || echo refused"))?;
    ensure!(refused == "refused", "it can be written to");
    let listed = volumes()?;
    ensure!(
        listed.len() == 1 && listed[0]["ephemeral"] == true && listed[0]["capsule"] == "lib",
        "{listed:?}"
    );
    pod.delete()?;
    until("gone: the volume", || Ok(volumes()?.is_empty()))?;
    // Written to, it goes as well.
    let volume = csi(&json!({ "capsule": "lib", "version": "1", "mode": "rw", "size": "16Mi" }));
    let pod = start(pod_with("inline", class, volume))?;
    let app = pod.member("app")?;
    app.sh(&format!("echo mine >{AT}/version && cat {AT}/version"))?;
    pod.delete()?;
    until("gone: the volume", || Ok(volumes()?.is_empty()))?;
    Ok(listed[0].to_string())
}

fn mistakes() -> Result<String> {
    let mut told = Vec::new();
    for (name, attributes, words) in [
        ("nothing", json!({ "capsule": "nothing" }), &["nothing"][..]),
        ("version", json!({ "capsule": "lib", "version": "9" }), &["lib", "9"]),
        ("key", json!({ "capsule": "lib", "verison": "1" }), &["verison"]),
        ("mode", json!({ "capsule": "lib", "mode": "write" }), &["write"]),
    ] {
        let pod = pod_with(name, REFERENCE, csi(&attributes)).applied()?;
        told.push(says(name, words)?);
        pod.delete()?;
    }
    // It comes as soon as it can.
    let pod = pod_with("later", REFERENCE, csi(&json!({ "capsule": "late", "version": "1" }))).applied()?;
    says("later", &["late"])?;
    publish("late@1", &[])?;
    pod.is_ready()?;
    pod.delete()?;
    done(&["rm", "late@1"])?;
    Ok(told.join(" | "))
}

fn attributes_class(name: &str, version: &str) -> Result<()> {
    apply(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": { "name": name },
        "driverName": DRIVER, "parameters": { "version": version },
    }))
}

/// Asks for another version of what a claim has, and waits until all have it.
fn modify(claim: &str, class: &str) -> Result<()> {
    let patch = json!({ "spec": { "volumeAttributesClassName": class } }).to_string();
    kubectl(&["patch", "pvc", claim, "--type=merge", "-p", &patch])?;
    until(&format!("{claim} has {class}"), || {
        let status = &get(&["pvc", claim])?["status"];
        Ok(status["currentVolumeAttributesClassName"] == class && status["modifyVolumeStatus"].is_null())
    })
    .with_context(|| format!("{:?} {:?}", get(&["pvc", claim]).unwrap_or_default()["status"], events(claim)))
}

fn moved() -> Result<String> {
    class("lib", &json!({ "capsule": "lib", "version": "1" }), &json!({}))?;
    claim("lib", "lib", "ReadOnlyMany", "1Gi")?;
    is_bound("lib")?;
    let one = start(pod_with("one", REFERENCE, claimed("lib")))?;
    let two = start(pod_with("two", OURS, claimed("lib")))?;
    let (first, second) = (one.member("app")?, two.member("app")?);
    let pids = (first.pid()?, second.pid()?);
    let allowed = ["1", "2"].map(|version| format!("/tmp/sets/lib@{version}/version"));
    let readers = Readers::across(&[&first, &second], &format!("{AT}/version"), &allowed)?;
    for version in ["2", "1", "2"] {
        attributes_class(&format!("lib-{version}"), version)?;
        modify("lib", &format!("lib-{version}"))?;
        for app in [&first, &second] {
            ensure!(app.sh(&format!("cat {AT}/version"))? == version, "{} has another", app.reference());
        }
    }
    let line = expect_seamless(&readers.stop()?)?;
    // Who comes later has what the others have.
    let three = start(pod_with("three", REFERENCE, claimed("lib")))?;
    ensure!(three.member("app")?.sh(&format!("cat {AT}/version"))? == "2", "the new pod has another");
    // What is not there is said, and changes nothing.
    attributes_class("lib-9", "9")?;
    let patch = json!({ "spec": { "volumeAttributesClassName": "lib-9" } }).to_string();
    kubectl(&["patch", "pvc", "lib", "--type=merge", "-p", &patch])?;
    says("lib", &["VolumeModifyFailed", "9"])?;
    for app in [&first, &second] {
        ensure!(app.sh(&format!("cat {AT}/version"))? == "2", "{} was changed", app.reference());
    }
    modify("lib", "lib-2")?;
    ensure!((one.member("app")?.pid()?, two.member("app")?.pid()?) == pids, "a pod was restarted");
    for pod in [one, two, three] {
        pod.delete()?;
    }
    kubectl(&["delete", "pvc", "lib", "--timeout=60s"])?;
    until("gone: the volume", || Ok(get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty)))?;
    until("gone: its mounts", || Ok(volumes()?.is_empty()))?;
    Ok(line)
}

fn written() -> Result<String> {
    let parameters = json!({ "owner": "1000:1001", "permissions": "0750" });
    class("data", &parameters, &json!({ "volumeBindingMode": "WaitForFirstConsumer" }))?;
    claim("data", "data", "ReadWriteOnce", "16Mi")?;
    let volume = || {
        pod_with("writer", REFERENCE, claimed("data")).with(|spec| {
            spec["containers"][0]["securityContext"] = json!({ "runAsUser": 1000, "runAsGroup": 1001 })
        })
    };
    let pod = start(volume())?;
    let bound = is_bound("data")?;
    let app = pod.member("app")?;
    ensure!(
        app.sh(&format!("stat -c '%u:%g %a' {AT}"))? == "1000:1001 750",
        "{}",
        app.sh(&format!("ls -ldn {AT}"))?
    );
    app.sh(&format!("echo kept >{AT}/note"))?;
    let full = app.sh(&format!("dd if=/dev/zero of={AT}/big bs=1M count=32 2>&1 || true"))?;
    ensure!(full.contains("No space left"), "{full}");
    app.sh(&format!("rm {AT}/big"))?;
    pod.delete()?;
    let again = start(volume())?;
    ensure!(again.member("app")?.sh(&format!("cat {AT}/note"))? == "kept", "what was written");
    again.delete()?;
    let folder = format!(
        "{FOLDER}/{}/{}",
        super::kubectl::NAMESPACE,
        bound["spec"]["volumeName"].as_str().unwrap_or_default()
    );
    ensure!(fs::metadata(&folder).is_ok(), "{folder}");
    kubectl(&["delete", "pvc", "data", "--timeout=60s"])?;
    until("gone: what was written", || Ok(fs::metadata(&folder).is_err()))?;
    until("gone: the volume", || Ok(get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty)))?;
    Ok(folder)
}

fn refused() -> Result<String> {
    let waits = json!({ "volumeBindingMode": "WaitForFirstConsumer" });
    class("typo", &json!({ "capsuel": "lib" }), &json!({}))?;
    class("both", &json!({ "capsule": "lib", "mode": "maybe" }), &json!({}))?;
    class("late", &json!({}), &json!({}))?;
    class("huge", &json!({}), &waits)?;
    let mut told = Vec::new();
    for (name, class, mode, size, words) in [
        ("typo", "typo", "ReadOnlyMany", "1Gi", &["capsuel"][..]),
        ("both", "both", "ReadOnlyMany", "1Gi", &["maybe"]),
        ("late", "late", "ReadWriteOnce", "16Mi", &["WaitForFirstConsumer"]),
        ("many", "data", "ReadWriteMany", "16Mi", &["ReadWriteMany"]),
        ("rwx", "lib", "ReadWriteOnce", "16Mi", &["ReadOnlyMany"]),
    ] {
        claim(name, class, mode, size)?;
        // One that waits is asked about when a pod wants it.
        let pod =
            if name == "many" { Some(pod_with(name, REFERENCE, claimed(name)).applied()?) } else { None };
        told.push(says(name, words).with_context(|| name.to_owned())?);
        pod.map_or(Ok(()), Pod::delete)?;
        kubectl(&["delete", "pvc", name, "--timeout=60s"])?;
    }
    told.push(not_allowed()?);
    claim("huge", "huge", "ReadWriteOnce", "1Pi")?;
    let pod = pod_with("huge", REFERENCE, claimed("huge")).applied()?;
    told.push(says("huge", &["ProvisioningFailed", "bytes to spare"])?);
    pod.delete()?;
    kubectl(&["delete", "pvc", "huge", "--timeout=60s"])?;
    ensure!(get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty), "a volume was made");
    Ok(told.join(" | "))
}

/// A namespace that may not have the capsule of a class, until it may.
fn not_allowed() -> Result<String> {
    let allow = |what: &str| {
        let annotation = format!("resourcecapsules.io/allowed{what}");
        kubectl(&["annotate", "namespace", super::kubectl::NAMESPACE, &annotation, "--overwrite"])
    };
    allow("=tools, other*")?;
    claim("elsewhere", "lib", "ReadOnlyMany", "1Gi")?;
    let said = says("elsewhere", &["may not have lib", "tools, other*"])?;
    allow("-")?;
    is_bound("elsewhere")?;
    kubectl(&["delete", "pvc", "elsewhere", "--timeout=60s"])?;
    until("gone: the volume", || Ok(get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty)))?;
    Ok(said)
}

/// Deletes a pod with each of three kinds of volume, while this is away, and waits until nothing is left.
fn without(what: &str, away: &mut dyn FnMut(bool) -> Result<()>) -> Result<()> {
    claim("lib", "lib", "ReadOnlyMany", "1Gi")?;
    claim("data", "data", "ReadWriteOnce", "16Mi")?;
    let inline = csi(&json!({ "capsule": "lib", "version": "1" }));
    let volumes = [("inline", inline), ("lib", claimed("lib")), ("data", claimed("data"))];
    let pods = volumes.into_iter().map(|(name, volume)| start(pod_with(name, REFERENCE, volume)));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    away(true)?;
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    kubectl(&[&["delete", "pods", "--wait=false"], &names[..]].concat())?;
    // It begins while that is away.
    until("ended: their containers", || {
        let all = get(&["pods"])?;
        let ended = |pod: &Value| !pod["status"].to_string().contains("\"running\":");
        Ok(all["items"].as_array().is_some_and(|all| all.iter().all(ended)))
    })?;
    away(false)?;
    left::no_pod().with_context(|| format!("without {what}"))?;
    pods.into_iter().for_each(std::mem::forget);
    kubectl(&["delete", "pvc", "lib", "data", "--timeout=60s"])?;
    until("gone: the volumes", || Ok(self::volumes()?.is_empty())).with_context(|| format!("without {what}"))
}

fn states(driver: &mut Driver, world: &mut World) -> Result<String> {
    // Before anything is mounted: it waits for a version that does not come.
    let pod = pod_with("never", REFERENCE, csi(&json!({ "capsule": "lib", "version": "9" }))).applied()?;
    says("never", &["9"])?;
    pod.delete()?;
    // At once: the kubelet may be anywhere.
    for _ in 0..5 {
        let pod =
            pod_with("brief", REFERENCE, csi(&json!({ "capsule": "lib", "version": "1" }))).applied()?;
        pod.delete()?;
    }
    left::no_pod()?;
    until("gone: the volumes", || Ok(volumes()?.is_empty()))?;
    without("the driver", &mut |away| if away { driver.kill() } else { driver.start_again() })?;
    without("capsuled", &mut |away| if away { world.kill_capsuled() } else { world.restart_capsuled() })?;
    Ok(String::new())
}

fn killed(parts: &mut Parts, driver: &mut Driver) -> Result<String> {
    let mut random = Random::new(8);
    claim("lib", "lib", "ReadOnlyMany", "1Gi")?;
    is_bound("lib")?;
    let mut version = "1";
    for round in 0..KILLS {
        match round % 4 {
            0 => claim(&format!("data{}", round / 4), "data", "ReadWriteOnce", "16Mi")?,
            1 => {
                let name = format!("data{}", round / 4);
                std::mem::forget(pod_with(&name, REFERENCE, claimed(&name)).applied()?);
            }
            2 => {
                version = if version == "1" { "2" } else { "1" };
                let patch =
                    json!({ "spec": { "volumeAttributesClassName": format!("lib-{version}") } }).to_string();
                kubectl(&["patch", "pvc", "lib", "--type=merge", "-p", &patch])?;
                std::mem::forget(
                    pod_with(&format!("lib{}", round / 4), REFERENCE, claimed("lib")).applied()?,
                );
            }
            _ if round >= 8 => {
                let name = format!("data{}", round / 4 - 2);
                kubectl(&["delete", "pod", &name, "--wait=false"])?;
                kubectl(&["delete", "pvc", &name, "--wait=false"])?;
            }
            _ => {}
        }
        std::thread::sleep(std::time::Duration::from_millis(random.below(300) as u64));
        match random.below(3) {
            0 => {
                parts.controller.kill()?;
                parts.controller = controller("one", &[])?;
            }
            1 => {
                parts.agent.kill()?;
                parts.agent = agent()?;
            }
            _ => driver.restart()?,
        }
    }
    let last = format!("lib-{version}");
    until("all is as wanted", || {
        let all = get(&["pods"])?;
        let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        Ok(all["items"].as_array().is_some_and(|all| all.iter().all(ready)))
    })?;
    modify("lib", &last)?;
    for n in 0..KILLS / 4 {
        let said = kubectl(&["exec", &format!("lib{n}"), "--", "cat", &format!("{AT}/version")])?;
        ensure!(said == version, "lib{n} has {said}");
    }
    kubectl(&["delete", "pods", "--all", "--timeout=110s"])?;
    kubectl(&["delete", "pvc", "--all", "--timeout=60s"])?;
    until("gone: the volumes", || {
        let none = get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty);
        Ok(none && volumes()?.is_empty())
    })
    .with_context(|| format!("{:?}", volumes()))?;
    Ok(format!("{KILLS} kills"))
}

/// The driver that a node has from the cluster, with the accounts that it has there.
pub fn shipped() -> Result<String> {
    let said = driver::is_registered()?;
    inline(REFERENCE)?;
    class("lib", &json!({ "capsule": "lib", "version": "1" }), &json!({}))?;
    claim("lib", "lib", "ReadOnlyMany", "1Gi")?;
    let reader = start(pod_with("reader", OURS, claimed("lib")))?;
    let app = reader.member("app")?;
    ensure!(app.sh(&format!("cat {AT}/version"))? == "1", "another version");
    attributes_class("lib-2", "2")?;
    modify("lib", "lib-2")?;
    ensure!(app.sh(&format!("cat {AT}/version"))? == "2", "it has not moved");
    let late = start(pod_with("late", REFERENCE, claimed("lib")))?;
    ensure!(late.member("app")?.sh(&format!("cat {AT}/version"))? == "2", "the new pod has another");
    reader.delete()?;
    late.delete()?;
    kubectl(&["delete", "pvc", "lib", "--timeout=60s"])?;
    written()?;
    until("gone: the volumes", || {
        let none = get(&["pv"])?["items"].as_array().is_some_and(Vec::is_empty);
        Ok(none && volumes()?.is_empty())
    })?;
    Ok(said)
}

fn nothing() -> Result<String> {
    try_kubectl(&["delete", "pods", "--all", "--timeout=110s"])?;
    left::no_pod()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    ensure!(!mounts.contains("capsule-volume:"), "{mounts}");
    let mounted: Vec<_> = volumes()?.into_iter().filter(|one| one["paths"] != json!([])).collect();
    ensure!(mounted.is_empty(), "{mounted:?}");
    Ok(String::new())
}
