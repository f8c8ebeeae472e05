//! capsuled: reads its configuration, looks at the kernel, serves until it is told to stop.

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use capsule_telemetry::TARGET;
use capsuled::{
    config::{Config, ConfigError, DEFAULT_PATH, Format, Level},
    daemon, traces,
};
use clap::Parser;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, fmt, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

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
    /// Look at the kernel, tell what it can do for capsules, and exit
    #[arg(long, conflicts_with = "check_config")]
    check_kernel: bool,
    /// Replace the capsuled that runs, without a call being lost; start as usual when none does
    #[arg(long, conflicts_with_all = ["check_config", "check_kernel"])]
    take_over: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_kernel {
        return check_kernel();
    }
    let config = match load(&arguments) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &format_args!("{:#}", anyhow::Error::new(error))),
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    match run(config, arguments.take_over) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format_args!("capsuled: {error:#}")),
    }
}

/// Without a configuration: one with mistakes says nothing about the kernel.
fn check_kernel() -> ExitCode {
    let features = overlayfs_utils::probe().context("this machine cannot carry capsules");
    let told = features.and_then(|features| {
        io::Write::write_fmt(&mut io::stdout(), format_args!("{features}\n"))
            .context("tell what the kernel can do")
    });
    match told {
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

fn run(config: Config, take_over: bool) -> anyhow::Result<()> {
    let mut exporter = traces::start(&config.traces)?;
    let spans = exporter.as_mut().map(|exporter| traces::layer(exporter, &config.traces)).transpose()?;
    let lines = lines(config.log.format).with_filter(filter(config.log.level));
    tracing_subscriber::registry().with(lines).with(spans).init();
    let features = overlayfs_utils::probe().context("this machine cannot carry capsules")?;
    tracing::info!(%features, "kernel probed");
    let outcome = daemon::run(config, take_over);
    if let Some(exporter) = exporter {
        exporter.end();
    }
    Ok(outcome?)
}

/// The log: lines on standard error.
fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    }
}

/// The solver tells each of its steps as if it were news; spans are for traces.
fn filter(level: Level) -> EnvFilter {
    EnvFilter::new(format!("{},pubgrub=warn,{TARGET}=off", tracing::Level::from(level)))
}
