//! Pods go on while what manages them is away.

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::everyday::SLEEP;
use super::kubectl::{Manifest, done as kubectl};
use super::{OURS, until};
use crate::scenario::capsulectl::{done, ps};
use crate::scenario::world::World;

/// One after the other is killed and started again; the pod's process stays, and takes capsules after each.
pub fn daemons(world: &mut World, cluster: &mut Cluster) -> Result<String> {
    let annotation = [("resourcecapsules.io/attach", "lib@1")];
    let pod = Manifest::new("lasts", OURS, &[("app", SLEEP)]).annotated(&annotation).ready()?;
    let app = pod.member("app")?;
    let (name, pid) = (app.reference(), app.pid()?);
    for daemon in ["kubelet", "containerd", "capsuled"] {
        match daemon {
            "kubelet" => cluster.restart_kubelet()?,
            "containerd" => world.restart_containerd()?,
            _ => {
                world.kill_capsuled()?;
                world.restart_capsuled()?;
            }
        }
        app.expect(&["lib@1 attached"])?;
        done(&["upgrade", &name, "lib"])?;
        done(&["attach", &name, "tool"])?;
        // The kubelet is there again when it answers.
        until("reached by kubectl exec", || {
            Ok(app.exec(&["/bin/cat", "/opt/lib/version", "/opt/tool/version"], b"")?.out == "21")
        })?;
        done(&["detach", &name, "tool"])?;
        done(&["rollback", &name, "lib"])?;
        pod.is_ready()?;
        let now = pod.member("app")?;
        ensure!(
            now.restarts == 0 && now.id == app.id && now.pid()? == pid,
            "after {daemon}: it was restarted"
        );
    }
    // The node takes pods again.
    let late = Manifest::new("late", OURS, &[("app", SLEEP)]).annotated(&annotation).ready()?;
    late.member("app")?.expect(&["lib@1 attached"])?;
    kubectl(&["delete", "pod", "lasts", "late", "--timeout=110s"])?;
    std::mem::forget((pod, late));
    until("ended", || Ok(ps()?.is_empty()))?;
    Ok(String::new())
}
