//! Hot-plug: capsules attached to, replaced in and detached from live containers (`capsule.hotplug.v1`).
//!
//! Rooms, each of which may use only those to its right:
//! `service` (ttrpc) → `engine` (transactions, one lock per container) → `scene` (a container during a call), `capsule`
//! (a capsule's tree) and `journal` (what is attached, in the bundle) → `plan` (pure: which mounts make an attachment)
//! and `model` (validated types; `edits`, those of devices) → `kernel` (what it can do, probed when first needed) → `overlayfs-utils` (the kernel).
//!
//! Beside them: `notices` (what capsuled is to be told), `config` (what devices need of `config.json`), `own` (pure: what the container has of them by itself),
//! `steps` (how long parts of a call took), `limited` (pure: what attachments do to limits) and `execs` (pure: what attachments give and deny to later processes).
//!
//! This module is the seam to the rest of the shim: hot-plug asks the task side where a container's live task is,
//! through [`Tasks`], and asks nothing else.

mod capsule;
mod config;
mod edits;
mod engine;
mod entry;
mod error;
mod execs;
mod journal;
mod kernel;
mod known;
mod limited;
mod model;
mod notices;
mod own;
mod plan;
mod scene;
mod service;
mod steps;

use std::{
    os::fd::OwnedFd,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use error::JournalError;
use thiserror::Error;

use crate::{
    caller, creation,
    oci::RuntimeError,
    reaper::Reaper,
    seccomp::{Denied, RecordError},
};

/// What hot-plug asks of the task side.
///
/// Called from the ttrpc server's tasks: an implementation answers from memory and must not block.
pub trait Tasks: Send + Sync + 'static {
    /// The live task of a container.
    ///
    /// # Errors
    /// [`TaskLookupError`] when the shim does not serve the container, or its init process is not running.
    fn live(&self, container_id: &str) -> Result<LiveTask, TaskLookupError>;

    /// Ids of all containers that the shim serves, in whatever state.
    fn ids(&self) -> Vec<String>;
}

/// Where a container's live task is.
#[derive(Debug, Clone)]
pub struct LiveTask {
    /// The container's init process, which may have ended: hot-plug enters nothing without having seen that it has not.
    pub init: Arc<OwnedFd>,
    /// Its number in the host's PID namespace, which may be another process' once it has ended.
    pub init_pid: i32,
    /// The bundle directory: owned by the host, out of the container's reach. Hot-plug keeps its journal here.
    pub bundle: PathBuf,
    /// The container's root as the host sees it, mounted: the source of a union's own lower layer.
    pub rootfs: PathBuf,
    /// Its control group, where the hierarchy is unified: only there can devices be given to a live container.
    pub cgroup: Option<PathBuf>,
    /// Its runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Whether the container may be given capsules.
    pub takes_capsules: bool,
    /// Whether its first process runs: what that is denied is settled then.
    pub has_begun: bool,
}

/// The runtime of one container, as far as hot-plug needs it.
pub trait Runtime: std::fmt::Debug + Send + Sync {
    /// Changes the container's resources to `resources`, the JSON of OCI's `LinuxResources`. Blocks.
    ///
    /// # Errors
    /// What the runtime says.
    fn update(&self, resources: &[u8]) -> Result<(), RuntimeError>;

    /// Whether processes that are started later can be denied these system calls besides what the container is.
    ///
    /// # Errors
    /// [`RecordError`] says why not.
    fn check_denials(&self, denied: &Denied) -> Result<(), RecordError>;
}

/// Why there is no live task.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TaskLookupError {
    /// The shim does not serve this container.
    #[error("container {0:?} is not served by this shim")]
    NotFound(String),
    /// The container is there, and its init process is not.
    #[error("container {id:?} is {state}, not running: start it, then repeat the call")]
    NotRunning {
        /// The container.
        id: String,
        /// Its state, as containerd names it: "created" or "stopped"
        state: String,
    },
}

