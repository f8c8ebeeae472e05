//! That nothing is left of pods: neither Kubernetes', nor containerd's, nor ours.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::kubectl::{done, get};
use super::until;
use crate::scenario::capsulectl::ps;
use crate::scenario::cri::{K8S, left};
use crate::scenario::ctr::ctr;
use crate::scenario::runtime::bed::processes_named;

/// Of one pod: the kubelet removes its containers and its sandbox some time after the pod is gone.
pub fn of_pod(uid: &str) -> Result<()> {
    let filter = format!("labels.\"io.kubernetes.pod.uid\"=={uid}");
    until("gone: its containers", || {
        Ok(ctr(&["-n", K8S, "containers", "ls", "-q", &filter])?
            .success("list containers")?
            .trim()
            .is_empty())
    })?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(uid)).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// After all cases.
pub fn nothing() -> Result<String> {
    done(&["delete", "pods,deployments,configmaps", "--all", "--timeout=110s"])?;
    no_pod()?;
    until("ended", || Ok(ps()?.is_empty()))?;
    left::no_trace()
}

/// Of all pods that there were, in whatever namespace: neither containers, nor shims, nor volumes.
pub fn no_pod() -> Result<()> {
    until("gone: all pods", || {
        Ok(get(&["pods", "--all-namespaces"])?["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    until("gone: all containers", || {
        Ok(ctr(&["-n", K8S, "containers", "ls", "-q"])?.success("list containers")?.trim().is_empty())
    })?;
    until("without shims", || Ok(processes_named("containerd-shim")?.is_empty()))?;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").context("read the mount table");
    until("unmounted", || Ok(!mounts()?.contains("/var/lib/kubelet/pods/")))
}
