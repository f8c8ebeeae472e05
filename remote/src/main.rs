//! capsule-remote: reads capsuled's configuration, and serves clients elsewhere until it is told to stop.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use capsule_remote::{audit, server::Server, tls::Material};
use capsuled::{
    config::{Config, DEFAULT_PATH, Format},
    notify::{State, notify},
};
use clap::{CommandFactory as _, Parser};
use clap_mangen::Man;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;

/// What a configuration with mistakes exits with, as usage errors do.
const EXIT_CONFIG: u8 = 2;

/// The end of the manual page: what is nowhere on the command line.
const MANUAL: &str = include_str!("manual.roff");

/// Serves the API of capsuled to clients elsewhere: over TLS, with certificates that say what each may do.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// capsuled's configuration file [usual: /etc/capsule/config.toml]
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH, hide_default_value = true)]
    config: PathBuf,
    /// Check the configuration and the files of certificates that it names, and exit
    #[arg(long)]
    check_config: bool,
    /// Print the manual page, for packages
    #[arg(long, hide = true, exclusive = true)]
    man: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.man {
        return manual();
    }
    let config = match Config::load(&arguments.config, true) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &format!("{:#}", anyhow::Error::new(error))),
    };
    let Some(address) = config.remote.address else {
        let path = arguments.config.display();
        return fail(EXIT_CONFIG, &format!("the remote API is off: [remote] of {path} has no address"));
    };
    let done = match arguments.check_config {
        true => Material::load(&config.remote).map(drop).map_err(anyhow::Error::new),
        false => run(config, address),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// What `--help` says, as man(1) reads it, and [`MANUAL`].
fn manual() -> ExitCode {
    let man = Man::new(Arguments::command()).section("8").manual("Resource Capsules");
    let mut page = Vec::new();
    let told = man.render(&mut page).and_then(|()| {
        page.extend_from_slice(MANUAL.as_bytes());
        io::stdout().write_all(&page)
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("print the manual page: {error}")),
    }
}

fn fail(code: u8, error: &str) -> ExitCode {
    _ = writeln!(io::stderr(), "capsule-remote: {error}"); // with nowhere to write to, the exit code has to do
    ExitCode::from(code)
}

fn run(config: Config, address: std::net::SocketAddr) -> Result<()> {
    let level = tracing::Level::from(config.log.level);
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(format!("{level},{}=info", audit::TARGET)));
    match config.log.format {
        Format::Text => lines.init(),
        Format::Json => lines.json().flatten_event(true).init(),
    }
    // One thread: what it does is wait.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start a runtime")?.block_on(serve(config, address))
}

async fn serve(config: Config, address: std::net::SocketAddr) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let server = Server::bind(address, config.remote, config.socket).await?;
    tracing::info!(address = %server.address()?, "serving");
    tell(State::Ready);
    let (reload, reloads) = mpsc::channel(1);
    tokio::spawn(async move { while hangup.recv().await.is_some() && reload.send(()).await.is_ok() {} });
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell(State::Stopping);
    };
    server.serve(stop, reloads).await;
    tracing::info!("stopped");
    Ok(())
}

fn tell(state: State) {
    if let Err(error) = notify(state) {
        tracing::warn!(%error, ?state, "the service manager could not be told");
    }
}
