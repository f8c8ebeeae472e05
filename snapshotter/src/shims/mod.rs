//! The shims of this node: finding the one that serves a container, and asking it to hot-plug.
//!
//! A shim registers each container it serves in `RUN/tasks/NAMESPACE/CONTAINER.json`; a container without such a
//! file is not on our runtime or has no task. The files are written by root only and are trusted.

mod wire;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use capsule_proto::hotplug::{
    AttachRequest, DetachRequest, HotplugClient, ListRequest, Mode as WireMode, ReplaceRequest,
};
use dashmap::DashMap;
use protobuf::MessageField;
use serde::Deserialize;
use tonic::Code;
use wire::{draining, mounted, notice, user, wire_content, wire_devices, wire_resources, wire_upper};
pub use wire::{wire_hook, wire_node};

use crate::{
    attachments::model::{Attachment, ContainerKey, Content},
    capsules::model::Mode,
    traces,
};

/// How long a shim may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a shim is that knows of no resources, and what to do.
const OLDER_THAN_RESOURCES: &str =
    "of a release before resources: start the container anew, then repeat the call";
const OLDER_THAN_DENIALS: &str = "older than this capsuled and denies no system calls: recreate the container, or use a version that denies none";
/// The registration format that this daemon reads.
const REGISTRATION_VERSION: u32 = 1;

/// A shim that could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The container has no shim of ours.
    #[error("container {0} has no shim of the runtime io.containerd.capsule.v1")]
    NoShim(ContainerKey),
    /// Its registration cannot be read.
    #[error("cannot read the shim's registration {path}: {source}")]
    Registration {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its registration is of another version of the shim.
    #[error(
        "the shim's registration {path} has version {found}, and this capsuled reads {REGISTRATION_VERSION}: install the capsuled of the shim's release"
    )]
    RegistrationVersion {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u32,
    },
    /// It does not answer.
    #[error(
        "the shim of {container} does not answer on {address}: {reason}; if its task is gone, start the container anew"
    )]
    Unreachable {
        /// The container.
        container: ContainerKey,
        /// Its socket.
        address: String,
        /// Why.
        reason: String,
    },
    /// It is as old as its container, and has left out of an attach what it knows nothing of.
    #[error("the shim of {container} is {lacks}{}", if *undone { "" } else { "; what it has attached stays" })]
    Older {
        /// The container.
        container: ContainerKey,
        /// Of what release, and what to do.
        lacks: &'static str,
        /// It is detached again.
        undone: bool,
    },
    /// It answered that it cannot, having changed nothing.
    #[error("{message}")]
    Refused {
        /// Why, as a gRPC code.
        code: Code,
        /// Why, in a line.
        message: String,
    },
}

impl ShimError {
    /// Whether it found no room: in its bundle, or in the container's root.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if crate::full::says(message))
    }
}

/// A process that uses files of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// In the node's PID namespace.
    pub pid: i32,
    /// Its name.
    pub command: String,
    /// The file, as the process names it.
    pub path: String,
    /// "fd 5", "cwd", "root", "exe" or "mmap".
    pub how: String,
}

/// What a shim has mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The attachment's id.
    pub id: String,
    /// Digest of the content mounted.
    pub digest: String,
    /// The kernel's mount table confirms it.
    pub confirmed: bool,
}

/// Content that left its path and is still used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// The attachment it was.
    pub id: String,
    /// The capsule.
    pub capsule: String,
    /// The version.
    pub version: String,
    /// Its identity.
    pub digest: String,
    /// Its directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Where it was.
    pub target: String,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// Who uses it, where that was asked.
    pub users: Vec<User>,
}

/// What a shim has noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Grows with each of a container.
    pub number: u64,
    /// The attachment that it is about.
    pub attachment: String,
    /// When.
    pub at: SystemTime,
    /// What.
    pub kind: capsule_proto::hotplug::NoticeKind,
    /// For people.
    pub text: String,
}

/// A shim's report on one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is mounted.
    pub mounted: Vec<Mounted>,
    /// What is draining.
    pub draining: Vec<Draining>,
    /// Limits that no attachment changes any more are still to be put back.
    pub limits_left: bool,
}

