//! One container: its init, its execs, and what it has on the host.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use containerd_shim::protos::events::task::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskPaused, TaskResumed, TaskStart,
};
use protobuf::MessageField;
use serde_json::Value;
use tokio::{sync::watch, time::timeout};

use super::{
    EngineError, Host, Id, Process, chain,
    process::NEVER_STARTED,
    state::{Exit, State, Step},
};
use crate::{
    bundle::{Bundle, BundleError, Spec, read_pid_file, write_private},
    events::timestamp,
    io::{ConsoleSocket, IoError, ProcessIo, Stdio},
    oci::{NewProcess, Runtime, RuntimeError, Streams},
    options::Options,
    reaper::{Claim, Exited, Reaper},
    registration, rootfs,
};

/// How long the runtime may take to hand over a terminal after it has reported success.
const TERMINAL: Duration = Duration::from_secs(10);
/// How long an init's exit waits for the exits of the container's other processes, all of which have been killed.
const LAST_EXECS: Duration = Duration::from_secs(10);
/// How long a container that was never started takes to end once it is deleted.
const END: Duration = Duration::from_secs(10);

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
}

/// A container that has been made.
pub struct Container {
    id: Id,
    host: Arc<Host>,
    bundle: Bundle,
    spec: Spec,
    root: PathBuf,
    runtime: Runtime,
    io_owner: (u32, u32),
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    gate: watch::Sender<Gate>,
    deleted: Mutex<bool>,
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

enum Launch<'a> {
    Init,
    Exec(&'a Path),
}

struct Launched {
    pid: i32,
    io: ProcessIo,
    claim: Claim,
}

impl Container {
    /// Mounts the root and has the runtime make the container. Returns it and its init's exit, to be supervised.
    ///
    /// # Errors
    /// [`EngineError`]; everything is undone.
    pub async fn create(host: Arc<Host>, request: Create) -> Result<(Arc<Self>, Exited), EngineError> {
        let Create { id, bundle, rootfs, stdio, options } = request;
        let spec = bundle.read_spec()?;
        bundle.write_options(&options)?;
        let runtime = Runtime::new(&options, &host.namespace, host.reaper.clone());
        let container = Self {
            id,
            root: spec.rootfs(&bundle),
            bundle,
            spec,
            runtime,
            io_owner: (options.io_uid, options.io_gid),
            init: Arc::new(Process::new(String::new(), stdio)),
            execs: Mutex::default(),
            gate: watch::Sender::new(Gate { open: true, running: 0 }),
            deleted: Mutex::new(false),
            host,
        };
        rootfs::mount_all(&rootfs, &container.bundle.rootfs())?;
        let (pid_file, log) = (container.bundle.init_pid_file(), container.bundle.init_log());
        match container.launch(&container.init, Launch::Init, &pid_file, &log).await {
            Ok(Launched { pid, io, claim }) => {
                container.init.attach(io, claim.pidfd);
                container.init.advance(State::Created { pid });
                Ok((Arc::new(container), claim.exited))
            }
            Err(error) => {
                container.undo().await;
                Err(error)
            }
        }
    }

    async fn undo(&self) {
        if let Err(error) = self.runtime.delete(self.id.as_str(), true).await {
            log::warn!("undo container {}: {}", self.id, chain(&error));
        }
        if let Err(error) = rootfs::unmount_all(&self.bundle.rootfs()).await {
            log::warn!("undo container {}: {}", self.id, chain(&error));
        }
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
    /// [`EngineError`]; an exec whose start failed has ended, an init can be deleted.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<i32, EngineError> {
        if exec_id.is_empty() { self.start_init().await } else { self.start_exec(exec_id).await }
    }

