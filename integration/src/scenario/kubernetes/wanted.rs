//! Capsules that the cluster is asked for: `CapsuleAttachment`s, the controller and the node's agent, on pods that run.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::asked::{Parts, agent, controller, definitions, definitions_before, object, ready, wanted};
use super::cluster::Cluster;
use super::everyday::SLEEP;
use super::files::NODE;
use super::kubectl::{Manifest, Pod, administer, apply, done as kubectl, get, kubectl_with};
use super::{OURS, begin, conflicts, devices, job, kept, left, signed, until};
use crate::event::Reporter;
use crate::power::random::Random;
use crate::scenario::capsulectl::{self, done, publish, tzdata};
use crate::scenario::readers::{Readers, SHARED, expect_seamless};
use crate::scenario::sets;
use crate::scenario::world::with_logs;

/// The scenario's name.
pub const SCENARIO: &str = "kubernetes-wanted";
const RELEASE: &str = "/usr/share/zoneinfo/tzdata.zi";
/// How often one of the two is killed while what is wanted changes.
const KILLS: usize = 300;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let (world, mut cluster) = begin(reporter)?;
    // As after an upgrade of the programs alone: definitions are somebody else's to write.
    let mut parts =
        reporter.must("the API server has definitions of before, and the two programs start", || {
            definitions_before()?;
            Ok((Parts::start(&[])?, String::new()))
        })?;
    reporter.check("pods that run have it, those that come have it, others have not", given);
    reporter.must("the API server takes the definitions under them", || {
        definitions().map(|()| ((), String::new()))
    })?;
    reporter.check("all have what they had, and nobody was restarted", || {
        ready("lib", "True", "4 containers")?;
        all_have(&["lib@1 attached"]).map(|()| String::new())
    });
    reporter.check("what makes no sense is refused by the API server", refused);
    reporter.check("a version moves under readers in every pod, and no pod restarts", moved);
    reporter.check("a container that is restarted has it again", restarted);
    reporter.check("what cannot be had is said, and what was there stays", failed);
    reporter.check("what somebody attached by hand stays when the cluster's goes", found);
    reporter.check("it is deleted while the agent is away: it goes when no container has it", || {
        deleted_behind(&mut parts)
    });
    reporter
        .check("the API server is away: what is restarted has it again, and all is told afterwards", || {
            without_apiserver(&mut cluster, &mut parts)
        });
    reporter.check(
        "versions come from a registry before a pod asks, channels move, and what is not listed goes",
        kept::run,
    );
    reporter.check("of two for one place the first decides, and the other is told", conflicts::two);
    reporter.check("what somebody else has written over ours is put right", conflicts::written);
    reporter.check("it is deleted while it fails, and while it waits", conflicts::deleted);
    reporter.check("a range is the highest in it that the node has, also when a higher one comes", ranged);
    reporter.check("what a Capsule wants signed is used once one of its keys has signed it", signed::run);
    reporter
        .check("devices that a node cannot give are told, and are not in the way of going", devices::refused);
    reporter.check("controller and agent are killed while what is wanted changes", || killed(&mut parts));
    reporter.check("nothing is left of pods", || left::no_pod().map(|()| String::new()));
    drop((parts, cluster));
    world.stop()
}

/// What a `CapsuleAttachment` for the Deployment's pods says.
pub fn of_shelf(capsule: &str, version: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "shelf" } }, "capsule": capsule, "version": version })
}

fn shelf(replicas: u32) -> Result<()> {
    let mut template = Manifest::new("shelf", OURS, &[("app", SLEEP), ("log", SLEEP)]).with(job::shares).0;
    template["metadata"]["labels"] = json!({ "app": "shelf" });
    apply(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "shelf" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "shelf" } },
            "template": { "metadata": template["metadata"], "spec": template["spec"] },
        },
    }))?;
    kubectl(&["rollout", "status", "deployment/shelf", "--timeout=170s"])?;
    until("gone: the pods before", || Ok(pods()?.len() == replicas as usize))
}