/// What came of a look at a container, by its shim.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// What the shim has noticed.
    pub notices: Vec<Notice>,
    /// As of [`Report`].
    pub limits_left: bool,
}

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

    /// Mounts the attachment's current content and gives its devices.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn attach(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.attach_as(attachment, false).await
    }

    /// Mounts again what was there a moment ago, whatever the container uses by now.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn attach_back(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.attach_as(attachment, true).await
    }

    async fn attach_as(&self, attachment: &Attachment, undoing: bool) -> Result<(), ShimError> {
        let mut request = AttachRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.undoing = undoing;
        if attachment.has_capsule() {
            request.content = MessageField::some(wire_content(attachment, &attachment.current));
        }
        request.devices = attachment.devices.as_ref().map(wire_devices).into();
        request.target = attachment.target.clone();
        request.mode = match attachment.mode {
            Mode::Ro => WireMode::RO,
            Mode::Union => WireMode::UNION,
        }
        .into();
        request.upper = attachment.upper.as_ref().map(wire_upper).into();
        request.resources = wire_resources(&attachment.current.resources).into();
        let (asks_devices, asks_resources) = (request.devices.is_some(), request.resources.is_some());
        let denied = request.content.denied_calls.clone();
        let reply = self
            .call(&attachment.container, request, |client, request| async move {
                client.attach(context(), &request).await
            })
            .await?;
        traces::relay(&reply.spans);
        let lacks = if asks_devices && !reply.attachment.has_devices {
            "of a release before devices: start the container anew, then attach"
        } else if asks_resources && !reply.attachment.has_resources {
            OLDER_THAN_RESOURCES
        } else if reply.attachment.content.denied_calls != denied {
            OLDER_THAN_DENIALS
        } else if attachment.upper.is_some() && !reply.attachment.writable {
            "older than this capsuled and attaches read-only: recreate the container, or attach read-only"
        } else {
            return Ok(());
        };
        // Half of what was asked for: whoever is told that it is there would find out by an error, much later.
        let undone = matches!(self.detach(attachment, true).await, Ok((true, _)));
        Err(ShimError::Older { container: attachment.container.clone(), lacks, undone })
    }

    /// Puts `content` in the place of what the attachment has mounted.
    pub async fn replace(&self, attachment: &Attachment, content: &Content) -> Result<(), ShimError> {
        self.replace_as(attachment, content, false).await
    }

    /// Puts the attachment's current content back, whatever the container uses by now.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn replace_back(&self, attachment: &Attachment) -> Result<(), ShimError> {
        self.replace_as(attachment, &attachment.current, true).await
    }

    async fn replace_as(
        &self,
        attachment: &Attachment,
        content: &Content,
        undoing: bool,
    ) -> Result<(), ShimError> {
        let mut request = ReplaceRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.content = MessageField::some(wire_content(attachment, content));
        request.resources = wire_resources(&content.resources).into();
        request.undoing = undoing;
        let (asks, denied) = (request.resources.is_some(), request.content.denied_calls.clone());
        let replace = async |request: ReplaceRequest| {
            self.call(&attachment.container, request, |client, request| async move {
                client.replace(context(), &request).await
            })
            .await
        };
        let reply = replace(request.clone()).await?;
        traces::relay(&reply.spans);
        let lacks = if asks && !reply.attachment.has_resources {
            OLDER_THAN_RESOURCES
        } else if reply.attachment.content.denied_calls != denied {
            OLDER_THAN_DENIALS
        } else {
            return Ok(());
        };
        request.content = reply.replaced.0.map(|content| *content).into();
        request.resources = MessageField::none();
        let undone = replace(request).await.is_ok();
        let container = attachment.container.clone();
        Err(ShimError::Older { container, lacks, undone })
    }

    /// Unmounts the attachment. False, with its users, if it is in use and `lazy` is not set; true with users if it
    /// drains.
    pub async fn detach(&self, attachment: &Attachment, lazy: bool) -> Result<(bool, Vec<User>), ShimError> {
        let mut request = DetachRequest::new();
        request.container_id = attachment.container.id.clone();
        request.attachment_id = attachment.id.clone();
        request.lazy = lazy;
        let reply = self
            .call(&attachment.container, request, |client, request| async move {
                client.detach(context(), &request).await
            })
            .await?;
        traces::relay(&reply.spans);
        Ok((reply.detached, reply.users.into_iter().map(user).collect()))
    }

    /// What the shim has for a container; with `with_users`, who uses what is draining.
    pub async fn list(&self, container: &ContainerKey, with_users: bool) -> Result<Report, ShimError> {
        let mut request = ListRequest::new();
        request.container_id = container.id.clone();
        request.with_users = with_users;
        let reply = self
            .call(container, request, |client, request| async move { client.list(context(), &request).await })
            .await?;
        Ok(Report {
            mounted: reply.attachments.into_iter().map(mounted).collect(),
            draining: reply.draining.into_iter().map(draining).collect(),
            limits_left: reply.limits_left,
        })
    }

    /// Has the shim look at a container, and gives what it has noticed since the notice of this number; those up to it, it forgets.
    ///
    /// # Errors
    /// [`ShimError`].
    pub async fn notices(&self, container: &ContainerKey, after: u64) -> Result<Look, ShimError> {
        let mut request = ListRequest::new();
        request.container_id = container.id.clone();
        request.notices_after = after;
        let reply = self
            .call(container, request, |client, request| async move { client.list(context(), &request).await })
            .await?;
        let limits_left = reply.limits_left;
        Ok(Look { notices: reply.notices.into_iter().map(notice).collect(), limits_left })
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

fn context() -> ttrpc::context::Context {
    traces::context(DEADLINE)
}

/// ttrpc's own client reports a connection that broke under a call as a status of its own making, and its server a
/// deadline that passed while the call goes on: in neither case has the shim refused.
fn is_transport(status: &ttrpc::Status) -> bool {
    matches!(status.code(), ttrpc::Code::UNAVAILABLE | ttrpc::Code::DEADLINE_EXCEEDED)
}

fn refused(status: ttrpc::Status) -> ShimError {
    use ttrpc::Code as Theirs;
    let code = match status.code() {
        Theirs::NOT_FOUND => Code::NotFound,
        Theirs::ALREADY_EXISTS => Code::AlreadyExists,
        Theirs::FAILED_PRECONDITION => Code::FailedPrecondition,
        Theirs::INVALID_ARGUMENT => Code::InvalidArgument,
        Theirs::UNIMPLEMENTED => Code::Unimplemented,
        Theirs::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    ShimError::Refused { code, message: status.message }
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
