//! The test bed's program: outside it makes machines, inside it is their supervisor and their scenarios.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use capsule_integration::event::{Event, Reporter};
use capsule_integration::images::Image;
use capsule_integration::machine::{Job, Kind, Machine};
use capsule_integration::narrate::Narrator;
use capsule_integration::native::rootless;
use capsule_integration::payload::Payload;
use capsule_integration::power::machine::{Filesystem, Load, Omission, Work};
use capsule_integration::power::{self, Campaign};
use capsule_integration::rootfs::{self, Suite};
use capsule_integration::workspace::{Workspace, require_root};
use capsule_integration::{bench, native, nerdctl, scenario, vm};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "capsule-testbed", about = "Runs scenarios against a private containerd")]
struct Args {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// Make what machines need and can be kept: root file systems, images, capsule trees.
    Prepare {
        /// Only this one, and only the images that every scenario needs.
        #[arg(long)]
        suite: Option<Suite>,
    },
    /// Run a scenario and tell what happens.
    Run {
        /// Its name.
        scenario: String,
        /// What it runs on.
        #[arg(long, default_value = "native")]
        machine: Kind,
        /// The machine's root file system.
        #[arg(long, default_value = "forky")]
        suite: Suite,
        /// Also write every event, one JSON object per line, to this file.
        #[arg(long)]
        events: Option<PathBuf>,
    },
    /// Measure attach, upgrade and detach beside their alternatives.
    Bench,
    /// Measure snapshotters: ours, containerd's own, and peers.
    BenchSnapshotter {
        /// A look: without peers, and few rounds.
        #[arg(long)]
        quick: bool,
    },
    /// Measure runtimes: ours, as it is released, and containerd's own.
    BenchRuntime {
        /// A look: few rounds, and the build beside this program.
        #[arg(long)]
        quick: bool,
    },
    /// Measure what ten versions of one tree take: here, and on containerd's overlayfs.
    BenchStorage,
    /// Cut the power of a VM that works, at many points, and check what is left.
    Power {
        /// What its disk holds.
        #[arg(long, default_value = "ext4")]
        filesystem: Filesystem,
        /// What is done in it.
        #[arg(long, default_value = "snapshots")]
        work: Work,
        /// How many cuts of each VM.
        #[arg(long, default_value_t = 60)]
        cuts: usize,
        /// Of the first VM; the next takes the next.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many VMs, one after the other.
        #[arg(long, default_value_t = 1)]
        machines: u64,
        /// How many calls the clients of one make.
        #[arg(long, default_value_t = 400)]
        calls: usize,
        /// Keep capsuled from making this system call: the campaign must notice.
        #[arg(long)]
        without: Option<Omission>,
    },
    #[command(hide = true)]
    PowerGuest,
    #[command(hide = true)]
    PowerCheck { task: String },
    #[command(hide = true)]
    Enter { folder: PathBuf },
    #[command(hide = true)]
    Join { folder: PathBuf },
    #[command(hide = true)]
    Init { folder: PathBuf },
    #[command(hide = true)]
    Janitor { folder: PathBuf },
    #[command(hide = true)]
    Rootless {
        step: rootless::Step,
        #[command(flatten)]
        node: rootless::Node,
    },
    #[command(hide = true)]
    Leash {
        program: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    #[command(hide = true)]
    Scenario { name: String },
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    match dispatch(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "capsule-testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Do) -> Result<ExitCode> {
    match command {
        Do::Prepare { suite } => prepare(suite)?,
        Do::Run { scenario, machine, suite, events } => {
            run(&scenario, Machine { kind: machine, suite }, events.as_deref())?
        }
        Do::Bench => {
            let mut narrator = Narrator::new();
            let table = bench::run(&workspace()?, |event| narrator.tell(event))?;
            write!(std::io::stdout(), "\n{table}").context("write")?;
        }
        Do::BenchSnapshotter { quick } => {
            let mut narrator = Narrator::new();
            let table = bench::snapshotter::run(&workspace()?, quick, |event| narrator.tell(event))?;
            write!(std::io::stdout(), "\n{table}").context("write")?;
        }
        Do::BenchRuntime { quick } => {
            let mut narrator = Narrator::new();
            let table = bench::runtime::run(workspace()?, quick, |event| narrator.tell(event))?;
            write!(std::io::stdout(), "\n{table}").context("write")?;
        }
        Do::BenchStorage => {
            let mut narrator = Narrator::new();
            let table = bench::storage::run(&workspace()?, |event| narrator.tell(event))?;
            write!(std::io::stdout(), "\n{table}").context("write")?;
        }
        Do::Power { filesystem, work, cuts, seed, machines, calls, without } => {
            for seed in seed..seed + machines {
                let load = Load { filesystem, work, seed, calls, seconds: 300, omission: without };
                cut_power(Campaign { load, cuts })?;
            }
        }
        Do::PowerGuest => power::guest::run()?,
        Do::PowerCheck { task } => {
            power::check::run(&serde_json::from_str(&task).context("decode a task")?)?;
        }
        Do::Enter { folder } => native::enter(&folder)?,
        Do::Join { folder } => native::join(&folder)?,
        Do::Init { folder } => return Ok(ExitCode::from(u8::try_from(native::init(&folder)?).unwrap_or(1))),
        Do::Janitor { folder } => native::janitor(&folder)?,
        Do::Rootless { step, node } => {
            return Ok(ExitCode::from(u8::try_from(node.step(step)?).unwrap_or(1)));
        }
        Do::Leash { program, args } => vm::leash(&program, &args)?,
        Do::Scenario { name } => inside(&name, Box::new(std::io::stdout()))?,
        Do::Guest => guest()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn workspace() -> Result<Workspace> {
    Workspace::of(&std::env::current_exe().context("find this program")?)
}

fn prepare(suite: Option<Suite>) -> Result<()> {
    require_root("building a root file system")?;
    let workspace = workspace()?;
    let suites = suite.map_or_else(|| vec![Suite::Forky, Suite::Trixie], |suite| vec![suite]);
    for suite in &suites {
        timed(&format!("root file system of {suite}"), || rootfs::ready(&workspace, *suite))?;
    }
    // With all suites come all scenarios.
    let images: &[Image] = if suite.is_some() { &[Image::Busybox] } else { &Image::ALL };
    timed("images and capsule trees", || Payload::ready(&workspace, images))?;
    if suite.is_none() {
        timed("nerdctl", || nerdctl::ready(&workspace))?;
    }
    Ok(())
}

fn timed<T>(what: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let made = make()?;
    writeln!(std::io::stdout(), "{what}: {:.1} s", started.elapsed().as_secs_f64()).context("write")?;
    Ok(made)
}

fn run(scenario: &str, machine: Machine, events: Option<&Path>) -> Result<()> {
    // As the tests do it.
    let scenario = match scenario {
        "runtime" => scenario::runtime::scenario_of_environment(),
        scenario::life::NAME => scenario::life::scenario_of_environment()?,
        other => other.to_owned(),
    };
    let job = Job { scenario: scenario.clone(), silence: Duration::from_secs(480) };
    let mut copy = match events {
        Some(path) => {
            Some(std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?)
        }
        None => None,
    };
    let mut narrator = Narrator::new();
    let report = machine.run(&workspace()?, &job, |event| {
        narrator.tell(event);
        if let (Some(file), Ok(line)) = (copy.as_mut(), serde_json::to_string(event)) {
            let _ = writeln!(file, "{line}");
        }
    })?;
    narrator.end();
    // Why was told above.
    if report.expect_ok().is_err() {
        bail!("scenario {scenario} failed on {machine}");
    }
    Ok(())
}

fn cut_power(campaign: Campaign) -> Result<()> {
    let workspace = workspace()?;
    let _lock = workspace.lock(Kind::Vm.turn())?;
    let outcome = power::run(&workspace, campaign)?;
    writeln!(std::io::stdout(), "{outcome}").context("write")?;
    if outcome.failures().next().is_some() {
        bail!("something was lost");
    }
    Ok(())
}

/// Runs a scenario in this machine and writes its events to `out`.
fn inside(name: &str, out: Box<dyn Write + Send>) -> Result<()> {
    let mut reporter = Reporter::new(out);
    let outcome = scenario::run(name, &mut reporter);
    if let Err(error) = &outcome {
        reporter.send(&Event::Log { program: "scenario".to_owned(), tail: format!("{error:#}") });
    }
    let ok = outcome.is_ok() && reporter.all_ok();
    reporter.send(&Event::Done { ok });
    if ok { Ok(()) } else { bail!("scenario {name} failed") }
}

/// The VM's side: the scenario is named on the kernel's command line, events go to the port that leads outside.
fn guest() -> Result<()> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("read the kernel's command line")?;
    let name = vm::scenario_of(&cmdline).context("the kernel's command line names no scenario")?;
    let patience = Instant::now() + Duration::from_secs(60);
    while !Path::new(vm::RESULTS).exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
    }
    let port =
        OpenOptions::new().write(true).open(vm::RESULTS).with_context(|| format!("open {}", vm::RESULTS))?;
    vm::mount_peers()?;
    inside(name, Box::new(port))
}