/// Why the hot-plug service did not start.
#[derive(Debug, Error)]
pub enum HotplugError {
    /// The socket's directory could not be made.
    #[error("cannot create the socket's directory {path}")]
    SocketDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The ttrpc server could not listen on the socket.
    #[error("cannot serve hot-plug on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ttrpc::Error,
    },
    /// The socket's mode could not be restricted to root.
    #[error("cannot restrict the socket {path} to its owner")]
    Restrict {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A running hot-plug server. Dropping it stops listening; calls at work are finished.
pub struct Server {
    _listening: ttrpc::asynchronous::Server,
    engine: Arc<engine::Engine>,
    socket: PathBuf,
    /// Device and inode of the socket: a later shim of the same container puts another in its place.
    identity: (u64, u64),
}

impl Server {
    /// A handle to what an update of a task is to leave as it is.
    pub fn given(&self) -> Given {
        Given(Arc::clone(&self.engine))
    }

    /// Removes the socket, unless it is another shim's by now.
    ///
    /// # Errors
    /// The kernel's, when it is there and stays.
    pub fn remove_socket(&self) -> std::io::Result<()> {
        if identity(&self.socket).is_some_and(|now| now == self.identity) {
            std::fs::remove_file(&self.socket)?;
        }
        Ok(())
    }
}

/// Why an update of a task was not done.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The runtime refused it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It could not be brought together with the limits that attachments change.
    #[error("the update cannot be brought together with what attachments do to the container's limits")]
    Limits(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It ended early.
    #[error("the update ended early: see the shim's log")]
    Ended,
}

impl From<error::EngineError> for UpdateError {
    fn from(error: error::EngineError) -> Self {
        match error {
            error::EngineError::Runtime(error) => Self::Runtime(error),
            other => Self::Limits(Box::new(other)),
        }
    }
}

/// The devices and limits that live containers were given: cheap to clone.
#[derive(Clone)]
pub struct Given(Arc<engine::Engine>);

impl Given {
    /// Does an update of a container's task, so that it changes the container's own limits and undoes nothing that attachments do to
    /// them. `resources` go to the runtime as they came where attachments do nothing.
    ///
    /// # Errors
    /// [`UpdateError`]; then the limits are as they were.
    pub async fn update(
        &self,
        container: &str,
        resources: &[u8],
        runtime: Arc<dyn Runtime>,
    ) -> Result<(), UpdateError> {
        let (engine, id, resources) = (Arc::clone(&self.0), container.to_owned(), resources.to_owned());
        let update = caller::on_thread(move || engine.update(&id, &resources, runtime.as_ref()));
        tokio::task::spawn_blocking(update).await.unwrap_or(Err(UpdateError::Ended))
    }

    /// Has a container's programs allow its devices again, where an update of its task, or somebody else, has changed them. What
    /// cannot be is logged: the update itself is done.
    pub async fn apply_devices(&self, container: &str) {
        let (engine, id) = (Arc::clone(&self.0), container.to_owned());
        let applied = tokio::task::spawn_blocking(move || engine.apply_devices(&id)).await;
        if let Ok(Err(error)) = applied
            && !error.is_of_ended_task()
        {
            log::error!(
                "container {container}: its devices may not be allowed any more: {}",
                crate::engine::chain(&error)
            );
        }
    }
}

/// What attachments in the container of `bundle`, and devices from its creation, give to processes that are started later: adds it to an
/// OCI process, and returns the system calls that they deny to it.
///
/// # Errors
/// [`JournalError`] when the journal cannot be read.
pub fn add_to_process(bundle: &Path, process: &mut serde_json::Value) -> Result<Denied, JournalError> {
    let journal = journal::Journal::read_any(bundle)?;
    let (capsules, records) =
        journal.map(|journal| (journal.attachments, journal.devices)).unwrap_or_default();
    let created = creation::given(bundle).unwrap_or_default();
    let has_env = capsules.iter().any(|record| !record.spec.content.env.is_empty());
    if created.is_some() || has_env || !records.is_empty() {
        let own = || config::Config::read(bundle).map(|config| config.env).unwrap_or_default();
        let created = created.unwrap_or_else(|| creation::Given { own_env: own(), ..Default::default() });
        execs::add_to_process(process, &created, &capsules, &records);
    }
    Ok(execs::denied(&capsules))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Serves `capsule.hotplug.v1` for the containers of `tasks` on `socket`, a path that is replaced if it is there.
///
/// The socket and its directory are accessible to root alone (0600, 0700).
///
/// # Errors
/// [`HotplugError`], by step.
pub async fn serve(
    tasks: Arc<dyn Tasks>,
    reaper: Arc<Reaper>,
    socket: &Path,
) -> Result<Server, HotplugError> {
    let engine = engine::Engine::new(tasks, kernel::Kernel::default()).with_reaper(reaper);
    let engine = Arc::new(engine);
    prepare_socket(socket)?;
    let failed = |source| HotplugError::Listen { path: socket.to_owned(), source };
    let mut server = ttrpc::asynchronous::Server::new()
        .bind(&format!("unix://{}", socket.display()))
        .map_err(failed)?
        .register_service(capsule_proto::hotplug::create_hotplug(Arc::new(service::Service::new(
            Arc::clone(&engine),
        ))));
    // The directory lets nobody but root in, so nobody can have connected in between.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(|source| HotplugError::Restrict { path: socket.to_owned(), source })?;
    server.start().await.map_err(failed)?;
    let identity = identity(socket).unwrap_or_default();
    Ok(Server { _listening: server, engine, socket: socket.to_owned(), identity })
}

/// What is attached in the container of `bundle`, as `CAPSULE@VERSION at TARGET`, and the nodes of devices.
///
/// # Errors
/// [`JournalError`] when the journal cannot be read.
pub fn attached(bundle: &Path) -> Result<Vec<String>, JournalError> {
    let journal = journal::Journal::read_any(bundle)?;
    let (records, devices) = journal.map(|j| (j.attachments, j.devices)).unwrap_or_default();
    let capsules = records.iter().map(|record| format!("{} at {}", record.spec.content, record.spec.target));
    let nodes = devices.iter().flat_map(|record| &record.edits.nodes);
    Ok(capsules.chain(nodes.map(|node| format!("a device at {}", node.path))).collect())
}

fn prepare_socket(socket: &Path) -> Result<(), HotplugError> {
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| HotplugError::SocketDir { path: dir.to_owned(), source })?;
    }
    // A socket left by a shim that was killed: nobody listens on it, and bind would fail. Any other failure to
    // remove it shows in bind.
    let _ = std::fs::remove_file(socket);
    Ok(())
}
