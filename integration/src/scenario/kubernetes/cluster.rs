//! The programs of a cluster of one node.

use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::files::{ADDRESS, NODE, file};
use super::{PATIENCE, kubectl, until};
use crate::scenario::world::{Daemon, path};

/// etcd and the API server; they are killed when this is dropped.
#[derive(Debug)]
pub struct Control {
    apiserver: Daemon,
    _etcd: Daemon,
}

impl Control {
    /// Starts them.
    pub fn start() -> Result<Self> {
        let mut etcd = start(
            "etcd",
            &["--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--quota-backend-bytes=8000000000"],
        )?;
        etcd.wait_within(PATIENCE, || TcpStream::connect("127.0.0.1:2379").is_ok())?;
        Ok(Self { apiserver: answering()?, _etcd: etcd })
    }
}

/// The programs; they are killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    kubelet: Daemon,
    /// Those that need the others before.
    _controllers: [Daemon; 2],
    control: Control,
}

impl Cluster {
    /// Starts them all, one after the other.
    pub fn start() -> Result<Self> {
        let control = Control::start()?;
        let (private, root) = (file("pki/apiserver.key"), file("pki/apiserver.crt"));
        let controllers = start(
            "kube-controller-manager",
            &[
                &format!("--kubeconfig={}", file("controllers.conf")),
                &format!("--service-account-private-key-file={private}"),
                &format!("--root-ca-file={root}"),
                "--leader-elect=false",
                "--secure-port=0",
            ],
        )?;
        let scheduler = start(
            "kube-scheduler",
            &[&format!("--kubeconfig={}", file("scheduler.conf")), "--leader-elect=false", "--secure-port=0"],
        )?;
        let kubelet = kubelet()?;
        Ok(Self { kubelet, _controllers: [controllers, scheduler], control })
    }

    /// Kills the API server as `kill -9` does, and starts it again after `meanwhile`.
    pub fn without_apiserver<T>(&mut self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        self.control.apiserver.kill()?;
        let done = meanwhile();
        self.control.apiserver = answering()?;
        done
    }

    /// Kills the kubelet as `kill -9` does, and starts it again.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.kill()?;
        self.kubelet = kubelet()?;
        Ok(())
    }
}

fn start(name: &str, arguments: &[&str]) -> Result<Daemon> {
    Daemon::start(name, Command::new(name).args(arguments).env("PATH", path()).env("HOME", "/root"))
}

/// Its certificate it makes by itself; with the key of that, it signs what pods show for themselves as well.
fn apiserver() -> Result<Daemon> {
    let key = file("pki/apiserver.key");
    start(
        "kube-apiserver",
        &[
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--cert-dir={}", file("pki")),
            &format!("--advertise-address={ADDRESS}"),
            // As pods are told it, who have no kube-proxy here.
            "--secure-port=443",
            &format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=Node,RBAC",
            // As kubeadm has it.
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={key}"),
            &format!("--service-account-signing-key-file={key}"),
            "--kubelet-preferred-address-types=InternalIP",
        ],
    )
}

/// The API server, once it answers.
fn answering() -> Result<Daemon> {
    let mut apiserver = apiserver()?;
    apiserver.wait_within(PATIENCE, || {
        kubectl::kubectl(&["get", "--raw", "/readyz"]).is_ok_and(|said| said.out == "ok")
    })?;
    Ok(apiserver)
}

fn kubelet() -> Result<Daemon> {
    start(
        "kubelet",
        &[
            &format!("--config={}", file("kubelet.yaml")),
            &format!("--kubeconfig={}", file("node.conf")),
            &format!("--node-ip={ADDRESS}"),
            &format!("--hostname-override={NODE}"),
        ],
    )
}

/// Waits until the node is ready, and its pods can be made; what `kubectl` says of it.
pub fn node_is_ready() -> Result<String> {
    let said = || kubectl::kubectl(&["get", "node", NODE, "--no-headers", "-o", "wide"]);
    until("a node that is ready", || {
        let said = said()?;
        Ok(said.out.split_ascii_whitespace().nth(1) == Some("Ready"))
    })
    .with_context(|| format!("the node: {:?}", said()))?;
    kubectl::done(&["create", "namespace", kubectl::NAMESPACE])?;
    // A controller makes it; without it no pod is taken.
    until("there: the service account of the namespace", || {
        Ok(kubectl::kubectl(&["get", "serviceaccount", "default"])?.code == 0)
    })?;
    let said = said()?.success("look at the node")?;
    let words: Vec<&str> = said.split_ascii_whitespace().collect();
    ensure!(words.contains(&crate::kubernetes::VERSION), "{said}");
    Ok(words.join(" "))
}
