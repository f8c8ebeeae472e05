//! The tasks that this shim serves.
//!
//! Rooms: `id`, `state` and `error` (pure) ← `process` ← `container` and `sandbox` ← here, the registry. Locks: the
//! registry's is held for a look-up only, never across an await; each process has one for the steps of its own life, so
//! no container waits for another, and neither a signal nor a question about its state waits for anything.

mod container;
mod error;
mod id;
mod process;
mod sandbox;
pub mod state;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

pub use container::{Checkpoint, Container, Create, clean_up};
use containerd_shim::event::Event;
pub use error::{EngineError, chain};
pub use id::Id;
pub use process::Process;
use protobuf::Message;
pub use sandbox::{Phase, Sandboxes};
use state::State;
use tokio::sync::OnceCell;

use crate::{
    caller,
    cgroup::Hierarchies,
    events::Publisher,
    exit::ExitSignal,
    hotplug::{self, LiveTask, TaskLookupError, Tasks},
    io::Copies,
    reaper::Reaper,
    registration,
};

/// What all containers of the shim share.
pub struct Host {
    /// containerd's namespace.
    pub namespace: String,
    /// Exits.
    pub reaper: Arc<Reaper>,
    /// Events.
    pub events: Publisher,
    /// Output under way.
    pub copies: Copies,
    /// Where control groups are.
    pub cgroups: Hierarchies,
    /// Where the hot-plug service listens.
    pub hotplug: PathBuf,
}

/// The registry of containers, and what begins and ends with the first and last of them.
pub struct Engine {
    host: Arc<Host>,
    containers: Mutex<HashMap<String, Slot>>,
    sandboxes: Sandboxes,
    exit: Arc<ExitSignal>,
    /// The end was asked for while containers were made that nobody wants any more.
    ending: AtomicBool,
    /// It has been asked for a container.
    used: AtomicBool,
    /// Behind a lock only because a server cannot be shared between threads.
    hotplug: OnceCell<Option<Mutex<hotplug::Server>>>,
}

enum Slot {
    /// Its id is taken. `abandoned`: whoever asked for it has given up, as a containerd does that is started anew.
    Making { abandoned: bool },
    /// It can be asked about.
    Ready(Arc<Container>),
}

impl Engine {
    /// An engine without containers. `exit` is set when containerd asks for the end and there are none.
    pub fn new(host: Host, exit: Arc<ExitSignal>) -> Self {
        let (host, containers) = (Arc::new(host), Mutex::default());
        let [ending, used] = [false, false].map(AtomicBool::new);
        let (sandboxes, hotplug) = (Sandboxes::default(), OnceCell::new());
        Self { host, containers, sandboxes, exit, ending, used, hotplug }
    }

    /// Makes a container and its init, which waits to be started. Returns the init's pid.
    ///
    /// # Errors
    /// [`EngineError`]; nothing is left of the container.
    pub async fn create(
        self: &Arc<Self>,
        request: Create,
        event: impl CreateEvent,
    ) -> Result<i32, EngineError> {
        let id = request.id.clone();
        self.reserve(&id)?;
        self.serve_hotplug().await;
        let created = Container::create(self.host.clone(), request).await;
        let (container, exited) = match created {
            Ok(created) => created,
            Err(error) => {
                self.lock().remove(id.as_str());
                self.end_if_left();
                return Err(error);
            }
        };
        let made = self.lock().insert(id.to_string(), Slot::Ready(container.clone()));
        self.register(&container);
        let pid = container.init().state().pid();
        self.host.events.publish(event.with_pid(pid));
        if let Some(exited) = exited {
            container.supervise(container.init().clone(), exited);
        }
        if matches!(made, Some(Slot::Making { abandoned: true })) || caller::has_left() {
            log::warn!("container {id} was made for nobody: it is deleted");
            if let Err(error) = caller::nobodys(self.delete(id.as_str())).await {
                log::warn!("container {id} may have left something: {}", chain(&error));
                self.lock().remove(id.as_str());
            }
            self.end_if_left();
            return Err(EngineError::Abandoned(id.to_string()));
        }
        Ok(pid)
    }

    /// When a create has failed whose caller has left, nobody may ask for the end any more: it may have been a containerd that
    /// was killed, which asked this shim to end while the container was being made, or never will.
    fn end_if_left(&self) {
        if caller::has_left() {
            self.shutdown();
        }
        self.end_if_asked();
    }

