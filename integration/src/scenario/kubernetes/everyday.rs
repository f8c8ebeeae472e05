//! What a kubelet does to pods every day.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::kubectl::{Manifest, Member, apply, done, get};
use super::{Class, left, until};
use crate::scenario::reboot::kill;
use crate::scenario::runtime::cgroups::group::Group;

const MEMORY: u64 = 64 << 20;
/// So much is written into a container.
const WRITTEN: u64 = 8 << 20;
/// It serves a page, once it has told something.
const SERVE: &str =
    "echo out; echo err >&2; mkdir -p /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www";
/// What containers of the pods here run beside it.
pub const SLEEP: &str = "exec sleep 100000";

/// The pod of these cases: probed over its network and by commands, with volumes and a limit.
fn manifest(name: &str, class: Class) -> Manifest {
    Manifest::new(name, class, &[("app", SERVE), ("log", SLEEP)]).with(|spec| {
        spec["volumes"] = json!([
            { "name": "both", "emptyDir": {} },
            { "name": "settings", "configMap": { "name": "settings" } },
        ]);
        let app = &mut spec["containers"][0];
        app["readinessProbe"] = json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 20 });
        app["livenessProbe"] =
            json!({ "exec": { "command": ["test", "!", "-e", "/ill"] }, "periodSeconds": 1, "timeoutSeconds": 20 });
        app["resources"] = json!({ "limits": { "memory": "64Mi" } });
        app["env"] = json!([{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
        app["volumeMounts"] =
            json!([{ "name": "both", "mountPath": "/both" }, { "name": "settings", "mountPath": "/settings" }]);
        spec["containers"][1]["volumeMounts"] = json!([{ "name": "both", "mountPath": "/both" }]);
    })
}

fn settings() -> Result<()> {
    apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { "colour": "blue" },
    }))
}

/// It becomes ready, and all that `kubectl` shows of it is right.
pub fn lives(class: Class) -> Result<String> {
    settings()?;
    let pod = manifest("lives", class).ready()?;
    let (app, log) = (pod.member("app")?, pod.member("log")?);
    let said = app.logs(&[], "both lines", |log| log.lines().count() == 2)?;
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["err", "out"], "{lines:?}");
    let ran = app.exec(&["/bin/sh", "-c", "cat; echo e >&2; exit 3"], b"in")?;
    ensure!(ran.out == "in" && ran.err.starts_with("e\n") && ran.code == 3, "{ran:?}");
    let missing = app.exec(&["/no-such-program"], b"")?;
    ensure!(missing.code != 0 && missing.err.contains("no such file"), "{missing:?}");
    ensure!(app.sh("cat /settings/colour; echo; echo $POD")? == "blue\nlives", "a configuration");
    app.sh("test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo from app > /both/note")?;
    ensure!(log.sh("cat /both/note")? == "from app", "a volume of both");
    limited(&app)?;
    let address = pod.get()?["status"]["podIP"].clone();
    pod.delete()?;
    Ok(address.to_string())
}

/// What the kubelet measures of a pod: processors, memory, and what it has written. containerd's CRI measures that of its default
/// snapshotter alone (up to 2.3.4), and tells 0 for others.
pub fn measured(class: Class) -> Result<String> {
    let pod = Manifest::new("measured", class, &[("app", SLEEP), ("log", SLEEP)]).ready()?;
    pod.member("app")?.sh(&format!("dd if=/dev/zero of=/written bs=1M count={} 2>&1", WRITTEN >> 20))?;
    let said = usage(&pod.name, if class.is_none() { WRITTEN } else { 0 })?;
    pod.delete()?;
    Ok(said)
}

fn limited(app: &Member<'_>) -> Result<()> {
    let group = Group::of(app.pid()?)?;
    let file = if group.unified { "memory.max" } else { "memory.limit_in_bytes" };
    let limit = group.read("memory", file)?;
    ensure!(limit == MEMORY.to_string(), "{file} is {limit}");
    Ok(())
}

