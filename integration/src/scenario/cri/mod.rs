//! Pods, as the kubelet asks containerd's CRI for them: with the handler that a RuntimeClass names, with annotations, and by hand.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`kubelet`] | nothing: it asks as the kubelet does |
//! | [`pause`] | nothing: the image of sandboxes |
//! | [`life`] | what CRI does with a container, on containerd's own runtime and on ours |
//! | [`capsules`] | capsules that annotations name, for all containers of a pod and for one |
//! | [`hand`] | the main job, in a container that is called as Kubernetes calls it |
//! | [`devices`] | devices by CRI, by the kubelet's annotations and by ours |
//! | [`users`] | pods with `hostUsers: false`; the network of all |
//! | [`left`] | what outlives containerd, and that nothing outlives a pod |
//! | [`shipped`] | the files of `configs/kubernetes` |
//! | [`systemd`] | pods whose control groups systemd makes |

mod capsules;
mod devices;
mod hand;
mod kubelet;
pub(super) mod left;
mod life;
pub(super) mod pause;
mod shipped;
mod systemd;
mod users;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use self::kubelet::Kubelet;
use super::ctr::ctr;
use super::sets::publish;
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::images::Image;

/// containerd's own runtime.
const REFERENCE: &str = "runc";
/// What configs/kubernetes/runtimeclass.yaml names, as it is shipped.
const OURS: &str = "capsule";
/// Ours under the name of containerd's own, of which alone containerd 2 asks what it can do (docs/runtime.md).
const BY_PATH: &str = "capsule-path";
/// containerd's namespace of pods.
pub(super) const K8S: &str = "k8s.io";

/// The cases of [`systemd`], in a machine that systemd runs.
pub const SYSTEMD: &str = "cri-systemd";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

/// Runs the cases of [`systemd`].
pub fn run_with_systemd(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, |reporter| {
        let (world, kubelet) = begin(reporter, true)?;
        systemd::cases(reporter, &kubelet);
        drop(kubelet);
        world.stop()
    })
}

/// A node whose CRI answers, with images and capsules.
fn begin(reporter: &mut Reporter, systemd: bool) -> Result<(World, Kubelet)> {
    for (file, text) in [("/etc/resolv.conf", ""), ("/etc/hosts", "127.0.0.1 localhost\n")] {
        if !Path::new(file).exists() {
            fs::write(file, text).with_context(|| format!("write {file}"))?;
        }
    }
    users::prepare()?;
    let world = World::start_with_cri(|shipped| configuration(shipped, systemd))?;
    let kubelet = reporter.must("CRI answers", || {
        let kubelet = Kubelet::connect(systemd)?;
        let detail = format!("containerd {}", kubelet.containerd);
        Ok((kubelet, detail))
    })?;
    reporter.must("images and capsules are there", || {
        import()?;
        for label in ["lib@1", "lib@2", "tool@1"] {
            publish(label, &[])?;
        }
        Ok(((), String::new()))
    })?;
    Ok((world, kubelet))
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let (mut world, kubelet) = begin(reporter, false)?;
    reporter.check("what the handlers can do is told", || life::handlers(&kubelet));
    for handler in [REFERENCE, OURS, BY_PATH] {
        reporter
            .check(&format!("{handler}: a pod, from its start to its end"), || life::life(&kubelet, handler));
        reporter.check(&format!("{handler}: two containers, one of which is restarted"), || {
            life::restarted(&kubelet, handler)
        });
    }
    reporter.check("an image is unpacked into the handler's snapshotter alone", || life::unpacked(&kubelet));
    reporter.check("the files of configs/kubernetes: a pod by them", || shipped::pod(&kubelet));
    if !kubelet.is_old() {
        reporter.check("the files of configs/kubernetes: k3s's template", shipped::k3s);
    }
    reporter
        .check("annotations: capsules for all containers, again after a restart", || capsules::all(&kubelet));
    reporter.check("annotations: for one container of two", || capsules::one(&kubelet));
    reporter.check("annotations: mistakes are told, and nothing is left", || capsules::mistakes(&kubelet));
    reporter.check("by hand: the main job, under readers", || hand::main_job(&kubelet));
    reporter.check("by hand: which container of which pod", || hand::names(&kubelet));
    reporter.check("what a capsule denies is denied to the kubelet's execs", || {
        let pod = kubelet.pod(OURS, "web", &[])?;
        let said = hand::denied(&pod.start("app", kubelet::SLEEP)?)?;
        pod.remove()?;
        Ok(said)
    });
    reporter.check("devices, by whoever names them, once", || devices::once(&mut world, &kubelet));
    if !kubelet.is_old() {
        for handler in [REFERENCE, BY_PATH] {
            reporter.check(&format!("{handler}: hostUsers: false"), || users::mapped(&kubelet, handler));
        }
    }
    reporter.check("containerd is restarted under a pod", || left::restarted(&mut world, &kubelet));
    reporter.check("nothing is left of pods", || left::nothing(&kubelet));
    drop(kubelet);
    world.stop()
}

/// Gives pods the image of their sandboxes and that of their containers, unpacked nowhere.
pub(super) fn import() -> Result<()> {
    let pause = Path::new("/tmp/pause.tar");
    pause::write(pause)?;
    for archive in [pause, &Image::Busybox.in_machine()] {
        let archive = archive.to_str().context("an archive's path is no text")?;
        ctr(&["-n", K8S, "image", "import", "--local", "--no-unpack", archive])?
            .success("import an image")?;
    }
    Ok(())
}

/// containerd's configuration as it is shipped, with what this machine and these cases need.
pub(super) fn configuration(shipped: &str, systemd: bool) -> String {
    let is_old = shipped.contains("\nversion = 2");
    let (runtime, pause) = match is_old {
        true => {
            let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
            // 1.7 gives no devices by CDI unless told to.
            (
                cri,
                format!(
                    "[{cri}]\n  restrict_oom_score_adj = true\n  enable_cdi = true\n  sandbox_image = \"{}\"\n",
                    pause::NAME
                ),
            )
        }
        false => {
            let cri = "plugins.'io.containerd.cri.v1.runtime'";
            let images = "plugins.'io.containerd.cri.v1.images'.pinned_images";
            let pause = format!("[{images}]\n  sandbox = \"{}\"\n", pause::NAME);
            // A native machine may not raise the score.
            (cri, format!("[{cri}]\n  restrict_oom_score_adj = true\n{pause}"))
        }
    };
    let runtimes = format!("{runtime}.containerd.runtimes");
    let text = if systemd {
        shipped.to_owned()
    } else {
        shipped.replace("SystemdCgroup = true", "SystemdCgroup = false")
    };
    // As it is shipped for 1.7 it has this table itself.
    let reference = match text.contains(&format!(".containerd.runtimes.{REFERENCE}]")) {
        true => String::new(),
        false => format!("[{runtimes}.{REFERENCE}]\n  runtime_type = \"io.containerd.runc.v2\"\n"),
    };
    format!(
        "{text}\n{pause}
{reference}  [{runtimes}.{REFERENCE}.options]
    SystemdCgroup = {systemd}
[{runtimes}.{BY_PATH}]
  runtime_type = \"io.containerd.runc.v2\"
  runtime_path = \"/payload/bin/containerd-shim-capsule-v1\"
  snapshotter = \"capsule\"
  pod_annotations = [\"resourcecapsules.io/*\"]
  container_annotations = [\"cdi.k8s.io/*\"]
  [{runtimes}.{BY_PATH}.options]
    SystemdCgroup = {systemd}
"
    )
}