    /// # Errors
    /// [`EngineError::NoContainer`], also for one that is being made.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, EngineError> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Making { .. }) | None => Err(EngineError::NoContainer(id.to_owned())),
        }
    }

    /// Forgets a container that has ended. One that is still being made is not there, and will be deleted when it is: a
    /// client that lost its call to create it knows no better.
    ///
    /// # Errors
    /// [`EngineError`]; the container stays and the call can be repeated.
    pub async fn delete(&self, id: &str) -> Result<State, EngineError> {
        if let Some(Slot::Making { abandoned }) = self.lock().get_mut(id) {
            *abandoned = true;
        }
        let container = self.container(id)?;
        let state = container.delete().await?;
        self.lock().remove(id);
        container.publish_deleted(state);
        Ok(state)
    }

    /// Changes a container's resources, and sees to it that it keeps the devices and limits that it was given meanwhile.
    ///
    /// # Errors
    /// As [`Container::update`].
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<(), EngineError> {
        let server = self.hotplug.get().and_then(Option::as_ref);
        let given = server.map(|server| server.lock().unwrap_or_else(PoisonError::into_inner).given());
        let updated = self.container(id)?.update(resources, given.as_ref()).await;
        // Also of one that failed: it may have got as far as systemd, which then puts its own program back.
        if let Some(given) = given {
            given.apply_devices(id).await;
        }
        updated
    }

    /// The sandbox that the shim was started for.
    pub fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    /// Ends the shim, unless it has containers or a sandbox. It waits for those containers that are being made for nobody.
    pub fn shutdown(&self) {
        let unwanted = |slot: &Slot| matches!(slot, Slot::Making { abandoned: true });
        if self.lock().values().all(unwanted) && self.sandboxes.is_empty() {
            self.ending.store(true, Relaxed);
            self.end_if_asked();
        }
    }

    /// The same, by who does not know whether somebody has just started this shim for a container and is about to ask for it:
    /// one that has been asked for nothing yet waits for that.
    pub async fn shutdown_if_idle(&self) {
        if !self.used.load(Relaxed) {
            tokio::time::sleep(FIRST).await;
        }
        self.shutdown();
    }

    fn end_if_asked(&self) {
        if self.ending.load(Relaxed) && self.lock().is_empty() && self.sandboxes.is_empty() {
            self.exit.signal();
        }
    }

    /// Ends the shim, whatever it has: containerd cleans up after it.
    pub fn end(&self) {
        self.exit.signal();
    }

    /// Logs what there is, for a person who asks.
    pub fn log_state(&self) {
        for (id, slot) in self.lock().iter() {
            match slot {
                Slot::Making { .. } => log::info!("container {id}: being made"),
                Slot::Ready(container) => {
                    let state = container.init().state();
                    log::info!("container {id}: {}, process {}", state.name(), state.pid());
                }
            }
        }
    }

    /// The last steps of the shim: nothing that was promised is lost.
    pub async fn finish(&self) {
        self.host.copies.finish(LAST_OUTPUT).await;
        let lost = self.host.events.flush(LAST_EVENTS).await;
        if lost > 0 {
            log::error!("{lost} events are lost: containerd does not answer");
        }
        if let Some(Some(server)) = self.hotplug.get()
            && let Err(error) = server.lock().unwrap_or_else(PoisonError::into_inner).remove_socket()
        {
            log::warn!("remove {}: {error}", self.host.hotplug.display());
        }
    }

    fn reserve(&self, id: &Id) -> Result<(), EngineError> {
        let mut containers = self.lock();
        // Its last steps may take a minute, in which the connection of whoever had it is open.
        if self.exit.is_set() {
            return Err(EngineError::Ending(id.to_string()));
        }
        if containers.contains_key(id.as_str()) {
            return Err(EngineError::Exists(id.to_string()));
        }
        containers.insert(id.to_string(), Slot::Making { abandoned: false });
        // Whoever wants a container wants a shim.
        self.ending.store(false, Relaxed);
        self.used.store(true, Relaxed);
        Ok(())
    }

    /// Containers run without hot-plug when its socket cannot be had: refusing them would be worse.
    async fn serve_hotplug(self: &Arc<Self>) {
        let start = async {
            let tasks: Arc<dyn Tasks> = self.clone();
            hotplug::serve(tasks, self.host.reaper.clone(), &self.host.hotplug)
                .await
                .inspect_err(|error| log::error!("hot-plug is not available: {}", chain(error)))
                .ok()
                .map(Mutex::new)
        };
        self.hotplug.get_or_init(|| start).await;
    }

    fn register(&self, container: &Container) {
        let run = std::path::Path::new(registration::RUN);
        let (namespace, bundle) = (&self.host.namespace, container.bundle().path());
        if let Err(error) = registration::register(run, namespace, container.id(), &self.host.hotplug, bundle)
        {
            log::error!("container {} cannot be attached to: {}", container.id(), chain(&error));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long after its start a shim may be asked for its first container.
const FIRST: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a stalled reader of the last output holds the shim.
const LAST_OUTPUT: std::time::Duration = std::time::Duration::from_secs(10);
/// How long an absent containerd does.
const LAST_EVENTS: std::time::Duration = std::time::Duration::from_secs(30);

/// The event of a container's creation, which wants the pid.
pub trait CreateEvent {
    /// The event.
    type Event: Event + Message;
    /// Completes it.
    fn with_pid(self, pid: i32) -> Self::Event;
}

impl Tasks for Engine {
    fn live(&self, container_id: &str) -> Result<LiveTask, TaskLookupError> {
        let container =
            self.container(container_id).map_err(|_| TaskLookupError::NotFound(container_id.to_owned()))?;
        let (init, init_pid) = container.init().live_process().ok_or_else(|| {
            // One that has ended is running until that is reported.
            let state = container.init().state();
            let state = state.live_pid().map_or_else(|| state.name(), |_| "stopped");
            TaskLookupError::NotRunning { id: container_id.to_owned(), state: state.to_owned() }
        })?;
        Ok(LiveTask {
            init,
            init_pid,
            bundle: container.bundle().path().to_owned(),
            rootfs: container.rootfs().to_owned(),
            cgroup: container.unified_cgroup().map(Into::into),
            runtime: container.updates(),
            takes_capsules: container.takes_capsules(),
            has_begun: !matches!(container.init().state(), State::Added | State::Created { .. }),
        })
    }

    fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }
}
