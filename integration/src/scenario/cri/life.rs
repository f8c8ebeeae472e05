//! What CRI does with pods and containers, whatever their runtime.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::{ContainerState, LinuxContainerResources, NamespaceMode, PodSandboxState};
use tonic::Code;

use super::kubelet::{Kubelet, Member, Pod, SLEEP, namespaces};
use super::{BY_PATH, K8S, OURS, REFERENCE};
use crate::scenario::ctr::ctr;
use crate::scenario::runtime::cgroups::group::Group;
use crate::scenario::world::until;

const MEMORY: i64 = 64 << 20;

/// containerd 2 tells the kubelet which handlers can have pods with user namespaces; of types but its own it knows nothing.
pub fn handlers(kubelet: &Kubelet) -> Result<String> {
    let status = kubelet.status()?;
    let told: Vec<(String, bool)> = status
        .runtime_handlers
        .iter()
        .map(|one| (one.name.clone(), one.features.as_ref().is_some_and(|features| features.user_namespaces)))
        .collect();
    if kubelet.is_old() {
        ensure!(told.is_empty(), "containerd 1.7 tells of handlers: {told:?}");
        return Ok("not told".to_owned());
    }
    for (handler, users) in [(REFERENCE, true), (OURS, false), (BY_PATH, true)] {
        ensure!(told.contains(&(handler.to_owned(), users)), "{handler} in {told:?}");
    }
    Ok(format!("{told:?}"))
}

/// Everything that the kubelet does to a pod of one container.
pub fn life(kubelet: &Kubelet, handler: &str) -> Result<String> {
    let pod = kubelet.pod(handler, &format!("life-{handler}"), &[])?;
    let status = pod.status()?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
    ensure!(status.runtime_handler == handler, "{status:?}");
    let script = "echo out; echo err >&2; exec sleep 100000";
    let app = pod.start("app", script)?;
    app.wait_for(ContainerState::ContainerRunning)?;
    until("in the log", || Ok(lines(&app.log)?.len() == 2))?;
    let mut log = lines(&app.log)?;
    log.sort();
    ensure!(log == ["stderr F err", "stdout F out"], "{log:?}");
    let ran = app.exec(&["/bin/sh", "-c", "echo o; echo e >&2; exit 3"], 60)?;
    ensure!((ran.out.as_str(), ran.err.as_str(), ran.code) == ("o\n", "e\n", 3), "{ran:?}");
    let late = app.exec(&["/bin/sleep", "100"], 1).err().context("it has no time limit")?;
    ensure!(late.code() == Code::DeadlineExceeded, "{late:?}");
    let missing = app.exec(&["/no-such-program"], 60).err().context("a program that is not there runs")?;
    ensure!(missing.message().contains("no such file"), "{missing:?}");
    let stats = app.stats()?;
    // A kubelet that cannot find it measures no pod of the node.
    let layer = stats.writable_layer.and_then(|layer| layer.fs_id).context("no place of what it writes")?;
    ensure!(Path::new(&layer.mountpoint).is_dir(), "what it writes is at {layer:?}");
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).context("no use of processors")?.value;
    let memory = stats.memory.and_then(|memory| memory.usage_bytes).context("no use of memory")?.value;
    ensure!(cpu > 0 && memory > 0, "{cpu} ns, {memory} bytes");
    limited(&app)?;
    app.stop()?;
    let status = app.wait_for(ContainerState::ContainerExited)?;
    ensure!(status.exit_code == 137, "{status:?}");
    app.remove()?;
    ended(&pod)?;
    pod.remove()?;
    let used = format!("{} KiB, {} ms of a processor", memory >> 10, cpu / 1_000_000);
    Ok(format!("{used}; what it writes is at {}", layer.mountpoint))
}

fn limited(app: &Member<'_>) -> Result<()> {
    let resources = LinuxContainerResources { memory_limit_in_bytes: MEMORY, ..Default::default() };
    app.update(resources).context("change its limits")?;
    let group = Group::of(app.pid()?)?;
    let file = if group.unified { "memory.max" } else { "memory.limit_in_bytes" };
    let limit = group.read("memory", file)?;
    ensure!(limit == MEMORY.to_string(), "{file} is {limit}");
    let (status, _) = app.status()?;
    let told =
        status.resources.and_then(|resources| resources.linux).map(|linux| linux.memory_limit_in_bytes);
    ensure!(told == Some(MEMORY), "CRI tells {told:?}");
    Ok(())
}

/// A process that ends by itself.
fn ended(pod: &Pod<'_>) -> Result<()> {
    let job = pod.start("job", "exit 7")?;
    let status = job.wait_for(ContainerState::ContainerExited)?;
    ensure!(status.exit_code == 7 && status.reason == "Error", "{status:?}");
    job.remove()
}

/// A log's lines, without their times.
fn lines(path: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect())
}

/// In Kubernetes a restarted container is another one, of the same name.
pub fn restarted(kubelet: &Kubelet, handler: &str) -> Result<String> {
    // On the node's network, and so with its name.
    let pod = kubelet.pod_with(handler, "restarted", &[], |config| {
        config.hostname.clear();
        let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        context.into_iter().for_each(|one| one.namespace_options = Some(namespaces(NamespaceMode::Node)));
    })?;
    let [app, log] = [pod.start("app", SLEEP)?, pod.start("log", SLEEP)?];
    let (first, beside) = (app.pid()?, log.pid()?);
    app.stop()?;
    let again = pod.start("app", SLEEP)?;
    ensure!(again.id != app.id && again.pid()? != first, "it is the same");
    ensure!(log.pid()? == beside, "the other is another one");
    let ipc = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/ipc")).context("its namespace");
    ensure!(ipc(again.pid()?)? == ipc(beside)?, "they are of two pods");
    pod.remove()?;
    Ok(format!("{} {}", &app.id[..12], &again.id[..12]))
}

fn snapshots(snapshotter: &str) -> Result<Vec<String>> {
    let list =
        ctr(&["-n", K8S, "snapshots", "--snapshotter", snapshotter, "ls"])?.success("list snapshots")?;
    let rows = list.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    Ok(rows.map(str::to_owned).collect())
}

/// What was imported was unpacked nowhere. The cases before have made pods of it with each handler.
pub fn unpacked(kubelet: &Kubelet) -> Result<String> {
    let (theirs, ours) = (snapshots("overlayfs")?, snapshots("capsule")?);
    ensure!(!theirs.is_empty() && theirs == ours, "{theirs:?} and {ours:?}");
    let pod = kubelet.pod(OURS, "unpacked", &[])?;
    let app = pod.start("app", SLEEP)?;
    let (_, info) = app.status()?;
    ensure!(info["snapshotter"] == "capsule", "{}", info["snapshotter"]);
    ensure!(snapshots("overlayfs")? == theirs, "{:?}", snapshots("overlayfs")?);
    let active = snapshots("capsule")?;
    ensure!(active.contains(&app.id) && active.contains(&pod.id), "{active:?}");
    pod.remove()?;
    until("removed", || Ok(snapshots("capsule")? == ours))?;
    Ok(format!("{} committed in each", theirs.len()))
}
