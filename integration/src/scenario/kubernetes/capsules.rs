//! Capsules that a pod's annotations name.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::kubectl::{Manifest, Pod, apply, done, get, status_of};
use super::{OURS, until};
use crate::scenario::capsulectl::{self, ps};
use crate::scenario::reboot::kill;
use crate::scenario::sets::publish;

const ATTACH: &str = "resourcecapsules.io/attach";
/// Its first act is to tell what there is.
const LOOK: &str = "cat /opt/*/version 2>/dev/null; echo; exec sleep 100000";

/// A container that the kubelet restarts has what the annotation says again, and nothing of what was done by hand. The one before is
/// left there, and shown no more.
pub fn restarted() -> Result<String> {
    let containers = [("app", LOOK), ("log", LOOK)];
    let pod = Manifest::new("kept", OURS, &containers).annotated(&[(ATTACH, "lib@1, tool")]).ready()?;
    let mut app = pod.member("app")?;
    for round in 1..=2 {
        ensure!(app.logs(&[], "what it found", |log| !log.is_empty())? == "11", "at its start");
        app.expect(&["lib@1 attached", "tool@1 attached"])?;
        capsulectl::done(&["upgrade", &app.reference(), "lib"])?;
        ensure!(app.sh("cat /opt/lib/version")? == "2", "it is not upgraded");
        kill(app.pid()?)?;
        let next = pod.restarted(&app)?;
        ensure!(next.restarts == round, "{} restarts", next.restarts);
        next.expect(&["lib@1 attached", "tool@1 attached"])?;
        until("ended with its process", || Ok(app.has()?.is_empty()))?;
        app = next;
    }
    let table = capsulectl::done(&["ps"])?;
    let rows = table.lines().filter(|line| line.contains(&app.reference())).count();
    ensure!(rows == 2, "{rows} rows of {}: {table}", app.reference());
    ensure!(ps()?.len() == 4, "{table}");
    pod.member("log")?.expect(&["lib@1 attached", "tool@1 attached"])?;
    let id = app.id.clone();
    pod.delete()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(format!("the last is {}", &id[..12]))
}

/// The events of the pod have our message, and when the version is there it starts.
pub fn mistake() -> Result<String> {
    let pod = Manifest::new("early", OURS, &[("app", LOOK)]).annotated(&[(ATTACH, "late@1")]).applied()?;
    // Between two tries it is the last one that has the message.
    pod.comes_to("told", |pod| status_of(pod, "app").to_string().contains(&format!("annotation {ATTACH}")))?;
    let said = done(&["describe", "pod", "early"])?;
    let line = said.lines().find(|line| line.contains(ATTACH) && line.contains("Error"));
    let line = line.with_context(|| format!("no message: {said}"))?.trim().to_owned();
    ensure!(line.contains("late"), "{line}");
    ensure!(ps()?.is_empty(), "{:?}", ps()?);
    publish("late@1", &[])?;
    pod.is_ready()?;
    let app = pod.member("app")?;
    app.expect(&["late@1 attached"])?;
    ensure!(app.sh("cat /opt/late/version")? == "1", "other files");
    pod.delete()?;
    Ok(line)
}

fn deployment(version: &str) -> Value {
    let pod = Manifest::new("shelf", OURS, &[("app", LOOK)]).annotated(&[(ATTACH, version)]).0;
    let mut template = pod;
    template["metadata"]["labels"] = json!({ "app": "shelf" });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "shelf" },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": "shelf" } },
            "template": { "metadata": template["metadata"], "spec": template["spec"] },
        },
    })
}

/// An annotation of a Deployment's template that changes makes new pods, with the other version.
pub fn rollout() -> Result<String> {
    let mut said = String::new();
    for (label, shown) in [("lib@1", "lib@1 attached"), ("lib@2", "lib@2 attached")] {
        apply(&deployment(label))?;
        said = done(&["rollout", "status", "deployment/shelf", "--timeout=110s"])?;
        until("gone: the pods before", || Ok(names()?.len() == 2))?;
        for name in names()? {
            // It is the Deployment's, which would make another in its place.
            let pod = std::mem::ManuallyDrop::new(Pod { name });
            pod.member("app")?.expect(&[shown])?;
        }
    }
    done(&["delete", "deployment", "shelf", "--cascade=foreground", "--timeout=110s"])?;
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

fn names() -> Result<Vec<String>> {
    let pods = get(&["pods", "-l", "app=shelf"])?;
    let all = pods["items"].as_array().context("no pods")?;
    Ok(all.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}
