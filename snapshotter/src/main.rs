//! capsuled: reads its configuration, looks at the kernel, serves until it is told to stop.

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use capsule_telemetry::TARGET;
use capsuled::{
    config::{Config, ConfigError, DEFAULT_PATH, Format, Level},
    daemon::{self, End},
    store::damage,
    traces,
};
use clap::{CommandFactory as _, Parser};
use clap_mangen::Man;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, fmt, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

/// What a configuration with mistakes exits with, as usage errors do.
const EXIT_CONFIG: u8 = 2;

/// What a daemon that nobody uses exits with: `capsuled.service` knows it, and does not start another before the next call.
const EXIT_IDLE: u8 = 3;

/// The end of the manual page: what is nowhere on the command line.
const MANUAL: &str = include_str!("manual.roff");

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
    /// Print the manual page, for packages
    #[arg(long, hide = true, exclusive = true)]
    man: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.man {
        return manual();
    }
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
    damage::ends_by(end_damaged);
    match run(config, arguments.take_over) {
        Ok(End::Told) => ExitCode::SUCCESS,
        Ok(End::Idle) => ExitCode::from(EXIT_IDLE),
        Err(error) => fail(1, &format_args!("capsuled: {error:#}")),
    }
}

/// What `--help` says, as man(1) reads it, and [`MANUAL`].
fn manual() -> ExitCode {
    let man = Man::new(Arguments::command()).section("8").manual("Resource Capsules");
    let mut page = Vec::new();
    let told = man.render(&mut page).and_then(|()| {
        page.extend_from_slice(MANUAL.as_bytes());
        io::Write::write_all(&mut io::stdout(), &page)
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format_args!("capsuled: print the manual page: {error}")),
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

/// As where a store cannot be opened. Nothing is closed: it would be by what is damaged.
fn end_damaged(damage: &dyn std::fmt::Display) -> ! {
    _ = writeln(&format_args!("capsuled: {damage}")); // as above
    std::process::exit(1)
}

/// There is a connection to each shim, and a container's soft limit of open files may be 1024: all that the hard limit allows.
fn raise_open_files() {
    let given = getrlimit(Resource::Nofile);
    let all = Rlimit { current: given.maximum, ..given };
    if given.current != given.maximum
        && let Err(error) = setrlimit(Resource::Nofile, all)
    {
        tracing::warn!(%error, limit = ?given.current, "the limit of open files stays as it is");
    }
}

fn run(config: Config, take_over: bool) -> anyhow::Result<End> {
    let mut exporter = traces::start(&config.traces)?;
    let spans = exporter.as_mut().map(|exporter| traces::layer(exporter, &config.traces)).transpose()?;
    let (format, filter) = (config.log.format, filter(config.log.level));
    // A line of the log was seen to be missing with a filter for this layer alone (tracing-subscriber 0.3.23, calls on several
    // threads; why is not known): where there are no other layers the filter is for all.
    match spans {
        None => tracing_subscriber::registry().with(filter).with(lines(format)).init(),
        Some(spans) => {
            tracing_subscriber::registry().with(lines(format).with_filter(filter)).with(spans).init();
        }
    }
    let features = overlayfs_utils::probe().context("this machine cannot carry capsules")?;
    tracing::info!(%features, "kernel probed");
    raise_open_files();
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
