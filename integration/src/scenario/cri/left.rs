//! What outlives containerd, and that nothing outlives a pod.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::capsules::expect;
use super::kubelet::{Kubelet, SLEEP};
use super::{BY_PATH, K8S, OURS};
use crate::scenario::capsulectl::{done, ps};
use crate::scenario::ctr::ctr;
use crate::scenario::runtime::bed::processes_named;
use crate::scenario::world::{World, until};

/// Pods go on without containerd, and take capsules when it is back.
pub fn restarted(world: &mut World, kubelet: &Kubelet) -> Result<String> {
    for handler in [OURS, BY_PATH] {
        let pod = kubelet.pod(handler, "kept", &[("resourcecapsules.io/attach", "lib@1")])?;
        let app = pod.start("app", SLEEP)?;
        let pid = app.pid()?;
        world.restart_containerd()?;
        kubelet.wait()?;
        ensure!(app.pid()? == pid, "{handler}: it is another process");
        expect(&app.id, &["lib@1 attached"])?;
        done(&["upgrade", &app.reference(), "lib"])?;
        done(&["attach", &app.reference(), "tool"])?;
        ensure!(app.sh("cat /opt/lib/version /opt/tool/version")? == "21", "{handler}: other files");
        let late = pod.start("late", SLEEP)?;
        expect(&late.id, &["lib@1 attached"])?;
        world.kill_capsuled()?;
        world.restart_capsuled()?;
        done(&["detach", &app.reference(), "tool"])?;
        expect(&app.id, &["lib@2 attached"])?;
        pod.remove()?;
    }
    Ok(String::new())
}

/// After all cases: no process, mount, container, snapshot in use, lease, record or file of a pod.
pub fn nothing(kubelet: &Kubelet) -> Result<String> {
    let (containers, pods) = kubelet.all()?;
    ensure!(containers.is_empty() && pods.is_empty(), "{containers:?} {pods:?}");
    no_trace()
}

/// The same, as it is seen without CRI.
pub fn no_trace() -> Result<String> {
    until("ended", || Ok(ps()?.is_empty()))?;
    until("without shims", || Ok(processes_named("containerd-shim")?.is_empty()))?;
    for what in [&["containers", "ls", "-q"][..], &["tasks", "ls", "-q"], &["leases", "ls", "-q"]] {
        let list = ctr(&[&["-n", K8S][..], what].concat())?.success("list")?;
        ensure!(list.trim().is_empty(), "{what:?}: {list}");
    }
    for snapshotter in ["overlayfs", "capsule"] {
        let list = ctr(&["-n", K8S, "snapshots", "--snapshotter", snapshotter, "ls"])?.success("list")?;
        ensure!(!list.contains("Active"), "{snapshotter}: {list}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains("/run/containerd/")).collect();
    ensure!(left.is_empty(), "{left:?}");
    for folder in ["/run/capsule/tasks", "/run/capsule/kept", "/run/containerd/io.containerd.runtime.v2.task"]
    {
        let folder = format!("{folder}/{K8S}");
        let left = fs::read_dir(&folder).map(|entries| entries.filter_map(Result::ok).count()).unwrap_or(0);
        ensure!(left == 0, "{left} in {folder}");
    }
    Ok(String::new())
}