/// What the kubelet measures of each container.
fn usage(name: &str, least: u64) -> Result<String> {
    let of = || -> Result<Option<[u64; 3]>> {
        let summary = format!("/api/v1/nodes/{}/proxy/stats/summary", super::files::NODE);
        let text = done(&["get", "--raw", &summary])?;
        let summary: Value = serde_json::from_str(&text).context("a summary of the node")?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let pod = pods.into_iter().find(|pod| pod["podRef"]["name"] == name);
        let containers = pod.and_then(|pod| pod["containers"].as_array().cloned()).unwrap_or_default();
        let app = containers.iter().find(|one| one["name"] == "app").cloned().unwrap_or_default();
        let memory = app["memory"]["workingSetBytes"].as_u64().filter(|bytes| *bytes > 0);
        let cpu = app["cpu"]["usageCoreNanoSeconds"].as_u64().filter(|used| *used > 0);
        let log = containers.iter().any(|one| one["name"] == "log");
        let written = app["rootfs"]["usedBytes"].as_u64().filter(|bytes| *bytes >= least);
        let used = memory.zip(cpu).zip(written).filter(|_| log);
        Ok(used.map(|((memory, cpu), written)| [memory, cpu, written]))
    };
    until("measured", || Ok(of()?.is_some()))?;
    let [memory, cpu, written] = of()?.unwrap_or_default();
    let used = format!("{} KiB, {} ms of a processor", memory >> 10, cpu / 1_000_000);
    Ok(format!("{used}, {} KiB written", written >> 10))
}

/// A container that a probe finds ill, and one that was killed, is another one soon; the pod's other goes on.
pub fn restarts(class: Class) -> Result<String> {
    settings()?;
    let pod = manifest("restarts", class).ready()?;
    let (first, log) = (pod.member("app")?, pod.member("log")?);
    let beside = log.pid()?;
    first.sh("touch /ill")?;
    let second = pod.restarted(&first)?;
    ensure!(
        second.restarts == 1 && second.sh("test ! -e /ill && echo well")? == "well",
        "it has its old files"
    );
    kill(second.pid()?)?;
    let third = pod.restarted(&second)?;
    ensure!(third.restarts == 2, "it was restarted {} times", third.restarts);
    let before = third.logs(&["--previous"], "both lines", |log| log.lines().count() == 2)?;
    let last = super::kubectl::status_of(&pod.get()?, "app")["lastState"]["terminated"]["exitCode"].clone();
    ensure!(last == 137, "its exit status is {last}, after {before:?}");
    let log = pod.member("log")?;
    ensure!(log.pid()? == beside && log.restarts == 0, "the other was restarted");
    let ids = format!("{} {} {}", &first.id[..12], &second.id[..12], &third.id[..12]);
    pod.delete()?;
    Ok(ids)
}

/// Its exit status is told, and it is not restarted where that is not wanted.
pub fn ends(class: Class) -> Result<String> {
    for (script, phase, code) in [("exit 7", "Failed", 7), ("true", "Succeeded", 0)] {
        let once = |spec: &mut Value| spec["restartPolicy"] = json!("Never");
        let pod = Manifest::new("ends", class, &[("job", script)]).with(once).applied()?;
        let ended = pod.comes_to(phase, |pod| pod["status"]["phase"] == phase)?;
        let status = super::kubectl::status_of(&ended, "job");
        ensure!(status["state"]["terminated"]["exitCode"] == code && status["restartCount"] == 0, "{status}");
        pod.delete()?;
    }
    Ok(String::new())
}

/// With it go its containers, its control groups and its files.
pub fn deleted(class: Class) -> Result<String> {
    settings()?;
    let pod = manifest("deleted", class).ready()?;
    let told = pod.get()?;
    let uid = told["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let group = Group::of(pod.member("app")?.pid()?)?;
    let folder = format!("/var/lib/kubelet/pods/{uid}");
    ensure!(fs::metadata(&folder).is_ok(), "the kubelet has no {folder}");
    pod.delete()?;
    left::of_pod(&uid)?;
    until("gone: its control groups", || Ok(group.left().is_empty()))?;
    until("gone: its files", || Ok(fs::metadata(&folder).is_err()))?;
    let pods = get(&["pods"])?;
    ensure!(pods["items"].as_array().is_some_and(Vec::is_empty), "{pods}");
    Ok(String::new())
}
