//! One container: its init, its execs, and what it has on the host.
//!
//! `launch` makes processes, `end` ends them; here is what can be asked of the container between.

mod checkpoint;
mod end;
mod freeze;
mod launch;
mod orphans;
mod pids;
mod resources;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
};

pub use checkpoint::Checkpoint;
use containerd_shim::protos::events::task::{TaskExecAdded, TaskExecStarted, TaskStart};
pub use end::clean_up;
use launch::{Launch, Launched};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    EngineError, Host, Id, Process, chain,
    state::{State, Step},
};
use crate::{
    bundle::{ATTACH, Bundle, Spec},
    caller,
    cgroup::{Cgroup, leftover},
    creation,
    io::Stdio,
    node,
    oci::{Runtime, RuntimeError},
    oom,
    options::Options,
    reaper::Exited,
    registration, rootfs,
};

const KILL: u32 = 9;

/// What makes a container.
pub struct Create {
    /// Its id.
    pub id: Id,
    /// Its bundle, with `config.json`.
    pub bundle: Bundle,
    /// What to mount on the bundle's `rootfs`.
    pub rootfs: Vec<rootfs::Mount>,
    /// Its init's streams.
    pub stdio: Stdio,
    /// How to run it.
    pub options: Options,
    /// What its processes are restored from, when it is started.
    pub checkpoint: Option<Checkpoint>,
}

/// A container that has been made.
pub struct Container {
    id: Id,
    host: Arc<Host>,
    bundle: Bundle,
    spec: Spec,
    root: PathBuf,
    runtime: Runtime,
    checkpoint: Option<Checkpoint>,
    /// Where criu works, if somebody has said so.
    criu_work: Option<PathBuf>,
    io_owner: (u32, u32),
    /// See [`Setup::buffer`](crate::io::Setup::buffer).
    log_buffer: Option<usize>,
    takes_capsules: bool,
    /// Its spec has what devices of its attachments can only be given there.
    created_with_devices: bool,
    init: Arc<Process>,
    /// The runtime is at work on freezing it.
    pausing: AtomicBool,
    execs: Mutex<HashMap<String, Exec>>,
    gate: watch::Sender<Gate>,
    deleted: Mutex<bool>,
    /// Not known until it has an init.
    cgroup: OnceLock<Cgroup>,
    oom: Mutex<Option<oom::Watch>>,
}

struct Exec {
    process: Arc<Process>,
    /// The OCI process, as containerd sent it but for its terminal.
    spec: Value,
}

/// Whether execs may start, and how many have not been reported to have ended.
#[derive(Debug, Clone, Copy)]
struct Gate {
    open: bool,
    running: usize,
}

impl Container {
    /// Mounts the root and has the runtime make the container. Returns it and its init's exit, to be supervised. One that
    /// is restored from a checkpoint has no init before its start.
    ///
    /// # Errors
    /// [`EngineError`]; everything is undone.
    pub async fn create(
        host: Arc<Host>,
        request: Create,
    ) -> Result<(Arc<Self>, Option<Exited>), EngineError> {
        let Create { id, bundle, rootfs, stdio, options, checkpoint } = request;
        let spec = bundle.read_spec()?;
        let takes_capsules = spec.takes_capsules()?;
        let wanted = creation::Wanted {
            namespace: &host.namespace,
            id: id.as_str(),
            spec: &spec,
            takes_attachments: takes_capsules && checkpoint.is_none(),
            has_kept: registration::has_kept(Path::new(registration::RUN), &host.namespace, id.as_str()),
        };
        let created_with_devices = creation::edit(&bundle, wanted).await?;
        bundle.write_options(&options)?;
        let runtime = Runtime::new(&options, &host.namespace, bundle.path(), host.reaper.clone());
        let container = Self {
            id,
            root: spec.rootfs(&bundle),
            bundle,
            log_buffer: spec.log_buffer()?,
            takes_capsules,
            created_with_devices,
            spec,
            runtime,
            checkpoint,
            criu_work: (!options.criu_work_path.is_empty()).then(|| options.criu_work_path.into()),
            io_owner: (options.io_uid, options.io_gid),
            init: Arc::new(Process::new(String::new(), stdio)),
            pausing: AtomicBool::new(false),
            execs: Mutex::default(),
            gate: watch::Sender::new(Gate { open: true, running: 0 }),
            deleted: Mutex::new(false),
            cgroup: OnceLock::new(),
            oom: Mutex::default(),
            host,
        };
        rootfs::mount_all(&rootfs, &container.bundle.rootfs(), &container.host.reaper).await?;
        if container.checkpoint.is_some() {
            return Ok((Arc::new(container), None));
        }
        let (pid_file, log) = (container.bundle.init_pid_file(), container.bundle.init_log());
        match container.launch(&container.init, Launch::Init, &pid_file, &log).await {
            Ok(Launched { pid, io, claim }) => {
                container.find_cgroup(pid);
                container.init.attach(io, claim.pidfd);
                container.init.advance(State::Created { pid });
                Ok((Arc::new(container), Some(claim.exited)))
            }
            Err(error) => {
                caller::nobodys(container.undo()).await;
                Err(error)
            }
        }
    }

    async fn undo(&self) {
        if let Err(error) = self.runtime.delete(self.id.as_str(), true).await {
            log::warn!("undo container {}: {}", self.id, chain(&error));
        }
        leftover::remove(self.spec.cgroups_path()).await;
        end::unmount(&self.bundle, &self.id).await;
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Its root as the host sees it.
    pub fn rootfs(&self) -> &Path {
        &self.root
    }

    /// Whether capsules may be attached to it.
    pub fn takes_capsules(&self) -> bool {
        self.takes_capsules
    }

    /// Its init.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Its init for an empty `exec_id`, or one of its execs.
    ///
    /// # Errors
    /// [`EngineError::NoExec`].
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, EngineError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let process = self.execs().get(exec_id).map(|exec| exec.process.clone());
        process
            .ok_or_else(|| EngineError::NoExec { container: self.id.to_string(), exec: exec_id.to_owned() })
    }

