//! A client of containerd's API, as `ctr` is one, without the time that a program takes to start.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use capsule_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use capsule_proto::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, container,
};
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use capsule_proto::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use capsule_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use capsule_proto::containerd::services::tasks::v1::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, KillRequest,
    StartRequest, WaitRequest,
};
use capsule_proto::containerd::types::Mount;
use prost_types::Any;
use serde_json::{Value, json};
use tonic::Request;
use tonic::transport::Channel;

use super::subject::Subject;
use crate::scenario::ctr::run as run_program;
use crate::scenario::snapshotters::client::{NAMESPACE, connect, request};
use crate::scenario::snapshotters::subject::CONTAINERD;

/// What containerd's collector never takes.
const ROOT_LABEL: &str = "containerd.io/gc.root";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Containers of one such group share a shim, with containerd's own runtime as with ours.
const GROUP: &str = "io.containerd.runc.v2.group";

/// What containers of an image are made like: as `ctr` makes them.
#[derive(Debug, Clone)]
pub struct Template {
    type_url: String,
    spec: Value,
    /// The snapshot of the image.
    parent: String,
}

/// Where a process' output goes.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// A FIFO or a log URI; nothing. Errors go there too: containerd's own shim takes no FIFO for one alone.
    pub stdout: String,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Client {
    containers: ContainersClient<Channel>,
    snapshots: SnapshotsClient<Channel>,
    tasks: TasksClient<Channel>,
}

fn in_namespace<T>(message: T) -> Request<T> {
    request(message, None)
}

impl Client {
    /// Connects to containerd.
    pub async fn connect() -> Result<Self> {
        let channel = connect(Path::new(CONTAINERD)).await?;
        Ok(Self {
            containers: ContainersClient::new(channel.clone()),
            snapshots: SnapshotsClient::new(channel.clone()),
            tasks: TasksClient::new(channel),
        })
    }

    /// Has `ctr` describe a container of `image`, which is unpacked with `snapshotter`.
    pub async fn template(&mut self, snapshotter: &str, image: &str) -> Result<Template> {
        let id = format!("template-{snapshotter}");
        let args = ["-n", NAMESPACE, "container", "create", "--snapshotter", snapshotter, image, &id];
        run_program("ctr", &args, b"")?.success("ctr container create")?;
        let made = self.containers.get(in_namespace(GetContainerRequest { id: id.clone() })).await;
        let made = made.context("get the template")?.into_inner().container.context("no container")?;
        let spec = made.spec.context("a container without a spec")?;
        let message = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: made.snapshot_key };
        let stat = self.snapshots.stat(in_namespace(message)).await.context("stat the template")?;
        let parent = stat.into_inner().info.context("a snapshot without a record")?.parent;
        run_program("ctr", &["-n", NAMESPACE, "container", "rm", &id], b"")?.success("ctr container rm")?;
        let value = serde_json::from_slice(&spec.value).context("the template's spec")?;
        Ok(Template { type_url: spec.type_url, spec: value, parent })
    }

    /// Records a container and prepares its root.
    pub async fn make(
        &mut self,
        subject: &Subject,
        template: &Template,
        id: &str,
        args: &[&str],
        group: Option<&str>,
    ) -> Result<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: subject.snapshotter.to_owned(),
            key: id.to_owned(),
            parent: template.parent.clone(),
            labels: HashMap::from([(ROOT_LABEL.to_owned(), "bench".to_owned())]),
        };
        let prepared = self.snapshots.prepare(in_namespace(message)).await.context("prepare a root")?;
        let mut spec = template.spec.clone();
        spec["process"]["args"] = json!(args);
        spec["linux"]["cgroupsPath"] = json!(format!("/{NAMESPACE}/{id}"));
        if let Some(group) = group {
            spec["annotations"] = json!({ GROUP: group });
        }
        let container = Container {
            id: id.to_owned(),
            runtime: Some(container::Runtime { name: subject.runtime.to_owned(), options: None }),
            spec: Some(Any { type_url: template.type_url.clone(), value: spec.to_string().into() }),
            snapshotter: subject.snapshotter.to_owned(),
            snapshot_key: id.to_owned(),
            ..Default::default()
        };
        let message = CreateContainerRequest { container: Some(container) };
        self.containers.create(in_namespace(message)).await.context("create a container")?;
        Ok(prepared.into_inner().mounts)
    }

    /// Removes a container without a task, and its root.
    pub async fn unmake(&mut self, subject: &Subject, id: &str) -> Result<()> {
        let message = DeleteContainerRequest { id: id.to_owned() };
        self.containers.delete(in_namespace(message)).await.context("delete a container")?;
        let message =
            RemoveSnapshotRequest { snapshotter: subject.snapshotter.to_owned(), key: id.to_owned() };
        self.snapshots.remove(in_namespace(message)).await.context("remove a root").map(drop)
    }

    /// Has the shim started and the container created.
    pub async fn create(&mut self, id: &str, rootfs: Vec<Mount>, output: &Output) -> Result<()> {
        let message = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: output.stdout.clone(),
            stderr: output.stdout.clone(),
            ..Default::default()
        };
        self.tasks.create(in_namespace(message)).await.with_context(|| format!("create task {id}")).map(drop)
    }

    /// Adds a process like the container's first, with other arguments.
    pub async fn exec(&mut self, template: &Template, id: &str, exec_id: &str, args: &[&str]) -> Result<()> {
        let mut process = template.spec["process"].clone();
        process["args"] = json!(args);
        let spec = Any { type_url: PROCESS.to_owned(), value: process.to_string().into() };
        let message = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            spec: Some(spec),
            ..Default::default()
        };
        self.tasks.exec(in_namespace(message)).await.with_context(|| format!("exec in {id}")).map(drop)
    }

    /// Starts the first process, or with an `exec_id` another; its pid.
    pub async fn start(&mut self, id: &str, exec_id: &str) -> Result<u32> {
        let message = StartRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        let started = self.tasks.start(in_namespace(message)).await;
        Ok(started.with_context(|| format!("start {id} {exec_id}"))?.into_inner().pid)
    }

    /// Waits for the end of a process; its exit status.
    pub async fn wait(&mut self, id: &str, exec_id: &str) -> Result<u32> {
        let message = WaitRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        let ended = self.tasks.wait(in_namespace(message)).await;
        Ok(ended.with_context(|| format!("wait for {id} {exec_id}"))?.into_inner().exit_status)
    }

    /// Forgets a process that has ended.
    pub async fn delete_exec(&mut self, id: &str, exec_id: &str) -> Result<()> {
        let message = DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        self.tasks.delete_process(in_namespace(message)).await.context("delete an exec").map(drop)
    }

    /// Kills a container's first process and waits for its end.
    pub async fn kill(&mut self, id: &str) -> Result<()> {
        let message = KillRequest { container_id: id.to_owned(), signal: 9, all: true, ..Default::default() };
        self.tasks.kill(in_namespace(message)).await.with_context(|| format!("kill {id}"))?;
        self.wait(id, "").await.map(drop)
    }

    /// Forgets a task that has ended; its shim ends with its last.
    pub async fn delete(&mut self, id: &str) -> Result<()> {
        let message = DeleteTaskRequest { container_id: id.to_owned() };
        self.tasks.delete(in_namespace(message)).await.with_context(|| format!("delete task {id}")).map(drop)
    }

    /// Kills a container and removes all of it.
    pub async fn remove(&mut self, subject: &Subject, id: &str) -> Result<()> {
        self.kill(id).await?;
        self.delete(id).await?;
        self.unmake(subject, id).await
    }
}
