//! Pods and their containers, asked for as the kubelet does: over containerd's CRI, with the labels that it gives.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::cri::v1::{
    self as cri, ContainerConfig, ContainerMetadata, ContainerState, CreateContainerRequest,
    CreateContainerResponse, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RunPodSandboxRequest, RunPodSandboxResponse,
};
use prost::Message;
use serde_json::Value;

use crate::images::Image;
use crate::scenario::ctr::Output;
use crate::scenario::readers::Inside;
use crate::scenario::runtime::client::{Answer, Client};

/// The Kubernetes namespace of all pods here.
pub const NAMESPACE: &str = "shop";
/// Where logs of pods are.
const LOGS: &str = "/var/log/pods";
/// How long a container may take to get somewhere.
const PATIENCE: Duration = Duration::from_secs(90);

/// What every container here runs unless told otherwise.
pub const SLEEP: &str = "exec sleep 100000";

/// A connection to containerd's CRI.
pub struct Kubelet {
    client: Client,
    /// As pods' control groups are named: by systemd's slices, or by paths.
    pub systemd: bool,
    /// containerd's version.
    pub containerd: String,
}

macro_rules! method {
    ($name:literal) => {
        concat!("/runtime.v1.RuntimeService/", $name)
    };
}

impl Kubelet {
    /// Connects, and waits until CRI answers: it begins to some time after the rest of containerd.
    pub fn connect(systemd: bool) -> Result<Self> {
        let mut kubelet = Self { client: Client::connect()?, systemd, containerd: String::new() };
        kubelet.wait()?;
        let version: cri::VersionResponse =
            kubelet.ask(method!("Version"), cri::VersionRequest::default())?;
        kubelet.containerd = version.runtime_version;
        Ok(kubelet)
    }

    /// Whether containerd is 1.7.
    pub fn is_old(&self) -> bool {
        self.containerd.trim_start_matches('v').starts_with("1.")
    }

    /// Waits until CRI answers, and says that its runtime is ready.
    pub fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.status();
            let ready = answer.as_ref().is_ok_and(|status| {
                let conditions = status.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|one| one.r#type == "RuntimeReady" && one.status)
            });
            if ready {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "CRI is not ready: {answer:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `Status`, with all that is told.
    pub fn status(&self) -> Answer<cri::StatusResponse> {
        self.ask(method!("Status"), cri::StatusRequest { verbose: true })
    }

    /// A call of the runtime service.
    pub fn ask<T: Message + Default + 'static>(
        &self,
        method: &'static str,
        message: impl Message + Default + 'static,
    ) -> Answer<T> {
        self.client.ask(method, message)
    }

    /// All containers' ids, and all sandboxes'.
    pub fn all(&self) -> Result<(Vec<String>, Vec<String>)> {
        let containers: cri::ListContainersResponse =
            self.ask(method!("ListContainers"), cri::ListContainersRequest::default())?;
        let pods: cri::ListPodSandboxResponse =
            self.ask(method!("ListPodSandbox"), cri::ListPodSandboxRequest::default())?;
        let containers = containers.containers.into_iter().map(|one| one.id).collect();
        Ok((containers, pods.items.into_iter().map(|one| one.id).collect()))
    }

    /// Runs a pod with annotations.
    pub fn pod(&self, handler: &str, name: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>> {
        self.pod_with(handler, name, annotations, |_| {})
    }

    /// The same, with more in its configuration.
    pub fn pod_with(
        &self,
        handler: &str,
        name: &str,
        annotations: &[(&str, &str)],
        more: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod<'_>> {
        let uid = format!("uid-{name}");
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: format!("{LOGS}/{NAMESPACE}_{name}_{uid}"),
            labels: owned(&[
                ("io.kubernetes.pod.name", name),
                ("io.kubernetes.pod.namespace", NAMESPACE),
                ("io.kubernetes.pod.uid", &uid),
            ]),
            annotations: owned(annotations),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: if self.systemd { "kubepods.slice" } else { "/kubepods" }.to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Pod)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        more(&mut config);
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let ran: Answer<RunPodSandboxResponse> = self.ask(method!("RunPodSandbox"), request);
        let id = ran.with_context(|| format!("run the pod {name} on {handler}"))?.pod_sandbox_id;
        Ok(Pod { kubelet: self, name: name.to_owned(), id, config })
    }
}