    /// Starts the init, or an exec. Returns its pid.
    ///
    /// # Errors
    /// [`EngineError`]; an init can be started again, an exec only deleted.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<i32, EngineError> {
        if exec_id.is_empty() { self.start_init().await } else { self.start_exec(exec_id).await }
    }

    async fn start_init(self: &Arc<Self>) -> Result<i32, EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Start)?;
        let pid = if let Some(checkpoint) = &self.checkpoint {
            self.restore(checkpoint).await?
        } else {
            self.attach_first().await?;
            self.init.open_stdin()?;
            let started = self.runtime.start(self.id.as_str()).await;
            self.settled(started, "running").await?;
            let pid = state.pid();
            self.init.advance(State::Running { pid });
            pid
        };
        let container_id = self.id.to_string();
        self.host.events.publish(TaskStart { container_id, pid: pid.cast_unsigned(), ..Default::default() });
        Ok(pid)
    }

    /// Has attached what the container's last task had and what its annotation names, before its first process runs. A
    /// container that has neither needs no capsuled.
    async fn attach_first(&self) -> Result<(), EngineError> {
        let (namespace, id, named) = (&self.host.namespace, self.id.as_str(), self.spec.named_attachments());
        let kept = registration::has_kept(Path::new(registration::RUN), namespace, id);
        if !self.takes_capsules {
            if kept || named.is_some() {
                log::info!(
                    "container {id}: takes no capsules, so neither those it had nor {ATTACH} are attached"
                );
            }
            return Ok(());
        }
        if kept {
            node::restore(namespace, id, named).await?;
        }
        if let Some(named) = named {
            node::attach_named(namespace, id, named, self.created_with_devices).await?;
        }
        Ok(())
    }

    async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32, EngineError> {
        let process = self.process(exec_id)?;
        let _step = process.step().await;
        // That the init has ended is told first, as containerd's own shim does.
        self.enter()?;
        if let Err(refused) = process.state().allow(Step::Start) {
            self.leave();
            return Err(refused.into());
        }
        match self.launch_exec(exec_id, &process).await {
            Ok(Launched { pid, io, claim }) => {
                process.attach(io, claim.pidfd);
                process.advance(State::Running { pid });
                self.host.events.publish(TaskExecStarted {
                    container_id: self.id.to_string(),
                    exec_id: exec_id.to_owned(),
                    pid: pid.cast_unsigned(),
                    ..Default::default()
                });
                self.supervise(process.clone(), claim.exited);
                Ok(pid)
            }
            Err(error) => {
                process.advance(State::Failed);
                self.leave();
                Err(error)
            }
        }
    }

    /// Adds a process, to be started later.
    ///
    /// # Errors
    /// [`EngineError::ExecExists`], [`EngineError::Refused`] beside an init that is paused or has ended, or a `spec` that
    /// is no process.
    pub fn add_exec(&self, id: &Id, stdio: Stdio, spec: &[u8]) -> Result<(), EngineError> {
        let invalid = |source| EngineError::ExecSpec(id.to_string(), source);
        let mut spec: Value = serde_json::from_slice(spec).map_err(|e| invalid(Some(e)))?;
        // containerd's request, not the spec, says whether there is a terminal.
        spec.as_object_mut().ok_or_else(|| invalid(None))?.insert("terminal".into(), stdio.terminal.into());
        let mut execs = self.execs();
        if execs.contains_key(id.as_str()) {
            return Err(EngineError::ExecExists { container: self.id.to_string(), exec: id.to_string() });
        }
        self.init.state().allow(Step::Exec)?;
        let process = Arc::new(Process::new(id.to_string(), stdio));
        execs.insert(id.to_string(), Exec { process, spec });
        self.host.events.publish(TaskExecAdded {
            container_id: self.id.to_string(),
            exec_id: id.to_string(),
            ..Default::default()
        });
        Ok(())
    }

    /// Sends a signal to a process; with `all`, and for the init, to all processes of the container, also when the init
    /// has ended: a container that shares its PID namespace may have others.
    ///
    /// # Errors
    /// [`EngineError::Finished`] when it has ended, [`EngineError::NotMade`] for an exec before its start.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), EngineError> {
        let process = self.process(exec_id)?;
        let state = process.state();
        let every = all && exec_id.is_empty();
        if state.exit().is_some() && !every {
            return Err(EngineError::Finished);
        }
        if !exec_id.is_empty() {
            state.allow(Step::Signal).map_err(|_| EngineError::NotMade {
                container: self.id.to_string(),
                exec: exec_id.to_owned(),
            })?;
            return process.signal(signal);
        }
        match self.runtime.kill(self.id.as_str(), signal, all).await {
            Err(error) if error.is_finished() || error.is_missing() => Err(EngineError::Finished),
            result => Ok(result?),
        }
    }

    /// A command that was killed may have done its work: then the container is in the state that it was to bring about,
    /// and has to be taken for what it is.
    async fn settled(&self, outcome: Result<(), RuntimeError>, wanted: &str) -> Result<(), RuntimeError> {
        let Err(error @ RuntimeError::Killed { .. }) = outcome else { return outcome };
        match self.runtime.status(self.id.as_str()).await {
            Ok(status) if status == wanted => {
                log::warn!("container {}: {}, and is {wanted} all the same", self.id, chain(&error));
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deleted(&self) -> MutexGuard<'_, bool> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
