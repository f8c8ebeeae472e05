//! Scenarios on machines: everything that `make demo` does and more, asserted.
//!
//! These tests make namespaces and mounts: without root they fail and say so.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use capsule_integration::machine::{Job, Kind, Machine};
use capsule_integration::rootfs::Suite;
use capsule_integration::scenario::docs::PAGES;
use capsule_integration::scenario::life;
use capsule_integration::scenario::runtime::{
    campaigns_of_environment, campaigns_of_vm, scenario_of_environment, scenario_of_vm,
};
use capsule_integration::workspace::{Workspace, require_root};

/// One machine of a kind at a time: what they measure and how long they wait should not depend on each other.
fn run(kind: Kind, suite: Suite, scenario: &str) -> Result<()> {
    require_root("a test on a machine")?;
    let workspace = Workspace::of(Path::new(env!("CARGO_BIN_EXE_capsule-testbed")))?;
    let _lock = workspace.lock(kind.turn())?;
    let job = Job { scenario: scenario.to_owned(), silence: Duration::from_secs(480) };
    Machine { kind, suite }.run(&workspace, &job, |_| {})?.expect_ok()
}

#[test]
fn privileged_native_forky_conformance() -> Result<()> {
    run(Kind::Native, Suite::Forky, "conformance")
}

#[test]
fn privileged_native_forky_demo() -> Result<()> {
    run(Kind::Native, Suite::Forky, "demo")
}

/// Hot-plug on containerd 1.7.
#[test]
fn privileged_native_trixie_demo() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "demo")
}

#[test]
fn privileged_native_forky_errors() -> Result<()> {
    run(Kind::Native, Suite::Forky, "errors")
}

/// Disks that are full.
#[test]
fn privileged_native_forky_full() -> Result<()> {
    run(Kind::Native, Suite::Forky, "full")
}

/// Calls followed from program to program.
#[test]
fn privileged_native_forky_traces() -> Result<()> {
    run(Kind::Native, Suite::Forky, "traces")
}

/// Grafana's dashboard, by a Prometheus.
#[test]
fn privileged_native_forky_dashboard() -> Result<()> {
    run(Kind::Native, Suite::Forky, "dashboard")
}

/// Requirements between capsules.
#[test]
fn privileged_native_forky_sets() -> Result<()> {
    run(Kind::Native, Suite::Forky, "sets")
}

/// containerd's configuration written, used and taken back, and what doctor finds.
#[test]
fn privileged_native_forky_setup() -> Result<()> {
    run(Kind::Native, Suite::Forky, "setup")
}

/// The same on containerd 1.7.
#[test]
fn privileged_native_trixie_setup() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "setup")
}

/// Clients elsewhere, over TLS.
#[test]
fn privileged_native_forky_remote() -> Result<()> {
    run(Kind::Native, Suite::Forky, "remote")
}

/// Upgrades of sets, and what is proved of them.
#[test]
fn privileged_native_forky_moves() -> Result<()> {
    run(Kind::Native, Suite::Forky, "moves")
}

/// Attachments in containers of Docker's.
#[test]
fn privileged_native_forky_docker() -> Result<()> {
    run(Kind::Native, Suite::Forky, "docker")
}

/// Pods of Kubernetes, as the kubelet asks containerd's CRI for them.
#[test]
fn privileged_native_forky_cri() -> Result<()> {
    run(Kind::Native, Suite::Forky, "cri")
}

/// The same, with containerd 1.7.
#[test]
fn privileged_native_trixie_cri() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "cri")
}

/// With systemd's driver, on control groups of version 2.
#[test]
fn privileged_vm_forky_cri() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "cri-systemd")
}

/// Containers of nerdctl's, with capsules.
#[test]
fn privileged_native_forky_nerdctl() -> Result<()> {
    run(Kind::Native, Suite::Forky, "nerdctl")
}

/// Attachments over a restart of the node, and events.
#[test]
fn privileged_native_forky_keep() -> Result<()> {
    run(Kind::Native, Suite::Forky, "keep")
}

/// Volumes of the node, upgraded wherever they are mounted.
#[test]
fn privileged_native_forky_volumes() -> Result<()> {
    run(Kind::Native, Suite::Forky, "volumes")
}

/// The storage driver, by CSI.
#[test]
fn privileged_native_forky_csi() -> Result<()> {
    run(Kind::Native, Suite::Forky, "csi")
}

/// What is written to attachments.
#[test]
fn privileged_native_forky_written() -> Result<()> {
    run(Kind::Native, Suite::Forky, "written")
}

/// The examples of the documentation.
#[test]
fn privileged_native_forky_docs() -> Result<()> {
    PAGES.iter().try_for_each(|(page, ..)| run(Kind::Native, Suite::Forky, &format!("docs-{page}")))
}

/// The pages whose examples need control groups of version 2.
#[test]
fn privileged_vm_forky_docs() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "docs-unified")
}

/// A thousand operations at random, with daemons killed in the middle of a third of them.
#[test]
fn privileged_native_forky_life() -> Result<()> {
    run(Kind::Native, Suite::Forky, &life::scenario_of_environment()?)
}

/// Attach, memory and recovery on a node that fills.
#[test]
fn privileged_native_forky_scale() -> Result<()> {
    run(Kind::Native, Suite::Forky, "scale-quick")
}

/// What is removed, and what is not.
#[test]
fn privileged_native_forky_collect() -> Result<()> {
    run(Kind::Native, Suite::Forky, "collect")
}

