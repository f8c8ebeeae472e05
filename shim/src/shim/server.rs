//! The server's process: from the socket that `start` handed down to the end.

use std::{
    env, fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::Rlimit;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use ttrpc::asynchronous::{Server, transport::Listener};

use super::{
    ShimError,
    flags::Flags,
    logging, open_files,
    socket::Bound,
    start::{TTRPC_ADDRESS, group},
};
use crate::{
    cgroup::Hierarchies,
    engine::{Engine, Host},
    events::Publisher,
    exit::ExitSignal,
    io::Copies,
    reaper::Reaper,
    registration, service,
};

/// How long calls that are being answered hold the end up.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Serves until containerd or a signal ends it.
///
/// # Errors
/// [`ShimError`] before it serves; later ones are logged.
pub fn run(flags: &Flags) -> Result<(), ShimError> {
    let listener = inherited()?;
    // Before the first runtime command: what the runtime leaves is reaped here.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| ShimError::Subreaper(e.into()))?;
    logging::start(Path::new("log"), flags.debug, &flags.namespace, &flags.id).map_err(ShimError::Log)?;
    let given = open_files::raise();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(ShimError::Runtime)?;
    let served = runtime.block_on(serve(flags, listener, given));
    // Nothing that still blocks in the background keeps the process.
    runtime.shutdown_background();
    served.inspect_err(|error| log::error!("{}", crate::engine::chain(error)))
}

/// The listening socket that is standard input, in whose place `/dev/null` comes.
fn inherited() -> Result<UnixListener, ShimError> {
    let stdin = io::stdin();
    let listening = rustix::net::sockopt::socket_acceptconn(stdin.as_fd()).unwrap_or(false);
    if !listening {
        return Err(ShimError::NoListener);
    }
    // Above the standard streams.
    let listener: OwnedFd =
        rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3).map_err(|e| ShimError::Listener(e.into()))?;
    let null = fs::File::open("/dev/null").map_err(ShimError::Listener)?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| ShimError::Listener(e.into()))?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(ShimError::Listener)?;
    Ok(listener)
}

async fn serve(flags: &Flags, listener: UnixListener, given: Option<Rlimit>) -> Result<(), ShimError> {
    let exit = Arc::new(ExitSignal::default());
    let engine = Arc::new(Engine::new(host(flags, given)?, exit.clone()));
    let socket = Bound::new(PathBuf::from(&flags.socket));
    watch_signals(&exit, &engine)?;
    let listener = Listener::try_from(listener).map_err(ShimError::Listener)?;
    let mut server = Server::new().add_listener(listener).register_service(service::all(&engine));
    server.start().await.map_err(ShimError::Serve)?;
    log::debug!("serving");

    exit.wait().await;
    // First of all: who starts a container of this group from now on needs another server.
    socket.remove();
    engine.finish().await;
    // containerd takes the end of its connection for the end of the shim.
    if timeout(LAST_CALLS, server.shutdown()).await.is_err() {
        log::debug!("calls are left unanswered");
    }
    Ok(())
}

fn host(flags: &Flags, given: Option<Rlimit>) -> Result<Host, ShimError> {
    let group = group(&super::here()?, &flags.id)?;
    let address = env::var(TTRPC_ADDRESS).map_err(|_| ShimError::NoEvents)?;
    Ok(Host {
        namespace: flags.namespace.clone(),
        reaper: Reaper::start(given).map_err(ShimError::Signals)?,
        events: Publisher::start(address, &flags.namespace),
        copies: Copies::default(),
        cgroups: Hierarchies::default(),
        hotplug: registration::hotplug_socket(&flags.address, &flags.namespace, &group),
    })
}

/// `SIGTERM` and `SIGINT` end the server, and containerd kills its containers and cleans up: as with containerd's own
/// shim. Where that one writes its stacks on `SIGUSR1`, this one says what it has.
fn watch_signals(exit: &Arc<ExitSignal>, engine: &Arc<Engine>) -> Result<(), ShimError> {
    let on = |kind| signal(kind).map_err(ShimError::Signals);
    for (name, kind) in [("SIGTERM", SignalKind::terminate()), ("SIGINT", SignalKind::interrupt())] {
        let (mut signals, exit): (Signal, _) = (on(kind)?, exit.clone());
        tokio::spawn(async move {
            signals.recv().await;
            log::info!("{name}: the shim ends");
            exit.signal();
        });
    }
    let (mut asked, engine) = (on(SignalKind::user_defined1())?, engine.clone());
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            engine.log_state();
        }
    });
    Ok(())
}