    async fn start_init(&self) -> Result<i32, EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Start)?;
        self.init.open_stdin()?;
        self.runtime.start(self.id.as_str()).await?;
        let pid = state.pid();
        self.init.advance(State::Running { pid });
        let container_id = self.id.to_string();
        self.host.events.publish(TaskStart { container_id, pid: pid.cast_unsigned(), ..Default::default() });
        Ok(pid)
    }

    async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32, EngineError> {
        let process = self.process(exec_id)?;
        let _step = process.step().await;
        process.state().allow(Step::Start)?;
        self.enter()?;
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
                process.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
                self.leave();
                Err(error)
            }
        }
    }

    async fn launch_exec(&self, exec_id: &str, process: &Process) -> Result<Launched, EngineError> {
        let spec = self.execs().get(exec_id).map(|exec| exec.spec.to_string()).unwrap_or_default();
        let file = |suffix| self.bundle.exec_file(exec_id, suffix);
        let (spec_file, pid_file, log) = (file("json"), file("pid"), file("log"));
        write_private(&spec_file, spec.as_bytes())?;
        let launched = self.launch(process, Launch::Exec(&spec_file), &pid_file, &log).await;
        for path in [spec_file, pid_file, log] {
            // The log is there only after a failure, the pid only after success.
            let _ = fs::remove_file(path);
        }
        launched
    }

    /// Has the runtime make a process with its streams, and claims it.
    async fn launch(
        &self,
        process: &Process,
        launch: Launch<'_>,
        pid_file: &Path,
        log: &Path,
    ) -> Result<Launched, EngineError> {
        let (stdio, copies) = (process.stdio(), &self.host.copies);
        let watch = self.host.reaper.watch();
        let bundle = self.bundle.path();
        if !stdio.terminal {
            let (streams, io) = ProcessIo::pipes(stdio, self.io_owner, copies).await?;
            if let Launch::Exec(_) = launch {
                io.open_stdin()?;
            }
            self.make(launch, NewProcess { bundle, pid_file, log, console: None, streams }).await?;
            let pid = read_pid_file(pid_file)?;
            return Ok(Launched { pid, io, claim: watch.claim(pid) });
        }
        let is_exec = matches!(launch, Launch::Exec(_));
        let console = ConsoleSocket::bind()?;
        let streams = Streams::default();
        self.make(launch, NewProcess { bundle, pid_file, log, console: Some(console.path()), streams })
            .await?;
        let pid = read_pid_file(pid_file)?;
        let claim = watch.claim(pid);
        let late = || IoError::Terminal(std::io::ErrorKind::TimedOut.into());
        let received = timeout(TERMINAL, console.receive()).await.map_err(|_| late());
        let io = match received.and_then(|received| received) {
            Ok(master) => ProcessIo::terminal(stdio, master, copies).await.and_then(|io| {
                if is_exec {
                    io.open_stdin()?
                };
                Ok(io)
            }),
            Err(error) => Err(error),
        };
        if let (Err(_), Some(pidfd)) = (&io, &claim.pidfd) {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
        Ok(Launched { pid, io: io?, claim })
    }

    async fn make(&self, launch: Launch<'_>, new: NewProcess<'_>) -> Result<(), RuntimeError> {
        match launch {
            Launch::Init => self.runtime.create(self.id.as_str(), new).await,
            Launch::Exec(spec) => self.runtime.exec(self.id.as_str(), spec, new).await,
        }
    }

    /// Adds a process, to be started later.
    ///
    /// # Errors
    /// [`EngineError::ExecExists`], [`EngineError::InitGone`], or a `spec` that is no process.
    pub fn add_exec(&self, id: &Id, stdio: Stdio, spec: &[u8]) -> Result<(), EngineError> {
        let invalid = |source| EngineError::ExecSpec(id.to_string(), source);
        let mut spec: Value = serde_json::from_slice(spec).map_err(|e| invalid(Some(e)))?;
        // containerd's request, not the spec, says whether there is a terminal.
        spec.as_object_mut().ok_or_else(|| invalid(None))?.insert("terminal".into(), stdio.terminal.into());
        if !self.gate.borrow().open {
            return Err(EngineError::InitGone(self.id.to_string()));
        }
        let mut execs = self.execs();
        if execs.contains_key(id.as_str()) {
            return Err(EngineError::ExecExists { container: self.id.to_string(), exec: id.to_string() });
        }
        let process = Arc::new(Process::new(id.to_string(), stdio));
        execs.insert(id.to_string(), Exec { process, spec });
        self.host.events.publish(TaskExecAdded {
            container_id: self.id.to_string(),
            exec_id: id.to_string(),
            ..Default::default()
        });
        Ok(())
    }

    /// Sends a signal to a process; with `all`, and for the init, to all processes of the container.
    ///
    /// # Errors
    /// [`EngineError::Finished`] when it has ended.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), EngineError> {
        let process = self.process(exec_id)?;
        let state = process.state();
        if state.exit().is_some() {
            return Err(EngineError::Finished);
        }
        state.allow(Step::Signal)?;
        if !exec_id.is_empty() {
            return process.signal(signal);
        }
        match self.runtime.kill(self.id.as_str(), signal, all).await {
            Err(error) if error.is_finished() || error.is_missing() => Err(EngineError::Finished),
            result => Ok(result?),
        }
    }

    /// Freezes all its processes.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn pause(&self) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Pause)?;
        self.runtime.pause(self.id.as_str()).await?;
        self.init.advance(State::Paused { pid: state.pid() });
        self.host.events.publish(TaskPaused { container_id: self.id.to_string(), ..Default::default() });
        Ok(())
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn resume(&self) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Resume)?;
        self.runtime.resume(self.id.as_str()).await?;
        self.init.advance(State::Running { pid: state.pid() });
        self.host.events.publish(TaskResumed { container_id: self.id.to_string(), ..Default::default() });
        Ok(())
    }

    /// Changes its resources to `resources`, the JSON of OCI's `LinuxResources`, unread.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn update(&self, resources: &[u8]) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        let file = self.bundle.path().join("capsule-resources.json");
        write_private(&file, resources)?;
        let updated = self.runtime.update(self.id.as_str(), &file).await;
        let _ = fs::remove_file(file);
        Ok(updated?)
    }

    /// The pids of its processes, with the exec ids of those that are execs.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn pids(&self) -> Result<Vec<(u32, Option<String>)>, EngineError> {
        let pids = self.runtime.ps(self.id.as_str()).await?;
        let execs: HashMap<u32, String> = self
            .execs()
            .iter()
            .map(|(id, exec)| (exec.process.state().pid().cast_unsigned(), id.clone()))
            .collect();
        Ok(pids.into_iter().map(|pid| (pid, execs.get(&pid).cloned())).collect())
    }

    /// Waits for a process' exit and reports it.
    pub fn supervise(self: &Arc<Self>, process: Arc<Process>, exited: Exited) {
        let this = self.clone();
        tokio::spawn(async move {
            // The reaper lives as long as the shim.
            let Ok(exit) = exited.await else { return };
            let is_init = process.exec_id().is_empty();
            if is_init {
                this.end_execs().await;
            }
            if let Some(io) = process.io() {
                io.drained().await;
            }
            // A start under way is reported first.
            let _step = process.step().await;
            process.end(exit);
            this.publish_exit(&process, exit);
            if !is_init {
                this.leave();
            }
        });
    }

    /// Ends what outlives the init, and lets every exec's exit be reported before the init's.
    async fn end_execs(&self) {
        self.gate.send_modify(|gate| gate.open = false);
        if self.spec.shares_pid_namespace()
            && let Err(error) = self.runtime.kill(self.id.as_str(), KILL, true).await
            && !error.is_finished()
            && !error.is_missing()
        {
            log::warn!("kill what is left of container {}: {}", self.id, chain(&error));
        }
        let mut gate = self.gate.subscribe();
        if timeout(LAST_EXECS, gate.wait_for(|gate| gate.running == 0)).await.is_err() {
            log::warn!("container {}: processes outlive its init", self.id);
        }
    }

    /// Counts an exec in, unless the init has ended.
    fn enter(&self) -> Result<(), EngineError> {
        let entered = self.gate.send_if_modified(|gate| {
            gate.running += usize::from(gate.open);
            gate.open
        });
        if entered { Ok(()) } else { Err(EngineError::InitGone(self.id.to_string())) }
    }

    fn leave(&self) {
        self.gate.send_modify(|gate| gate.running -= 1);
    }

    fn publish_exit(&self, process: &Process, exit: Exit) {
        let id = if process.exec_id().is_empty() { self.id.as_str() } else { process.exec_id() };
        self.host.events.publish(TaskExit {
            container_id: self.id.to_string(),
            id: id.to_owned(),
            pid: process.state().pid().cast_unsigned(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    /// Forgets an exec that has ended or was never started.
    ///
    /// # Errors
    /// [`EngineError::Refused`] while it runs.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<State, EngineError> {
        let process = self.process(exec_id)?;
        let _step = process.step().await;
        process.state().allow(Step::Delete)?;
        // Whoever waits for an exec that never started must not wait for ever.
        process.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
        process.release_io();
        self.execs().remove(exec_id);
        Ok(process.state())
    }

    /// Takes away all that the container has on the host.
    ///
    /// # Errors
    /// [`EngineError::Refused`] while it runs; other errors leave what could not be taken away, and the call can be
    /// repeated.
    pub async fn delete(&self) -> Result<State, EngineError> {
        {
            let _step = self.init.step().await;
            let state = self.init.state();
            state.allow(Step::Delete)?;
            if *self.deleted() {
                return Err(EngineError::NoContainer(self.id.to_string()));
            }
            // A container that was never started is a live process: only force ends it with every runtime.
            self.runtime.delete(self.id.as_str(), state.exit().is_none()).await?;
        }
        timeout(END, self.init.wait()).await.map_err(|_| EngineError::Undead(self.id.to_string()))?;
        let _step = self.init.step().await;
        if let Err(error) =
            registration::unregister(Path::new(registration::RUN), &self.host.namespace, self.id.as_str())
        {
            log::warn!("container {}: {}", self.id, chain(&error));
        }
        rootfs::unmount_all(&self.bundle.rootfs()).await?;
        if std::mem::replace(&mut *self.deleted(), true) {
            return Err(EngineError::NoContainer(self.id.to_string()));
        }
        self.init.release_io();
        for (_, exec) in self.execs().drain() {
            exec.process.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
            exec.process.release_io();
        }
        Ok(self.init.state())
    }

    /// Says that it is gone.
    pub fn publish_deleted(&self) {
        let state = self.init.state();
        let exit = state.exit().unwrap_or(NEVER_STARTED);
        self.host.events.publish(TaskDelete {
            container_id: self.id.to_string(),
            pid: state.pid().cast_unsigned(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deleted(&self) -> MutexGuard<'_, bool> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const KILL: u32 = 9;

/// Cleans up after a shim that was killed: the `delete` action's part.
///
/// # Errors
/// What could not be read of the bundle; what could not be removed is logged.
pub async fn clean_up(
    bundle: &Bundle,
    id: &Id,
    namespace: &str,
    reaper: Arc<Reaper>,
) -> Result<i32, BundleError> {
    let options = bundle.read_options()?;
    let runtime = Runtime::new(&options, namespace, reaper);
    if let Err(error) = runtime.delete(id.as_str(), true).await {
        log::warn!("remove container {id}: {}", chain(&error));
    }
    if let Err(error) = rootfs::unmount_all(&bundle.rootfs()).await {
        log::warn!("remove container {id}: {}", chain(&error));
    }
    read_pid_file(&bundle.init_pid_file())
}
