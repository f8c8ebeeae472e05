//! What a snapshotter costs: ours beside containerd's own and beside peers, all in one run and in turns, so that
//! whatever else the machine does hits all of them alike.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`subject`] | which snapshotters, and the ways to them |
//! | [`node`] | their daemons |
//! | [`nothing`] | a snapshotter that does nothing: what containerd alone costs |
//! | [`client`] | one client, one connection |
//! | [`load`] | many clients at once, timed |
//! | [`rows`] | the order of the rounds, and their results |
//! | [`syncs`] | what waits for the disk, counted by `strace` |
//! | [`unpack`] | an image of forty layers |
//! | [`large`] | ten thousand snapshots |

pub mod client;
pub mod large;
pub mod load;
pub mod node;
pub mod nothing;
pub mod rows;
pub mod subject;
pub mod syncs;
pub mod unpack;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use self::load::{Cell, Operation, measure, prepare_base};
use self::node::Node;
use self::rows::{Order, Rows};
use self::subject::{Snapshotter, Subject};
use super::world::{path, send_logs};
use crate::event::Reporter;
use crate::workspace::output_of;

/// The scenario with the peers.
pub const FULL: &str = "bench-snapshotter";
/// The scenario without them, and with few rounds: for tests, and while one works on speed.
pub const QUICK: &str = "bench-snapshotter-quick";

/// What is measured, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    peers: bool,
    rounds: usize,
    /// Clients at once, and what each calls in a round.
    loads: &'static [(usize, usize)],
    /// Clients that unpack at once, and how often.
    unpacks: &'static [(usize, usize)],
    /// Clients at once of List, and how often.
    lists: &'static [(usize, usize)],
    large: large::Size,
    /// Clients at once while calls are counted, and what each calls.
    counts: &'static [(usize, usize)],
}

impl Plan {
    /// For the table in the documentation.
    pub const FULL: Self = Self {
        peers: true,
        rounds: 5,
        loads: &[(1, 40), (16, 8), (64, 4)],
        unpacks: &[(1, 11), (16, 3), (64, 2)],
        lists: &[(1, 5), (16, 1), (64, 1)],
        large: large::Size { images: 250, layers: 40 },
        counts: &[(1, 10), (64, 2)],
    };
    /// For a look.
    pub const QUICK: Self = Self {
        peers: false,
        rounds: 1,
        loads: &[(1, 20), (16, 4), (64, 2)],
        unpacks: &[(1, 1)],
        lists: &[(1, 1)],
        large: large::Size { images: 8, layers: 25 },
        counts: &[(1, 10)],
    };

