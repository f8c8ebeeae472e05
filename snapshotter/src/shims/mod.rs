//! The shims of this node: finding the one that serves a container, and asking it to hot-plug.
//!
//! A shim registers each container it serves in `RUN/tasks/NAMESPACE/CONTAINER.json`; a container without such a
//! file is not on our runtime or has no task. The files are written by root only and are trusted.
//!
//! Rooms: `calls` (one function for each call) → `wire` (messages, from and to what this daemon works with), `model` (what shims report) and
//! `error`. This module finds the shim and keeps its connection.

mod calls;
mod error;
mod model;
mod wire;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use capsule_proto::hotplug::HotplugClient;
use dashmap::DashMap;
pub use error::ShimError;
use error::refused;
pub use model::{Draining, Look, Mounted, Notice, Report, User};
use serde::Deserialize;
pub use wire::{wire_hook, wire_node};

use crate::attachments::model::ContainerKey;

/// How long a shim may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The registration format that this daemon reads.
const REGISTRATION_VERSION: u32 = 1;

#[derive(Debug, Deserialize)]
struct Registration {
    version: u32,
    address: String,
}

/// The shims: cheap to clone, shared connections.
#[derive(Clone)]
pub struct Shims {
    /// `RUN/tasks`.
    registrations: PathBuf,
    /// By address. A container's next shim may have the address of its last: a client that fails is dropped.
    clients: Arc<DashMap<String, HotplugClient>>,
}

impl Shims {
    /// The shims that register below `run`.
    pub fn new(run: &Path) -> Self {
        Self { registrations: run.join("tasks"), clients: Arc::default() }
    }

    /// True if a shim of ours serves the container.
    pub fn serves(&self, container: &ContainerKey) -> bool {
        self.registration_path(container).exists()
    }

    /// All containers that shims of ours serve.
    pub fn containers(&self) -> io::Result<Vec<ContainerKey>> {
        let mut found = Vec::new();
        for namespace in read_dir_or_empty(&self.registrations)? {
            let Ok(name) = namespace.file_name().into_string() else { continue };
            for file in read_dir_or_empty(&namespace.path())? {
                let file = file.file_name();
                if let Some(id) = file.to_str().and_then(|f| f.strip_suffix(".json")) {
                    found.push(ContainerKey { namespace: name.clone(), id: id.to_owned() });
                }
            }
        }
        Ok(found)
    }

    /// Calls the container's shim, once more if the connection turns out to be that of an earlier shim: every call
    /// of the service may be repeated.
    async fn call<Q: Clone, T, F: Future<Output = ttrpc::Result<T>> + Send>(
        &self,
        container: &ContainerKey,
        request: Q,
        call: impl Fn(HotplugClient, Q) -> F,
    ) -> Result<T, ShimError> {
        let address = self.address(container)?;
        let unreachable = |e: &ttrpc::Error| ShimError::Unreachable {
            container: container.clone(),
            address: address.clone(),
            reason: e.to_string(),
        };
        let kept = self.clients.get(&address).map(|c| c.value().clone());
        if let Some(client) = kept {
            let began = Instant::now();
            match call(client, request.clone()).await {
                Ok(reply) => return Ok(reply),
                // An earlier shim of the container may still be about its last events, and knows of none any more.
                Err(ttrpc::Error::RpcStatus(status))
                    if !is_transport(&status) && status.code() != ttrpc::Code::NOT_FOUND =>
                {
                    return Err(refused(status));
                }
                Err(e) => {
                    drop(self.clients.remove(&address));
                    // A shim that let the deadline pass is there, and would do so again.
                    if began.elapsed() >= DEADLINE {
                        return Err(unreachable(&e));
                    }
                }
            }
        }
        let client = ttrpc::r#async::Client::connect(&format!("unix://{address}"))
            .await
            .map_err(|e| unreachable(&e))?;
        let client = HotplugClient::new(client);
        match call(client.clone(), request).await {
            Ok(reply) => {
                self.clients.insert(address, client);
                Ok(reply)
            }
            Err(ttrpc::Error::RpcStatus(status)) if !is_transport(&status) => {
                self.clients.insert(address, client);
                Err(refused(status))
            }
            Err(e) => Err(unreachable(&e)),
        }
    }

    fn address(&self, container: &ContainerKey) -> Result<String, ShimError> {
        let path = self.registration_path(container);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ShimError::NoShim(container.clone()));
            }
            Err(source) => return Err(ShimError::Registration { path, source }),
        };
        let registration: Registration = serde_json::from_slice(&bytes)
            .map_err(|e| ShimError::Registration { path: path.clone(), source: e.into() })?;
        if registration.version != REGISTRATION_VERSION {
            return Err(ShimError::RegistrationVersion { path, found: registration.version });
        }
        Ok(registration.address)
    }

    fn registration_path(&self, container: &ContainerKey) -> PathBuf {
        self.registrations.join(&container.namespace).join(format!("{}.json", container.id))
    }
}

/// A directory that is not there is empty: no shim has registered yet.
fn read_dir_or_empty(path: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// ttrpc's own client reports a connection that broke under a call as a status of its own making, and its server a
/// deadline that passed while the call goes on: in neither case has the shim refused.
fn is_transport(status: &ttrpc::Status) -> bool {
    matches!(status.code(), ttrpc::Code::UNAVAILABLE | ttrpc::Code::DEADLINE_EXCEEDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> ContainerKey {
        ContainerKey { namespace: "default".into(), id: id.into() }
    }

    #[test]
    fn registrations_are_found_and_read() {
        let run = tempfile::tempdir().unwrap();
        let shims = Shims::new(run.path());
        assert_eq!(shims.containers().unwrap(), []);
        let dir = run.path().join("tasks/default");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(
            dir.join("a.b.json"),
            r#"{"version":1,"address":"/x.sock","bundle":"/b","shim_pid":3}"#,
        )
        .unwrap();
        std::fs::write(dir.join("half.tmp"), "").unwrap();
        assert_eq!(shims.containers().unwrap(), [key("a.b")]);
        assert_eq!(shims.address(&key("a.b")).unwrap(), "/x.sock");
        assert!(matches!(shims.address(&key("other")), Err(ShimError::NoShim(_))));
        std::fs::write(dir.join("new.json"), r#"{"version":2,"address":"/x.sock"}"#).unwrap();
        assert!(matches!(shims.address(&key("new")), Err(ShimError::RegistrationVersion { found: 2, .. })));
        std::fs::write(dir.join("bad.json"), "{").unwrap();
        assert!(matches!(shims.address(&key("bad")), Err(ShimError::Registration { .. })));
    }

    #[tokio::test]
    async fn a_shim_that_is_gone_is_said_to_be() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("tasks/default");
        std::fs::create_dir_all(&dir).unwrap();
        let socket = run.path().join("none.sock");
        let text = format!(r#"{{"version":1,"address":"{}"}}"#, socket.display());
        std::fs::write(dir.join("c.json"), text).unwrap();
        let refused = Shims::new(run.path()).list(&key("c"), false).await.unwrap_err();
        assert!(matches!(refused, ShimError::Unreachable { .. }), "{refused}");
    }
}