/// Tags, and versions that move between machines.
#[test]
fn privileged_native_forky_registry() -> Result<()> {
    run(Kind::Native, Suite::Forky, "registry")
}

/// The same on containerd 1.7, as far as it can.
#[test]
fn privileged_native_trixie_registry() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "registry-old")
}

/// Differences between versions, versions on versions and on images, and what they share.
#[test]
fn privileged_native_forky_versions() -> Result<()> {
    run(Kind::Native, Suite::Forky, "versions")
}

/// containerd 1.7.
#[test]
fn privileged_native_trixie_versions() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "versions")
}

#[test]
fn privileged_native_forky_idmapped() -> Result<()> {
    run(Kind::Native, Suite::Forky, "idmapped")
}

#[test]
fn privileged_native_forky_images() -> Result<()> {
    run(Kind::Native, Suite::Forky, "images")
}

#[test]
fn privileged_native_trixie_images() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "images")
}

/// On containerd's own runtime and then on ours; `TEST_RUNTIME` names one, `TEST_CASES` a part of the cases' names.
#[test]
fn privileged_native_forky_runtime() -> Result<()> {
    run(Kind::Native, Suite::Forky, &scenario_of_environment())
}

/// The everyday part of the suite as a user without root has it, with a cgroup and without.
#[test]
fn privileged_native_forky_rootless() -> Result<()> {
    run(Kind::Native, Suite::Forky, "rootless")
}

/// containerd 1.7.
#[test]
fn privileged_native_trixie_runtime() -> Result<()> {
    run(Kind::Native, Suite::Trixie, &scenario_of_environment())
}

/// Shims, containerd and runtimes killed in each state, and many containers and execs.
#[test]
fn privileged_native_forky_campaigns() -> Result<()> {
    campaigns_of_environment().map_or(Ok(()), |scenario| run(Kind::Native, Suite::Forky, &scenario))
}

/// The same, on containerd 1.7.
#[test]
fn privileged_native_trixie_campaigns() -> Result<()> {
    campaigns_of_environment().map_or(Ok(()), |scenario| run(Kind::Native, Suite::Trixie, &scenario))
}

/// With systemd and unified cgroups.
#[test]
fn privileged_vm_forky_runtime() -> Result<()> {
    run(Kind::Vm, Suite::Forky, &scenario_of_vm())
}

/// The same, for a part of the kills and restarts: it takes minutes where processors are emulated.
#[test]
fn privileged_vm_forky_campaigns() -> Result<()> {
    campaigns_of_vm().map_or(Ok(()), |scenario| run(Kind::Vm, Suite::Forky, &scenario))
}

#[test]
fn privileged_native_forky_suite() -> Result<()> {
    run(Kind::Native, Suite::Forky, "suite")
}

#[test]
fn privileged_native_trixie_suite() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "suite")
}

#[test]
fn privileged_native_trixie_conformance() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "conformance")
}

/// Few rounds and no peers: that the benchmark works, not how fast anything is.
#[test]
fn privileged_native_forky_bench_snapshotter() -> Result<()> {
    run(Kind::Native, Suite::Forky, "bench-snapshotter-quick")
}

#[test]
fn privileged_native_forky_bench_storage() -> Result<()> {
    run(Kind::Native, Suite::Forky, "bench-storage")
}

/// Few rounds: that the benchmark works, not how fast anything is.
#[test]
fn privileged_native_forky_bench_runtime() -> Result<()> {
    run(Kind::Native, Suite::Forky, "bench-runtime-quick")
}

#[test]
fn privileged_vm_forky_demo() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "demo")
}

/// Native mode on a host with systemd and unified cgroups.
#[test]
fn privileged_vm_forky_native_inside() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "nested")
}

#[test]
fn privileged_vm_forky_errors() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "errors")
}

#[test]
fn privileged_native_forky_upgrade() -> Result<()> {
    run(Kind::Native, Suite::Forky, "upgrade")
}

/// Devices in live containers: needs unified cgroups, and systemd for its driver.
#[test]
fn privileged_vm_forky_devices() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "devices")
}

/// Limits of live containers, likewise.
#[test]
fn privileged_vm_forky_limits() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "limits")
}

/// What capsules deny to processes.
#[test]
fn privileged_native_forky_denials() -> Result<()> {
    run(Kind::Native, Suite::Forky, "denials")
}

/// The same with runc 1.1 and crun 1.21.
#[test]
fn privileged_native_trixie_denials() -> Result<()> {
    run(Kind::Native, Suite::Trixie, "denials")
}

#[test]
fn privileged_native_forky_limits() -> Result<()> {
    run(Kind::Native, Suite::Forky, "limits")
}

/// Where control groups are of version 1, they are refused.
#[test]
fn privileged_native_forky_devices() -> Result<()> {
    run(Kind::Native, Suite::Forky, "devices")
}

/// Beside many rules, and programs of others; and of containers that are created.
#[test]
fn privileged_vm_forky_devices_more() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "devices-more")
}

/// Devices of containers that are created, with what annotations and capsules bring.
#[test]
fn privileged_native_forky_created() -> Result<()> {
    run(Kind::Native, Suite::Forky, "created")
}

/// With systemd, and the units as they are shipped: capsuled is replaced, and the machine restarts, in order and by a power cut.
#[test]
fn privileged_vm_forky_systemd() -> Result<()> {
    run(Kind::Vm, Suite::Forky, "systemd")
}