/// Namespaces of a pod whose network is the node's, or its own.
pub fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn owned(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A pod; it is removed with all of its containers when this is dropped.
pub struct Pod<'a> {
    kubelet: &'a Kubelet,
    /// Its name, in [`NAMESPACE`].
    pub name: String,
    /// Its sandbox's id.
    pub id: String,
    /// As it was asked for.
    pub config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// `PodSandboxStatus`.
    pub fn status(&self) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer: cri::PodSandboxStatusResponse = self.kubelet.ask(method!("PodSandboxStatus"), request)?;
        answer.status.context("no status")
    }

    /// A container that runs a script.
    pub fn start(&self, name: &str, script: &str) -> Result<Member<'a>> {
        self.start_with(name, script, |_| {})
    }

    /// The same, with more in its configuration.
    pub fn start_with(
        &self,
        name: &str,
        script: &str,
        more: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Member<'a>> {
        let member = self.create_with(name, script, more)?;
        member.start().with_context(|| format!("start {name}"))?;
        Ok(member)
    }

    /// A container that is only created. A second one of a name is the next attempt, as after a restart.
    pub fn create_with(
        &self,
        name: &str,
        script: &str,
        more: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Member<'a>> {
        let attempt = self.attempts(name)?;
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(ImageSpec { image: Image::Busybox.name().to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            labels: owned(&[
                ("io.kubernetes.container.name", name),
                ("io.kubernetes.pod.name", &self.name),
                ("io.kubernetes.pod.namespace", NAMESPACE),
                ("io.kubernetes.pod.uid", &format!("uid-{}", self.name)),
            ]),
            log_path: format!("{name}/{attempt}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources { cpu_shares: 102, ..Default::default() }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: self.namespaces(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        more(&mut config);
        let logs = format!("{}/{name}", self.config.log_directory);
        fs::create_dir_all(&logs).with_context(|| format!("create {logs}"))?;
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let created: Answer<CreateContainerResponse> = self.kubelet.ask(method!("CreateContainer"), request);
        let id = created.with_context(|| format!("create {name}"))?.container_id;
        let log = format!("{logs}/{attempt}.log");
        Ok(Member { kubelet: self.kubelet, pod: self.name.clone(), name: name.to_owned(), id, log })
    }

    /// Those of the pod, which CRI wants to hear again.
    fn namespaces(&self) -> Option<NamespaceOption> {
        self.config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
    }

    fn attempts(&self, name: &str) -> Result<u32> {
        let filter = cri::ContainerFilter { pod_sandbox_id: self.id.clone(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let all: cri::ListContainersResponse = self.kubelet.ask(method!("ListContainers"), request)?;
        let of_name =
            all.containers.iter().filter_map(|one| one.metadata.as_ref()).filter(|m| m.name == name);
        Ok(of_name.map(|metadata| metadata.attempt + 1).max().unwrap_or_default())
    }

    /// `StopPodSandbox`.
    pub fn stop(&self) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        let stopped: Answer<cri::StopPodSandboxResponse> =
            self.kubelet.ask(method!("StopPodSandbox"), request);
        stopped.map(drop).with_context(|| format!("stop the pod {}", self.name))
    }

    /// Stops and removes it.
    pub fn remove(self) -> Result<()> {
        let removed = self.remove_now();
        std::mem::forget(self);
        removed
    }

    fn remove_now(&self) -> Result<()> {
        self.stop()?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        let removed: Answer<cri::RemovePodSandboxResponse> =
            self.kubelet.ask(method!("RemovePodSandbox"), request);
        removed.map(drop).with_context(|| format!("remove the pod {}", self.name))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let _ = self.remove_now();
    }
}

/// A container of a pod, which it is removed with.
pub struct Member<'a> {
    kubelet: &'a Kubelet,
    pod: String,
    /// Its name in the pod.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The file of its log.
    pub log: String,
}

impl Member<'_> {
    /// As `capsulectl` takes it.
    pub fn reference(&self) -> String {
        format!("pod/{NAMESPACE}/{}/{}", self.pod, self.name)
    }

    /// `StartContainer`.
    pub fn start(&self) -> Answer<()> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.kubelet.ask::<cri::StartContainerResponse>(method!("StartContainer"), request).map(drop)
    }

    /// `ContainerStatus`, and what it tells besides: its process, its spec.
    pub fn status(&self) -> Result<(cri::ContainerStatus, Value)> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let answer: cri::ContainerStatusResponse = self.kubelet.ask(method!("ContainerStatus"), request)?;
        let info = answer.info.get("info").map(|text| serde_json::from_str(text)).transpose()?;
        Ok((answer.status.context("no status")?, info.unwrap_or_default()))
    }

    /// Its process on the node.
    pub fn pid(&self) -> Result<u32> {
        let (_, info) = self.status()?;
        Ok(info["pid"].as_u64().with_context(|| format!("no process: {info}"))?.try_into()?)
    }

    /// Waits for a state.
    pub fn wait_for(&self, state: ContainerState) -> Result<cri::ContainerStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, _) = self.status()?;
            if status.state() == state {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} is {:?}, not {state:?}, after {PATIENCE:?}", self.name, status.state());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `ExecSync`. Of no time limit when `seconds` is 0.
    pub fn exec(&self, command: &[&str], seconds: i64) -> Answer<Output> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: seconds,
        };
        let answer: ExecSyncResponse = self.kubelet.ask(method!("ExecSync"), request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output { out: text(&answer.stdout), err: text(&answer.stderr), code: answer.exit_code })
    }

    /// Runs a script in it, which must succeed; its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(&["/bin/sh", "-c", script], 60).with_context(|| script.to_owned())?.success(script)
    }

    /// `ContainerStats`.
    pub fn stats(&self) -> Result<cri::ContainerStats> {
        let request = cri::ContainerStatsRequest { container_id: self.id.clone() };
        let answer: cri::ContainerStatsResponse = self.kubelet.ask(method!("ContainerStats"), request)?;
        answer.stats.context("no stats")
    }

    /// `UpdateContainerResources`.
    pub fn update(&self, resources: LinuxContainerResources) -> Answer<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        let method = method!("UpdateContainerResources");
        self.kubelet.ask::<cri::UpdateContainerResourcesResponse>(method, request).map(drop)
    }

    /// `StopContainer`, at once.
    pub fn stop(&self) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: 0 };
        let stopped: Answer<cri::StopContainerResponse> = self.kubelet.ask(method!("StopContainer"), request);
        stopped.map(drop).with_context(|| format!("stop {}", self.name))
    }

    /// `RemoveContainer`, which stops it if need be.
    pub fn remove(self) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        let removed: Answer<cri::RemoveContainerResponse> =
            self.kubelet.ask(method!("RemoveContainer"), request);
        removed.map(drop).with_context(|| format!("remove {}", self.name))
    }

    /// The mount table as its first process sees it.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/mountinfo", self.pid()?);
        let table = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(table.lines().map(str::to_owned).collect())
    }
}

impl Inside for Member<'_> {
    /// `ExecSync` waits for all who have its output.
    fn spawn(&self, _: &str, command: &[&str]) -> Result<()> {
        let behind = ["/bin/sh", "-c", "\"$@\" </dev/null >/dev/null 2>&1 &", "sh"];
        let output = self.exec(&[&behind[..], command].concat(), 60).context("run it behind")?;
        output.success("run it behind").map(drop)
    }
}