/// The Deployment's pods, which are not deleted when these are dropped: another would come in their place.
pub fn pods() -> Result<Vec<std::mem::ManuallyDrop<Pod>>> {
    let all = get(&["pods", "-l", "app=shelf"])?;
    let living = all["items"].as_array().context("no pods")?.iter();
    let living = living.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let names = living.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
    Ok(names.map(|name| std::mem::ManuallyDrop::new(Pod { name })).collect())
}

/// Each container of each pod has these.
pub fn all_have(expected: &[&str]) -> Result<()> {
    for pod in pods()? {
        for container in ["app", "log"] {
            pod.member(container)?.expect(expected)?;
        }
    }
    Ok(())
}

fn refused() -> Result<String> {
    let mut told = Vec::new();
    for (spec, word) in [
        (json!({ "podSelector": {}, "capsule": "lib", "target": "opt" }), "absolute path"),
        (json!({ "podSelector": {}, "capsule": "lib", "target": "/opt/" }), "absolute path"),
        (json!({ "podSelector": {}, "capsule": "lib", "target": "/opt/../etc" }), "absolute path"),
        (json!({ "podSelector": {}, "capsule": "Lib" }), "spec.capsule"),
        (json!({ "podSelector": {}, "capsule": "lib", "mode": "rw" }), "spec.mode"),
        (json!({ "capsule": "lib" }), "podSelector"),
        (json!({ "podSelector": {}, "capsule": "lib", "version": ">=1, 2" }), "spec.version"),
        (json!({ "podSelector": {}, "capsule": "lib", "version": "1 2" }), "spec.version"),
        (json!({ "podSelector": {}, "capsule": "lib", "devices": ["gpu"] }), "spec.devices"),
    ] {
        let text = wanted("wrong", spec).to_string();
        let output = kubectl_with(&["apply", "-f", "-"], text.as_bytes())?.ended_with(1)?;
        ensure!(output.err.contains(word), "does not say {word:?}: {}", output.err);
        told.push(output.err.lines().next().unwrap_or_default().to_owned());
    }
    Ok(told.join(" | "))
}

/// A Deployment whose pods have a capsule.
pub fn given() -> Result<String> {
    fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
    shelf(2)?;
    let other = Manifest::new("other", OURS, &[("app", SLEEP)]).ready()?;
    apply(&wanted("lib", of_shelf("lib", "1")))?;
    let status = ready("lib", "True", "4 containers")?;
    ensure!(status["wanted"] == 4 && status["attached"] == 4 && status["failed"] == 0, "{status}");
    all_have(&["lib@1 attached"])?;
    other.member("app")?.expect(&[])?;
    shelf(3)?;
    ready("lib", "True", "6 containers")?;
    all_have(&["lib@1 attached"])?;
    // Those that go take theirs with them.
    shelf(2)?;
    ready("lib", "True", "4 containers")?;
    let table = kubectl(&["get", "capsuleattachments"])?;
    ensure!(table.contains("lib") && table.contains("True"), "{table}");
    other.delete()?;
    Ok(table.lines().last().unwrap_or_default().to_owned())
}

