//! What a runtime's shim costs: ours beside containerd's own, all in one run and in turns, so that whatever else the
//! machine does hits all of them alike.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`subject`] | which runtimes, over which snapshotters |
//! | [`client`] | a client of containerd's API |
//! | [`lives`] | containers and execs, timed |
//! | [`memory`] | shims, weighed |
//! | [`output`] | standard output, timed |
//! | [`samples`] | the results |

pub mod client;
pub mod lives;
pub mod memory;
pub mod output;
pub mod samples;
pub mod subject;

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use self::client::{Client, Output, Template};
use self::output::Volume;
use self::samples::Samples;
use self::subject::{ALL, SHIMS, Subject};
use super::ctr::run as run_program;
use super::snapshotters::client::NAMESPACE;
use super::snapshotters::rows::Order;
use super::world::{World, path, send_logs};
use crate::event::Reporter;
use crate::images::Image;
use crate::workspace::output_of;

/// The scenario for the table in the documentation.
pub const FULL: &str = "bench-runtime";
/// The same with few rounds: for tests, and while one works on speed.
pub const QUICK: &str = "bench-runtime-quick";

/// What is measured, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Containers that run and end, of each subject.
    runs: usize,
    /// The same by `ctr`.
    ctr_runs: usize,
    /// Execs in one container, of each subject.
    execs: usize,
    /// Shims with ten containers, of each subject.
    groups: usize,
    /// How often many containers are started, by how many clients, and how many.
    crowds: (usize, usize, usize),
    /// How often output is passed on, and how much.
    outputs: (usize, Volume),
}

impl Plan {
    /// For the table in the documentation.
    pub const FULL: Self = Self {
        runs: 200,
        ctr_runs: 200,
        execs: 1000,
        groups: 3,
        crowds: (3, 8, 100),
        outputs: (5, Volume { blocks: 16 << 10, lines: 500_000 }),
    };
    /// For a look.
    pub const QUICK: Self = Self {
        runs: 10,
        ctr_runs: 3,
        execs: 30,
        groups: 1,
        crowds: (1, 8, 16),
        outputs: (1, Volume { blocks: 1 << 10, lines: 50_000 }),
    };
}

/// A benchmark under way.
#[derive(Debug)]
pub struct Bench {
    client: Client,
    templates: HashMap<&'static str, Template>,
    samples: Samples,
    order: Order,
}

impl Bench {
    async fn start() -> Result<Self> {
        let mut client = Client::connect().await?;
        let mut templates = HashMap::new();
        for subject in ALL {
            let snapshotter = subject.snapshotter;
            if templates.contains_key(snapshotter) {
                continue;
            }
            let archive = Image::Busybox.in_machine();
            let archive = archive.to_str().context("an archive's path is no text")?;
            let import = ["-n", NAMESPACE, "image", "import", "--snapshotter", snapshotter, archive];
            run_program("ctr", &import, b"")?.success("import the image")?;
            templates.insert(snapshotter, client.template(snapshotter, Image::Busybox.name()).await?);
        }
        Ok(Self { client, templates, samples: Samples::default(), order: Order::seeded()? })
    }

    fn template(&self, subject: &Subject) -> Result<&Template> {
        self.templates.get(subject.snapshotter).context("a snapshotter without a template")
    }
}

/// Measures and sends the rows.
pub fn run(reporter: &mut Reporter, plan: Plan) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let outcome = runtime.block_on(measure_all(reporter, plan));
    if outcome.is_err() {
        send_logs(reporter);
    }
    outcome
}

async fn measure_all(reporter: &mut Reporter, plan: Plan) -> Result<()> {
    let world = World::start(true)?;
    let mut bench = Bench::start().await?;
    reporter.say("memory of shims");
    for round in 0..plan.groups {
        for subject in bench.order.shuffled(&SHIMS) {
            let group = format!("group-{round}-{}", subject.runtime);
            memory::group(&mut bench, &subject, &group).await.with_context(|| subject.name)?;
        }
    }
    reporter.say(format!("{} containers of each runtime, one at a time", plan.runs + plan.ctr_runs));
    runs(&mut bench, plan).await?;
    reporter.say(format!("{} execs of each runtime", plan.execs));
    execs(&mut bench, plan).await?;
    let (rounds, clients, count) = plan.crowds;
    for round in 0..rounds {
        reporter.say(format!("{count} containers by {clients} clients: {} of {rounds}", round + 1));
        for (number, subject) in bench.order.shuffled(&ALL).iter().enumerate() {
            let tag = format!("crowd-{round}-{number}");
            let crowd = lives::crowd(&mut bench, subject, &tag, (clients, count)).await;
            crowd.with_context(|| subject.name)?;
        }
    }
    reporter.say("standard output");
    let (rounds, volume) = plan.outputs;
    for round in 0..rounds {
        for (number, subject) in bench.order.shuffled(&SHIMS).iter().enumerate() {
            output::measure(&mut bench, subject, &format!("out-{round}-{number}"), volume).await?;
        }
    }
    reporter.data("rows", bench.samples.report());
    reporter.data("versions", json!(versions()?));
    reporter.must("every call of the benchmark succeeded", || Ok(((), String::new())))?;
    world.stop()
}

async fn runs(bench: &mut Bench, plan: Plan) -> Result<()> {
    let every = plan.runs / plan.ctr_runs.max(1);
    for round in 0..plan.runs {
        for (number, subject) in bench.order.shuffled(&ALL).iter().enumerate() {
            let id = format!("run-{round}-{number}");
            lives::run(bench, subject, &id).await.with_context(|| subject.name)?;
            if round % every == 0 {
                lives::run_by_ctr(bench, subject, &format!("ctr-{id}")).with_context(|| subject.name)?;
            }
        }
    }
    Ok(())
}

/// One container of each subject, all execs in it, by turns.
async fn execs(bench: &mut Bench, plan: Plan) -> Result<()> {
    let mut shims = Vec::new();
    for (number, subject) in SHIMS.iter().enumerate() {
        let (id, template) = (format!("execs-{number}"), bench.template(subject)?.clone());
        let rootfs = bench.client.make(subject, &template, &id, &lives::SLEEP, None).await?;
        bench.client.create(&id, rootfs, &Output::default()).await?;
        let pid = bench.client.start(&id, "").await?;
        shims.push((*subject, id, memory::shim_of(pid)?));
    }
    for round in 0..plan.execs {
        for subject in bench.order.shuffled(&SHIMS) {
            let id = shims.iter().find(|(of, ..)| *of == subject).map(|(_, id, _)| id.clone());
            let id = id.context("a subject without a container")?;
            lives::exec(bench, &subject, &id, &format!("e{round}")).await.with_context(|| subject.name)?;
        }
    }
    for (subject, id, shim) in shims {
        bench.weigh_after_execs(&subject, shim).await?;
        bench.client.remove(&subject, &id).await?;
    }
    Ok(())
}

/// containerd's, runc's and the kernel's.
fn versions() -> Result<Vec<String>> {
    let of = |program: &str| output_of(Command::new(program).arg("--version").env("PATH", path()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let runc = of("runc")?;
    let runc = runc.lines().next().unwrap_or_default();
    Ok(vec![of("containerd")?.trim().to_owned(), runc.to_owned(), format!("Linux {}", kernel.trim())])
}