    fn snapshotters(self) -> Vec<Snapshotter> {
        let mut snapshotters = vec![Snapshotter::Overlayfs, Snapshotter::Capsule];
        if self.peers {
            snapshotters.extend([Snapshotter::Soci, Snapshotter::Nydus, Snapshotter::Overlaybd]);
        }
        snapshotters.push(Snapshotter::Nothing);
        snapshotters
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
    let subjects = Subject::of(&plan.snapshotters());
    let mut node = Node::start(&subjects)?;
    for subject in &subjects {
        prepare_base(subject).await.with_context(|| subject.name())?;
    }
    reporter.say("calls that wait for the disk");
    reporter.data("syncs", json!(count_syncs(&node, &subjects, plan).await?));
    let mut order = Order::seeded()?;
    let mut rows = Rows::default();
    for round in 0..plan.rounds {
        reporter.say(format!("round {} of {}", round + 1, plan.rounds));
        one_round(&mut rows, &mut order, &subjects, plan, round).await?;
    }
    reporter.say("unpacking");
    unpack_all(&mut rows, &mut order, &subjects, plan).await?;
    reporter.say(format!("{} snapshots", plan.large.images * plan.large.layers));
    let large = large_part(&mut rows, &mut node, &mut order, &subjects, plan).await?;
    reporter.data("large", json!(large));
    reporter.data("rows", rows.report(&subjects));
    reporter.data("versions", json!(versions()?));
    reporter.must("every call of the benchmark succeeded", || Ok(((), String::new())))?;
    node.stop()
}

async fn count_syncs(node: &Node, subjects: &[Subject], plan: Plan) -> Result<Vec<Value>> {
    let mut counts = Vec::new();
    for subject in on_disk(subjects) {
        let gone = syncs::gone_at_once(subject, "gone").await?;
        for (clients, calls) in plan.counts {
            let tag = format!("count-{clients}");
            let mut count = syncs::count(node, subject, *clients, *calls, &tag).await?;
            count["gone_at_once"] = json!(gone);
            counts.push(count);
        }
    }
    Ok(counts)
}

async fn one_round(
    rows: &mut Rows,
    order: &mut Order,
    subjects: &[Subject],
    plan: Plan,
    round: usize,
) -> Result<()> {
    for (clients, calls) in plan.loads {
        for operation in Operation::ALL {
            for subject in order.shuffled(subjects) {
                let cell = Cell { operation, clients: *clients, calls: *calls };
                let tag = format!("{round}-{clients}-{}", operation.name());
                let sample = measure(&subject, cell, &tag)
                    .await
                    .with_context(|| format!("{}: {} clients", subject.name(), clients))?;
                rows.add(&subject, operation.name(), *clients, &sample.latencies, sample.elapsed);
            }
        }
    }
    Ok(())
}

/// Not by the peers' own sockets: clients unpack through containerd.
async fn unpack_all(rows: &mut Rows, order: &mut Order, subjects: &[Subject], plan: Plan) -> Result<()> {
    let layers = unpack::import()?;
    let subjects: Vec<Subject> = on_disk(subjects)
        .filter(|subject| subject.behind || subject.snapshotter == Snapshotter::Capsule)
        .copied()
        .collect();
    for (clients, rounds) in plan.unpacks {
        for round in 0..*rounds {
            for subject in order.shuffled(&subjects) {
                let tag = format!("unpack-{clients}-{round}");
                let unpacked = unpack::measure(&subject, &layers, *clients, &tag).await;
                let unpacked = unpacked.with_context(|| subject.name())?;
                rows.add(&subject, "Unpack", *clients, &unpacked.latencies, unpacked.elapsed);
                let durable = vec![unpacked.durable; *clients];
                rows.add(&subject, "Unpack, synced", *clients, &durable, unpacked.durable);
            }
        }
    }
    Ok(())
}

async fn large_part(
    rows: &mut Rows,
    node: &mut Node,
    order: &mut Order,
    subjects: &[Subject],
    plan: Plan,
) -> Result<Vec<Value>> {
    let mut weights = Vec::new();
    let filled: Vec<Subject> = on_disk(subjects).filter(|subject| worth_filling(subject)).copied().collect();
    for subject in &filled {
        let took = large::fill(subject, plan.large).await.with_context(|| subject.name())?;
        let mut weight = large::weigh(node, subject).await.with_context(|| subject.name())?;
        weight["fill_s"] = json!(took.as_secs_f64());
        weights.push(weight);
    }
    for (clients, rounds) in plan.lists {
        for _ in 0..*rounds {
            for subject in order.shuffled(&filled) {
                let took = large::list(&subject, *clients, plan.large).await?;
                rows.add(&subject, "List", *clients, &vec![took; *clients], took);
            }
        }
    }
    Ok(weights)
}

/// Not the peers behind containerd: filling them takes minutes, and List is there containerd's, which asks the
/// snapshotter for one snapshot after the other.
fn worth_filling(subject: &Subject) -> bool {
    !subject.behind || matches!(subject.snapshotter, Snapshotter::Overlayfs | Snapshotter::Capsule)
}

/// All but the one that keeps nothing.
fn on_disk(subjects: &[Subject]) -> impl Iterator<Item = &Subject> {
    subjects.iter().filter(|subject| subject.snapshotter != Snapshotter::Nothing)
}

/// containerd's, the kernel's and the peers' versions.
fn versions() -> Result<Vec<String>> {
    let containerd = output_of(Command::new("containerd").arg("--version").env("PATH", path()))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let peers = fs::read_to_string("/peers/versions").unwrap_or_default();
    let lines = [containerd.as_str(), &format!("Linux {kernel}"), &peers].concat();
    Ok(lines.lines().map(str::to_owned).collect())
}
