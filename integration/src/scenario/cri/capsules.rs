//! Capsules that a pod's annotations name.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::ContainerState;

use super::kubelet::{Kubelet, Member, SLEEP};
use super::{K8S, OURS};
use crate::scenario::capsulectl::{done, ps};
use crate::scenario::world::until;

/// Its first act is to note what there is.
const LOOK: &str = "cat /opt/lib/version /opt/tool/version > /found 2>/dev/null; exec sleep 100000";
const ATTACH: &str = "resourcecapsules.io/attach";

/// What was there before its program ran.
fn found(member: &Member<'_>) -> Result<String> {
    let file = format!("/proc/{}/root/found", member.pid()?);
    until("at work", || Ok(member.sh("test -e /found && echo yes || true")? == "yes\n"))?;
    // The shell makes the file before the first `cat` writes.
    until("asleep", || {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", member.pid()?)).unwrap_or_default();
        Ok(command.contains("sleep\0"))
    })?;
    fs::read_to_string(&file).with_context(|| format!("read {file}"))
}

/// What a container has, as `NAME@VERSION STATE`.
pub fn has(id: &str) -> Result<Vec<String>> {
    let of_it = ps()?.into_iter().filter(|seen| seen.container == id);
    Ok(of_it.map(|seen| format!("{}@{} {}", seen.capsule, seen.version, seen.state)).collect())
}

pub fn expect(id: &str, expected: &[&str]) -> Result<()> {
    let found = has(id)?;
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

pub fn all(kubelet: &Kubelet) -> Result<String> {
    let pod = kubelet.pod(OURS, "all", &[(ATTACH, "lib@1, tool")])?;
    // The sandbox has the annotation, and needs nothing.
    expect(&pod.id, &[])?;
    let [app, log] = [pod.start("app", LOOK)?, pod.start("log", LOOK)?];
    for one in [&app, &log] {
        ensure!(found(one)? == "11", "{}: {:?}", one.name, found(one)?);
        expect(&one.id, &["lib@1 attached", "tool@1 attached"])?;
    }
    done(&["upgrade", &app.reference(), "lib"])?;
    expect(&app.id, &["lib@2 attached", "tool@1 attached"])?;
    app.stop()?;
    // Another container of the same name: what its annotation says, and not what was done by hand.
    let again = pod.start("app", LOOK)?;
    ensure!(found(&again)? == "11", "{:?}", found(&again)?);
    expect(&again.id, &["lib@1 attached", "tool@1 attached"])?;
    // CRI starts no container twice: nothing waits for the one that exited, which the kubelet leaves there.
    until("ended", || Ok(ps()?.len() == 4))?;
    expect(&app.id, &[])?;
    app.remove()?;
    pod.remove()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(String::new())
}

pub fn one(kubelet: &Kubelet) -> Result<String> {
    let for_app = format!("{ATTACH}.app");
    let pod = kubelet.pod(OURS, "one", &[(ATTACH, "lib@1"), (&for_app, "tool, lib@2")])?;
    let [app, log] = [pod.start("app", LOOK)?, pod.start("log", LOOK)?];
    ensure!(
        (found(&app)?.as_str(), found(&log)?.as_str()) == ("21", "1"),
        "{:?} {:?}",
        found(&app)?,
        found(&log)?
    );
    expect(&app.id, &["lib@2 attached", "tool@1 attached"])?;
    expect(&log.id, &["lib@1 attached"])?;
    pod.remove()?;
    // None for the one, and nothing at all for the other.
    let annotations = [(ATTACH, "lib"), (&for_app, ""), ("resourcecapsules.io/enabled.log", "false")];
    let pod = kubelet.pod(OURS, "none", &annotations)?;
    let [app, log] = [pod.start("app", LOOK)?, pod.start("log", LOOK)?];
    ensure!(found(&app)?.is_empty() && found(&log)?.is_empty(), "{:?} {:?}", found(&app)?, found(&log)?);
    done(&["attach", &app.reference(), "tool"])?;
    let refused = crate::scenario::capsulectl::refused(&["attach", &log.reference(), "tool"], &["enabled"])?;
    pod.remove()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(refused)
}

pub fn mistakes(kubelet: &Kubelet) -> Result<String> {
    let mut told = Vec::new();
    for (annotation, words) in [
        ("lib@9", &["resourcecapsules.io/attach", "capsule lib has no version 9", "2, 1"][..]),
        ("lost", &["resourcecapsules.io/attach", "lost"]),
        ("lib:relative", &["resourcecapsules.io/attach", "lib:relative", "absolute"]),
    ] {
        let pod = kubelet.pod(OURS, "mistake", &[(ATTACH, annotation)])?;
        let app = pod.create_with("app", SLEEP, |_| {})?;
        let error = app.start().err().with_context(|| format!("{annotation}: it starts"))?;
        for word in words {
            ensure!(error.message().contains(word), "{annotation}: no {word:?} in {}", error.message());
        }
        let status = app.wait_for(ContainerState::ContainerExited)?;
        ensure!(status.message.contains(words[1]), "{annotation}: the kubelet reads {:?}", status.message);
        expect(&app.id, &[])?;
        let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/{K8S}/{}", app.id);
        ensure!(fs::metadata(&bundle).is_err(), "{bundle} is left");
        // The same pod is as good as before.
        let other = pod.start("other", SLEEP);
        ensure!(other.is_err(), "{annotation}: the other container starts");
        pod.remove()?;
        told.push(error.message().to_owned());
    }
    Ok(told.swap_remove(0))
}
