//! Processes run in a container's task beside its own.

use std::time::Duration;

use capsule_proto::containerd::services::{
    containers::v1::{GetContainerRequest, containers_client::ContainersClient},
    tasks::v1::{
        DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
        tasks_client::TasksClient,
    },
};
use prost_types::Any;
use tokio::time::timeout;
use tonic::Code;

use super::{ContainerdError, Scope};

/// By which containerd's clients and shims name a process of the OCI runtime specification.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl Scope {
    /// A container's OCI specification, as JSON; `None` if there is no such container, or it has none.
    ///
    /// # Errors
    /// containerd's.
    pub async fn spec(&self, container: &str) -> Result<Option<Vec<u8>>, ContainerdError> {
        let request = self.request(GetContainerRequest { id: container.to_owned() });
        match ContainersClient::new(self.channel()).get(request).await {
            Ok(reply) => Ok(reply.into_inner().container.and_then(|c| c.spec).map(|spec| spec.value)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("look up the container {container}"), status)),
        }
    }

    /// Starts a process, given as JSON, in a container's task. What it writes to either stream goes to the FIFO `output`.
    /// It is to be deleted whether or not this succeeds.
    ///
    /// # Errors
    /// containerd's, and the runtime's where the process cannot be started.
    pub async fn exec(
        &self,
        container: &str,
        id: &str,
        process: Vec<u8>,
        output: &str,
    ) -> Result<(), ContainerdError> {
        let failed = |status| self.failed(&format!("run a command in {container}"), status);
        let mut client = TasksClient::new(self.channel());
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            exec_id: id.to_owned(),
            stdout: output.to_owned(),
            stderr: output.to_owned(),
            spec: Some(Any { type_url: PROCESS.to_owned(), value: process }),
            ..Default::default()
        };
        client.exec(self.request(request)).await.map_err(failed)?;
        let request = StartRequest { container_id: container.to_owned(), exec_id: id.to_owned() };
        client.start(self.request(request)).await.map_err(failed)?;
        Ok(())
    }

    /// Waits for the end of a process, and gives its exit status.
    ///
    /// # Errors
    /// containerd's.
    pub async fn wait_exec(&self, container: &str, id: &str) -> Result<u32, ContainerdError> {
        let request = WaitRequest { container_id: container.to_owned(), exec_id: id.to_owned() };
        let reply = TasksClient::new(self.channel()).wait(self.request(request)).await;
        Ok(reply
            .map_err(|e| self.failed(&format!("wait for a command in {container}"), e))?
            .into_inner()
            .exit_status)
    }

    /// Kills a process, and waits until it is gone; one that is not there is a success.
    ///
    /// # Errors
    /// containerd's.
    pub async fn delete_exec(&self, container: &str, id: &str) -> Result<(), ContainerdError> {
        let (container_id, exec_id) = (container.to_owned(), id.to_owned());
        let mut client = TasksClient::new(self.channel());
        let request = DeleteProcessRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        match client.delete_process(self.request(request.clone())).await {
            Err(status) if status.code() != Code::NotFound => {}
            _ => return Ok(()),
        }
        let kill = KillRequest { container_id, exec_id, signal: KILL, all: false };
        // It may have ended meanwhile: what counts is whether it can be deleted.
        client.kill(self.request(kill)).await.ok();
        timeout(PATIENCE, self.wait_exec(container, id)).await.ok();
        match client.delete_process(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&format!("end a command in {container}"), status)),
        }
    }
}

/// How long a killed process may take to end: one that waits for a device does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// `SIGKILL`.
const KILL: u32 = 9;
