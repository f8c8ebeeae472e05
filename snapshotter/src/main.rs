//! capsuled: reads its configuration, opens what it needs, serves until it is told to stop.

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use capsule_proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use capsuled::{
    config::{Config, ConfigError, DEFAULT_PATH},
    dirs::Dirs,
    node::Node,
    notify::{State, notify},
    server,
    service::SnapshotsService,
    snapshots::{Environment, OverlayOptions, Snapshots},
    store::Store,
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// What a configuration with mistakes exits with, as usage errors do.
const EXIT_CONFIG: u8 = 2;

/// The node daemon of Resource Capsules: containerd snapshotter, capsule store and attachment controller.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; the defaults apply when the usual one is not there [usual: /etc/capsule/config.toml]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match load(&arguments) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &format_args!("{:#}", anyhow::Error::new(error))),
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format_args!("capsuled: {error:#}")),
    }
}

fn load(arguments: &Arguments) -> Result<Config, ConfigError> {
    match &arguments.config {
        Some(path) => Config::load(path, true),
        None => Config::load(DEFAULT_PATH.as_ref(), false),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    _ = writeln(error); // with nowhere to write to, the exit code has to do
    ExitCode::from(code)
}

fn writeln(error: &dyn std::fmt::Display) -> io::Result<()> {
    io::Write::write_fmt(&mut io::stderr(), format_args!("{error}\n"))
}

fn run(config: &Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::from(config.log.level))
        .init();
    let features = overlayfs_utils::probe().context("this machine cannot carry capsules")?;
    tracing::info!(%features, "kernel probed");
    // Two workers: what takes time waits for the disk on the blocking pool.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let snapshots = open_snapshots(config)?;
    let node = Node::open(config, snapshots.clone()).await?;
    let routes = node.routes().add_service(SnapshotsServer::new(SnapshotsService::new(snapshots)));
    let stop = stop_signal()?;
    let listener = server::listen(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), "serving");
    node.follow_containerd();
    tell(State::Ready);
    server::serve(listener, routes, stop).await?;
    tracing::info!("stopped");
    Ok(())
}

fn open_snapshots(config: &Config) -> anyhow::Result<Snapshots> {
    let dirs = Dirs::new(&config.root);
    dirs.create()?;
    let store = Store::open(&dirs.metadata())?;
    let configured = config.snapshots.mount_options.clone();
    let overlay = OverlayOptions { configured, ..OverlayOptions::read()? };
    Ok(Snapshots::open(Environment { store, dirs, overlay, behaviour: config.snapshots.behaviour })?)
}

/// Ends when the service manager or a person asks the daemon to stop.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        tell(State::Stopping);
    })
}

fn tell(state: State) {
    if let Err(error) = notify(state) {
        tracing::warn!(%error, ?state, "the service manager could not be told");
    }
}