fn moved() -> Result<String> {
    let [old, new] = publish()?;
    apply(&wanted("zones", of_shelf("tzdata", &old)))?;
    ready("zones", "True", "4 containers")?;
    let pods = pods()?;
    let first = pods[0].member("app")?;
    let before: Vec<u32> = pods.iter().map(|pod| pod.member("app")?.pid()).collect::<Result<_>>()?;
    let allowed = [&old, &new].map(|version| format!("/reference/tzdata-{version}/tzdata.zi"));
    let readers = Readers::start(&first, 4, RELEASE, &allowed)?;
    for version in [&new, &old, &new, &old, &new] {
        apply(&wanted("zones", of_shelf("tzdata", version)))?;
        ready("zones", "True", "4 containers")?;
        all_have(&["lib@1 attached", &format!("tzdata@{version} attached")])?;
    }
    let seamless = expect_seamless(&readers.stop()?)?;
    let release = fs::read_to_string(tzdata()?[1].1.join("tzdata.zi")).context("read a release")?;
    ensure!(first.sh(&format!("cat {RELEASE}"))?.trim() == release.trim(), "other files");
    for (pod, pid) in pods.iter().zip(before) {
        let now = pod.member("app")?;
        ensure!(now.restarts == 0 && now.pid()? == pid, "{} was restarted", pod.name);
    }
    kubectl(&["delete", "capsuleattachment", "zones", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    Ok(seamless)
}

fn restarted() -> Result<String> {
    let pods = pods()?;
    let before = pods[0].member("app")?;
    kill(before.pid()?)?;
    let now = pods[0].restarted(&before)?;
    until("it has it again", || Ok(now.has()? == ["lib@1 attached"]))?;
    ready("lib", "True", "4 containers")?;
    Ok(now.id)
}

fn failed() -> Result<String> {
    apply(&wanted("lib", of_shelf("lib", "9")))?;
    let status = ready("lib", "False", "Failed")?;
    all_have(&["lib@1 attached"])?;
    let said = status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(said.contains("lib has no version 9"), "{said}");
    let change = json!({ "podSelector": {}, "capsule": "tool" });
    let other =
        kubectl_with(&["apply", "-f", "-"], wanted("lib", change).to_string().as_bytes())?.ended_with(1)?;
    ensure!(other.err.contains("make another CapsuleAttachment"), "{}", other.err);
    apply(&wanted("lib", of_shelf("lib", "1")))?;
    ready("lib", "True", "4 containers")?;
    Ok(said)
}

fn found() -> Result<String> {
    let pods = pods()?;
    let app = pods[0].member("app")?;
    done(&["attach", &app.reference(), "tool@1"])?;
    apply(&wanted("tool", of_shelf("tool", "1")))?;
    ready("tool", "True", "4 containers")?;
    all_have(&["lib@1 attached", "tool@1 attached"])?;
    kubectl(&["delete", "capsuleattachment", "tool", "--timeout=120s"])?;
    app.expect(&["lib@1 attached", "tool@1 attached"])?;
    pods[1].member("app")?.expect(&["lib@1 attached"])?;
    done(&["detach", &app.reference(), "tool"])?;
    Ok(String::new())
}

fn ranged() -> Result<String> {
    for version in ["1.0", "1.1", "2.0"] {
        sets::publish(&format!("zed@{version}"), &[])?;
    }
    apply(&wanted("zed", of_shelf("zed", ">=1, <2")))?;
    ready("zed", "True", "4 containers")?;
    all_have(&["lib@1 attached", "zed@1.1 attached"])?;
    sets::publish("zed@1.2", &[])?;
    until("moved to 1.2", || Ok(all_have(&["lib@1 attached", "zed@1.2 attached"]).is_ok()))?;
    ready("zed", "True", "4 containers")?;
    apply(&wanted("zed", of_shelf("zed", "^3")))?;
    let status = ready("zed", "False", "Failed")?;
    let said = status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(said.contains("zed has no version that is >=3, <4: it has 2.0, 1.2, 1.1, 1.0"), "{said}");
    all_have(&["lib@1 attached", "zed@1.2 attached"])?;
    kubectl(&["delete", "capsuleattachment", "zed", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    for version in ["1.0", "1.1", "1.2", "2.0"] {
        done(&["rm", &format!("zed@{version}")])?;
    }
    Ok(said)
}

fn deleted_behind(parts: &mut Parts) -> Result<String> {
    apply(&wanted("tool", of_shelf("tool", "1")))?;
    ready("tool", "True", "4 containers")?;
    parts.agent.kill()?;
    kubectl(&["delete", "capsuleattachment", "tool", "--wait=false", "--ignore-not-found"])?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    let there = get(&["capsuleattachment", "tool"])?;
    ensure!(!there["metadata"]["deletionTimestamp"].is_null(), "it is not being deleted");
    all_have(&["lib@1 attached", "tool@1 attached"])?;
    parts.agent = agent()?;
    kubectl(&["wait", "--for=delete", "capsuleattachment/tool", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    Ok(String::new())
}

fn without_apiserver(cluster: &mut Cluster, parts: &mut Parts) -> Result<String> {
    let pods = pods()?;
    let before = pods[0].member("app")?;
    let pid = before.pid()?;
    let attached = |id: Option<&str>| {
        let seen = capsulectl::ps()?;
        let rows = seen.iter().filter(|row| row.capsule == "lib" && row.state == "attached");
        Ok::<_, anyhow::Error>(rows.filter(|row| id.is_none_or(|id| row.container == id)).count())
    };
    cluster.without_apiserver(|| {
        kill(pid)?;
        until("it has it again", || Ok(attached(None)? == 4 && attached(Some(&before.id))? == 0))
    })?;
    // A controller that cannot renew its lease ends; in a cluster the kubelet starts it again.
    parts.controller.kill()?;
    parts.controller = controller("one", &[])?;
    apply(&wanted("lib", of_shelf("lib", "2")))?;
    ready("lib", "True", "4 containers")?;
    apply(&wanted("lib", of_shelf("lib", "1")))?;
    ready("lib", "True", "4 containers")?;
    all_have(&["lib@1 attached"])?;
    Ok(before.id)
}

/// Kills a process.
pub fn kill(pid: u32) -> Result<()> {
    let process = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
    rustix::process::kill_process(process, rustix::process::Signal::KILL).context("kill a process")
}

fn killed(parts: &mut Parts) -> Result<String> {
    let mut random = Random::new(7);
    for round in 0..KILLS {
        let version = if round % 2 == 0 { "2" } else { "1" };
        apply(&wanted("lib", of_shelf("lib", version)))?;
        if round % 3 == 0 {
            apply(&wanted("tool", of_shelf("tool", "1")))?;
        } else if round % 3 == 1 {
            kubectl(&["delete", "capsuleattachment", "tool", "--wait=false", "--ignore-not-found"])?;
        }
        match round % 10 {
            4 => apply(&object(
                "CapsuleRollout",
                "lib",
                json!({ "attachment": "lib", "version": if version == "1" { "2" } else { "1" } }),
            ))?,
            7 => drop(kubectl(&["delete", "capsulerollout", "lib"])?),
            _ => {}
        }
        std::thread::sleep(std::time::Duration::from_millis(random.number() % 300));
        if round % 2 == 0 {
            parts.agent.kill()?;
            parts.agent = agent()?;
        } else {
            parts.controller.kill()?;
            parts.controller = controller("one", &[])?;
        }
    }
    kubectl(&["delete", "capsuleattachment", "tool", "--ignore-not-found", "--timeout=120s"])?;
    apply(&wanted("lib", of_shelf("lib", "2")))?;
    ready("lib", "True", "4 containers")?;
    all_have(&["lib@2 attached"])?;
    kubectl(&["delete", "capsuleattachment", "lib", "--timeout=120s"])?;
    all_have(&[])?;
    let list = administer("kubectl", &["get", "nodecapsules", NODE, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list).context("JSON")?;
    ensure!(list["spec"]["attachments"] == json!([]) && list["status"]["attachments"] == json!([]), "{list}");
    kubectl(&["delete", "deployment", "shelf", "--cascade=foreground", "--timeout=110s"])?;
    until("ended", || Ok(capsulectl::ps()?.is_empty()))?;
    Ok(format!("{KILLS} kills"))
}
