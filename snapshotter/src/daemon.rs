//! The daemon's life: the sockets are opened once, everything else as often as it takes.
//!
//! A *session* is the time in which one process has the stores open and serves. It ends when the daemon is to stop, when
//! a successor takes over, and when a store has failed. After the last the same process opens everything anew; so it does
//! when a successor has failed. The listening sockets stay open all the while: who calls meanwhile waits, and is
//! not refused.

use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

use crate::{
    config::Config,
    dirs::{Dirs, DirsError, UnsuitableRoot},
    handover::{self, HandoverError, Predecessor, Sockets, Successor},
    node::{Node, NodeError},
    notify::{State, notify},
    server::{self, Activity, ServerError},
    service::{NodeServiceError, SnapshotsService},
    snapshots::{Environment, OverlayOptions, SnapshotError, Snapshots},
    store::{Store, StoreError, Watch},
};

/// How long calls that were dropped at the end of the drain may still take to let go of the stores: more than a virtual machine
/// that is moved or short of processors stands still. With the drains of
/// clients' and shims' calls it is shorter than `TimeoutStopSec` of `capsuled.service`.
const CLOSING: Duration = Duration::from_secs(8);

/// Why the daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The sockets could not be had from the capsuled that runs.
    #[error("take over")]
    TakeOver(#[source] HandoverError),
    /// There is no socket, or it could not be served on.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The process could not be set up.
    #[error("{step}")]
    Process {
        /// What was to be done.
        step: &'static str,
        /// Why it could not.
        #[source]
        source: io::Error,
    },
    /// The directories could not be made.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The root is no place for snapshots.
    #[error(transparent)]
    Root(#[from] UnsuitableRoot),
    /// The metadata could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The snapshots could not be opened.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
    /// The capsule side could not be opened.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Shims cannot be served.
    #[error(transparent)]
    Shims(#[from] NodeServiceError),
    /// A call that hangs keeps a store open.
    #[error("a call that does not end keeps a store open: ending, so that the store can be opened again")]
    NotClosed,
}

fn process(step: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Process { step, source }
}

/// Why the daemon has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to, or a successor serves.
    Told,
    /// Nobody used it for as long as the configuration says. The next call has to start it again.
    Idle,
}

/// Serves until the process is told to stop, a successor serves, or nobody uses a daemon that the service manager starts when it is
/// called. With `take_over`, the sockets and the stores are taken from the capsuled that runs, if one does.
///
/// # Errors
/// When it cannot serve (any longer). The capsuled that was to be replaced then serves on.
pub fn run(mut config: Config, take_over: bool) -> Result<End, DaemonError> {
    let Acquired { sockets, mut predecessor, is_held } = acquire(&config, take_over)?;
    if !is_held && !config.idle_stop.is_zero() {
        tracing::warn!("systemd has not given this capsuled its socket, so it does not end when idle");
        config.idle_stop = Duration::ZERO;
    }
    if let Some(predecessor) = &mut predecessor {
        tracing::info!("taking over: the capsuled that runs ends its calls");
        predecessor.wait_until_closed().map_err(DaemonError::TakeOver)?;
    }
    // Beside the runtime of each session: signals and successors are heard at any time.
    let runtime = Builder::new_current_thread().enable_all().build().map_err(process("start a runtime"))?;
    let outcome = runtime.block_on(live(Arc::new(config), sockets, predecessor));
    runtime.shutdown_background(); // it may wait for a successor that will not come any more
    outcome
}

/// The sockets, and where they are from.
struct Acquired {
    sockets: Sockets,
    predecessor: Option<Predecessor>,
    /// The service manager has the socket, too, and starts the daemon when somebody connects. Not known of one that was taken over.
    is_held: bool,
}

/// The sockets: from the capsuled that runs, from the service manager, or made.
fn acquire(config: &Config, take_over: bool) -> Result<Acquired, DaemonError> {
    let path = config.run.join(handover::SOCKET);
    if take_over {
        match handover::take_over(&path, &config.socket).map_err(DaemonError::TakeOver)? {
            Some((sockets, predecessor)) => {
                return Ok(Acquired { sockets, predecessor: Some(predecessor), is_held: false });
            }
            None => tracing::info!("no capsuled runs that could be taken over from: starting"),
        }
    }
    let (api, is_held) = match server::passed(&config.socket)? {
        Some(listener) => (listener, true),
        None => (server::listen(&config.socket)?, false),
    };
    let sockets = Sockets { api, handover: server::listen(&path)? };
    Ok(Acquired { sockets, predecessor: None, is_held })
}

/// How a session ends.
enum Ending {
    Stop,
    Idle,
    Successor(Successor),
    Failed(Arc<io::Error>),
}

async fn live(
    config: Arc<Config>,
    sockets: Sockets,
    mut predecessor: Option<Predecessor>,
) -> Result<End, DaemonError> {
    let mut stop = Stop::listen()?;
    loop {
        let session = Session::start(&config, &sockets, predecessor.take()).await?;
        match session.run(&sockets, &mut stop).await? {
            Ending::Stop => {
                tracing::info!("stopped");
                return Ok(End::Told);
            }
            Ending::Idle => {
                tracing::info!(
                    seconds = config.idle_stop.as_secs(),
                    "nobody has used capsuled: stopped until somebody does"
                );
                return Ok(End::Idle);
            }
            Ending::Successor(successor) => {
                let pid = successor.pid;
                tokio::select! {
                    () = stop.requested() => return Ok(End::Told), // the stores are the successor's already
                    taken = successor.hand_over() => match taken {
                        Ok(()) => {
                            tracing::info!(pid, "another capsuled serves now");
                            tell(State::MainPid(pid));
                            return Ok(End::Told);
                        }
                        Err(error) => {
                            let error: &dyn Error = &error;
                            tracing::error!(pid, error, "the capsuled that was to take over did not: serving again");
                        }
                    },
                }
            }
            Ending::Failed(error) => {
                tracing::error!(%error, "a store has failed and takes no more writes: opening it again");
            }
        }
    }
}

/// One session, served.
struct Session {
    runtime: Runtime,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<End, DaemonError>>,
    stores: [Watch; 3],
}

impl Session {
    async fn start(
        config: &Arc<Config>,
        sockets: &Sockets,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, DaemonError> {
        let sockets = sockets.try_clone().map_err(process("share the sockets"))?;
        // Two workers: what takes time waits for the disk on the blocking pool.
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(process("start a runtime"))?;
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = oneshot::channel();
        let served = runtime.spawn(serve(config.clone(), sockets, stopped, started));
        match starting.await {
            Ok(stores) => {
                tracing::info!(socket = %config.socket.display(), "serving");
                tell(State::Ready);
                if let Some(predecessor) = predecessor {
                    predecessor.dismiss();
                }
                Ok(Self { runtime, stop, served, stores })
            }
            Err(_) => {
                let failed = served.await;
                runtime.shutdown_background();
                Err(joined(failed).err().unwrap_or(DaemonError::NotClosed))
            }
        }
    }

    /// Serves until something ends the session, and closes everything that it had open.
    async fn run(mut self, sockets: &Sockets, stop: &mut Stop) -> Result<Ending, DaemonError> {
        let [snapshots, live, kept] = &mut self.stores;
        let ending = tokio::select! {
            () = stop.requested() => {
                tell(State::Stopping);
                Ok(Ending::Stop)
            }
            successor = handover::offer(sockets) => {
                successor.map(Ending::Successor).map_err(process("listen for a successor"))
            }
            error = snapshots.failed() => Ok(Ending::Failed(error)),
            error = live.failed() => Ok(Ending::Failed(error)),
            error = kept.failed() => Ok(Ending::Failed(error)),
            served = &mut self.served => match joined(served) {
                Ok(End::Idle) => {
                    tell(State::Stopping);
                    Ok(Ending::Idle)
                }
                served => {
                    self.runtime.shutdown_background(); // dropped in async code, it would panic
                    return Err(served.err().unwrap_or(DaemonError::NotClosed));
                }
            },
        };
        if !matches!(ending, Ok(Ending::Idle)) {
            _ = self.stop.send(()); // it is there: it has not ended
            if let Err(error) = joined(self.served.await) {
                self.runtime.shutdown_background(); // as above
                return Err(error);
            }
        }
        let closed = close(self.runtime, &self.stores).await;
        match &ending {
            Ok(Ending::Stop | Ending::Idle) => {} // the end of the process closes what a call that hangs has open
            _ if !closed => return Err(DaemonError::NotClosed),
            _ => {}
        }
        ending
    }
}

/// Ends what runs in the background, and waits until nothing has the stores open. False when a call does not let go.
async fn close(runtime: Runtime, stores: &[Watch]) -> bool {
    let deadline = Instant::now() + CLOSING;
    _ = spawn_blocking(move || runtime.shutdown_timeout(CLOSING)).await;
    while !stores.iter().all(Watch::is_closed) {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(2)).await;
    }
    true
}

fn joined<T>(result: Result<Result<T, DaemonError>, tokio::task::JoinError>) -> Result<T, DaemonError> {
    result.unwrap_or_else(|error| Err(process("serve")(io::Error::other(error))))
}

/// Opens the stores, serves until `stop`, or until nobody has used it for long enough, and lets go of everything but what runs in the
/// background.
async fn serve(
    config: Arc<Config>,
    sockets: Sockets,
    stop: oneshot::Receiver<()>,
    started: oneshot::Sender<[Watch; 3]>,
) -> Result<End, DaemonError> {
    let (snapshots, watch) = open_snapshots(&config)?;
    let (dirs, leftovers) = snapshots.leftovers()?;
    let node = Node::open(&config, snapshots.clone()).await?;
    let routes = node.routes().add_service(SnapshotsService::new(snapshots).into_server());
    let meters = node.meters();
    let activity = Activity::default();
    let shims = node.serve_shims(&config, activity.clone()).await?;
    node.follow_containerd();
    let [live, kept] = node.watches();
    _ = started.send([watch, live, kept]); // who started it waits
    // There may be millions of files. A thread of its own, which neither a call nor the end of the session waits for.
    std::thread::spawn(move || {
        dirs.remove_leftovers(&leftovers);
        if let Err(error) = dirs.sweep(true) {
            let error: &dyn Error = &error;
            tracing::warn!(error, "files that no layer has any more stay in the pool");
        }
    });
    let is_idle = AtomicBool::new(false);
    let stop = async {
        tokio::select! {
            _ = stop => {} // gone or told: both mean to stop
            () = activity.idle(config.idle_stop, || node.is_in_use()) => is_idle.store(true, Ordering::Relaxed),
        }
        node.end_watches();
    };
    let served = server::serve(sockets.api, routes, meters, activity.clone(), stop).await;
    shims.stop().await;
    served?;
    Ok(if is_idle.into_inner() { End::Idle } else { End::Told })
}

fn open_snapshots(config: &Config) -> Result<(Snapshots, Watch), DaemonError> {
    let configured = config.snapshots.mount_options.clone();
    let read = OverlayOptions::read().map_err(process("read the options of overlayfs"))?;
    let overlay = OverlayOptions { configured, ..read };
    let dirs = Dirs::new(&config.root);
    dirs.create()?;
    dirs.check_root(&overlay)?;
    dirs.check_store()?;
    let store = Store::open(&dirs.metadata())?;
    let watch = store.watch();
    let environment = Environment { store, dirs, overlay, behaviour: config.snapshots.behaviour };
    Ok((Snapshots::open(environment)?, watch))
}

/// The signals by which the service manager or a person asks the daemon to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self, DaemonError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(process("handle SIGTERM"))?,
            interrupt: signal(SignalKind::interrupt()).map_err(process("handle SIGINT"))?,
        })
    }

    async fn requested(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
    }
}

fn tell(state: State) {
    if let Err(error) = notify(state) {
        tracing::warn!(%error, ?state, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_fails_ends_the_session_with_its_error() {
        let root = tempfile::tempdir().unwrap();
        let at = |name| root.path().join(name);
        let sockets = Sockets {
            api: server::listen(&at("api")).unwrap(),
            handover: server::listen(&at("handover")).unwrap(),
        };
        let stores = ["a", "b", "c"].map(|name| Store::open(&at(name)).unwrap().watch());
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served = runtime.spawn(async { Err::<End, _>(process("fail")(io::ErrorKind::Other.into())) });
        let session = Session { runtime, stop: oneshot::channel().0, served, stores };
        let mut stop = Stop::listen().unwrap();
        let error = session.run(&sockets, &mut stop).await.err().unwrap();
        assert!(matches!(error, DaemonError::Process { step: "fail", .. }), "{error}");
    }
}
