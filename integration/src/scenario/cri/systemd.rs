//! What depends on who makes the control groups: pods in slices, as a kubelet names them whose `cgroupDriver` is `systemd`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};

use super::capsules::expect;
use super::devices::{DEVICE, write_spec};
use super::kubelet::{Kubelet, Member, SLEEP};
use super::{OURS, left, life};
use crate::event::Reporter;
use crate::scenario::capsulectl::done;
use crate::scenario::runtime::cgroups::drivers::wait_until_unit_gone;
use crate::scenario::runtime::cgroups::group::Group;
use crate::workspace::output_of;

/// A pod's slice, as the kubelet calls it.
const SLICE: &str = "kubepods-burstable-poduid_slices.slice";
const ABOVE: &str = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice";
const LIMIT: i64 = 64 << 20;
const UPDATED: i64 = 96 << 20;
const GRANT: i64 = 32 << 20;

/// Runs the few cases whose outcome the driver can change: the machine is an emulated one.
pub fn cases(reporter: &mut Reporter, kubelet: &Kubelet) {
    reporter.check("capsule: a pod, from its start to its end", || life::life(kubelet, OURS));
    reporter.check("capsule: limits and devices in a pod's slice", || in_slice(kubelet));
    reporter.check("nothing is left of pods", || left::nothing(kubelet));
}

fn in_slice(kubelet: &Kubelet) -> Result<String> {
    modules();
    let annotations = [("resourcecapsules.io/attach", "lib@1")];
    let pod = kubelet.pod_with(OURS, "slices", &annotations, sliced)?;
    let app = pod.start_with("app", SLEEP, |config| limit(config, LIMIT))?;
    let unit = format!("cri-containerd-{}.scope", app.id);
    let directory = Group::of(app.pid()?)?.directory("memory")?;
    ensure!(directory == Path::new(ABOVE).join(SLICE).join(&unit), "it is in {}", directory.display());
    expect(&app.id, &["lib@1 attached"])?;
    limits(&app)?;
    device(&app)?;
    pod.remove()?;
    wait_until_unit_gone(&unit)?;
    Ok(unit)
}

/// What an attachment adds is known to systemd, and is added to what the kubelet says later as well.
fn limits(app: &Member<'_>) -> Result<()> {
    limited(app, "created", LIMIT)?;
    done(&["attach", &app.reference(), "tool", "--grant", "memory.max=32MiB"])?;
    limited(app, "granted", LIMIT + GRANT)?;
    output_of(Command::new("systemctl").arg("daemon-reload"))?;
    limited(app, "daemon-reload", LIMIT + GRANT)?;
    let resources = LinuxContainerResources { memory_limit_in_bytes: UPDATED, ..Default::default() };
    app.update(resources).context("change its limits")?;
    limited(app, "updated", UPDATED + GRANT)?;
    done(&["detach", &app.reference(), "tool"])?;
    limited(app, "detached", UPDATED)
}

/// systemd's own program of devices is below ours, and the slices above deny nothing.
fn device(app: &Member<'_>) -> Result<()> {
    write_spec()?;
    let opens = || app.exec(&["/bin/sh", "-c", "[ -c /dev/example0 ] && : <>/dev/example0"], 60);
    done(&["attach", &app.reference(), "--device", DEVICE])?;
    ensure!(opens()?.code == 0, "it cannot open {DEVICE}: {:?}", opens()?);
    done(&["detach", &app.reference(), "--device", DEVICE])?;
    ensure!(opens()?.code != 0, "it still opens {DEVICE}");
    Ok(())
}

/// The drivers of what stands behind the device.
fn modules() {
    for module in ["fuse", "loop"] {
        // One that is part of the kernel is no module; a device that is missing fails the attach.
        let _ = Command::new("modprobe").arg(module).status();
    }
}

fn sliced(config: &mut PodSandboxConfig) {
    config.linux.get_or_insert_default().cgroup_parent = SLICE.to_owned();
}

fn limit(config: &mut ContainerConfig, bytes: i64) {
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().memory_limit_in_bytes = bytes;
}

fn limited(app: &Member<'_>, when: &str, bytes: i64) -> Result<()> {
    let limit = Group::of(app.pid()?)?.read("memory", "memory.max")?;
    ensure!(limit == bytes.to_string(), "{when}: memory.max is {limit} instead of {bytes}");
    Ok(())
}
