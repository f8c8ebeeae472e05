//! Devices of pods: by our annotation, by a device plugin through the kubelet, and with what a `CapsuleAttachment` asks for.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::asked::{self, Parts, agent, ready};
use super::everyday::SLEEP;
use super::files::NODE;
use super::kubectl::{Manifest, Member, apply, done as kubectl, get, kubectl_with};
use super::plugin::Plugin;
use super::wanted::{all_have, kill, of_shelf, pods};
use super::{Class, OURS, REFERENCE, until};
use crate::scenario::capsulectl::done;

/// How often the agent is killed while devices come and go.
const KILLS: u64 = 6;
const KIND: &str = "example.com/gpu";
/// The name that is told is that of the spec, and the device opens.
const SEEN: &str = "exec 3<>/dev/example0 && echo \"$EXAMPLE_VISIBLE_DEVICES\"";

/// A device that the node lets pods name, for one container of two.
pub fn named() -> Result<String> {
    let named = [("resourcecapsules.io/devices.app", "example.com/gpu=0")];
    let pod = Manifest::new("device", OURS, &[("app", SLEEP), ("log", SLEEP)]).annotated(&named);
    of_the_first(pod).map(|()| String::new())
}

/// A pod asks for so many; a plugin gives the kubelet the name in CDI of that which it is to have, on either runtime.
pub fn by_plugin() -> Result<String> {
    let _plugin = Plugin::start(KIND)?;
    let count = || Ok::<_, anyhow::Error>(get(&["node", NODE])?["status"]["allocatable"][KIND].clone());
    until("told by the node: a device", || Ok(count()? == "1"))?;
    let asks = |class: Class, name: &str| {
        Manifest::new(name, class, &[("app", SLEEP), ("log", SLEEP)])
            .with(|spec| spec["containers"][0]["resources"] = json!({ "limits": { KIND: 1 } }))
    };
    of_the_first(asks(REFERENCE, "theirs"))?;
    of_the_first(asks(OURS, "ours"))?;
    // By both it is the same, once.
    let both = [("resourcecapsules.io/devices.app", "example.com/gpu=0")];
    of_the_first(asks(OURS, "both").annotated(&both))?;
    Ok(format!("{} {KIND}", count()?))
}

/// With a capsule, for pods that run; what somebody has given stays, and what pods may not name is refused.
pub fn wanted() -> Result<String> {
    each(false)?;
    apply(&asks("example.com/gpu=0"))?;
    ready("device", "True", "4 containers")?;
    all_have(&["@ attached", "lib@1 attached", "tool@1 attached"])?;
    each(true)?;
    let (all, app) = (pods()?, "app");
    let before = all[0].member(app)?;
    kill(before.pid()?)?;
    let now = all[0].restarted(&before)?;
    until("it has it again", || Ok(has(&now)? && now.has()?.len() == 3))?;
    ready("device", "True", "4 containers")?;
    let other = asks("example.com/gpu=1").to_string();
    let changed = kubectl_with(&["apply", "-f", "-"], other.as_bytes())?.ended_with(1)?;
    ensure!(changed.err.contains("devices cannot change"), "{}", changed.err);
    kubectl(&["delete", "capsuleattachment", "device", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    each(false)?;
    // One that a person has given stays with whom it was given to.
    let all = pods()?;
    let (first, second) = (all[0].member("app")?, all[1].member("app")?);
    done(&["attach", &first.reference(), "--device", "example.com/gpu=0"])?;
    apply(&asks("example.com/gpu=0"))?;
    ready("device", "True", "4 containers")?;
    each(true)?;
    kubectl(&["delete", "capsuleattachment", "device", "--timeout=120s"])?;
    ensure!(has(&first)? && !has(&second)?, "other devices are left");
    done(&["detach", &first.reference(), "--device", "example.com/gpu=0"])?;
    Ok(String::new())
}

/// The agent is killed while they come and go.
pub fn killed(parts: &mut Parts) -> Result<String> {
    for round in 0..KILLS {
        apply(&asks("example.com/gpu=0"))?;
        std::thread::sleep(Duration::from_millis(400 * round));
        parts.agent.kill()?;
        if round % 2 == 0 {
            kubectl(&["delete", "capsuleattachment", "device", "--wait=false"])?;
        }
        parts.agent = agent()?;
    }
    kubectl(&["delete", "capsuleattachment", "device", "--ignore-not-found", "--timeout=120s"])?;
    all_have(&["lib@1 attached"])?;
    each(false)?;
    Ok(format!("{KILLS} kills"))
}

/// Whether a container has the device.
fn has(member: &Member<'_>) -> Result<bool> {
    let looked = member.exec(&["/bin/sh", "-c", "test -e /dev/example0"], b"")?;
    ensure!(looked.code < 2, "{looked:?}");
    Ok(looked.code == 0)
}

/// Asserts that all containers have it, or none.
fn each(expected: bool) -> Result<()> {
    for pod in pods()? {
        for name in ["app", "log"] {
            let member = pod.member(name)?;
            ensure!(has(&member)? == expected, "{}: {expected} is not so", member.reference());
        }
    }
    Ok(())
}

/// A kind that the node keeps from pods, a device that there is not, and what a node with control groups of version 1 cannot.
pub fn refused() -> Result<String> {
    let mut told = Vec::new();
    for (device, why) in [
        ("example.com/other=0", "pods may not name example.com/other=0"),
        ("example.com/gpu=none", "example.com/gpu=none: "),
        ("example.com/gpu=0", "create the container with its devices"),
    ] {
        apply(&asks(device))?;
        let status = ready("device", "False", why)?;
        told.push(status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned());
        all_have(&["lib@1 attached"])?;
        kubectl(&["delete", "capsuleattachment", "device", "--timeout=120s"])?;
    }
    Ok(told.join(" | "))
}

fn asks(device: &str) -> Value {
    let mut spec = of_shelf("tool", "1");
    spec["devices"] = json!([device]);
    asked::wanted("device", spec)
}

fn of_the_first(manifest: Manifest) -> Result<()> {
    let pod = manifest.ready()?;
    let has = pod.member("app")?.sh(SEEN)?;
    ensure!(has == "void", "{has:?}");
    let other = pod.member("log")?.exec(&["/bin/sh", "-c", "test -e /dev/example0"], b"")?;
    ensure!(other.code == 1, "the other container: {other:?}");
    pod.delete()
}
