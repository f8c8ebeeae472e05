//! Power cuts at any point: every acknowledged call is there and whole, and nothing else is visible.
//!
//! A VM works on a disk that is served by this process ([`nbd`]) and recorded: every write and every flush, in order,
//! and between them marks that say which calls had been acknowledged ([`journal`]). The record holds every power cut
//! that could have happened: a cut after event N leaves what was flushed before N, and any part of what was not.
//! [`cut`] chooses cuts and makes the images they leave; [`check`] lets the file system and capsuled recover on each
//! and compares what they then hold with what had been acknowledged ([`expect`]).
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`machine`], [`initramfs`] | the VM | qemu |
//! | [`nbd`], [`record`] | the disk and its record | one abstract socket |
//! | [`guest`], [`workload`], [`tree`] | what works inside the VM | the VM |
//! | [`client`], [`journal`] | calls, and marks of calls | capsuled's socket, the device of marks |
//! | [`attached`] | the campaign of what is attached, which has containerd and containers | the VM, and mounts of the worker |
//! | [`cut`], [`expect`], [`random`] | choices and expectations: pure | images it is told to make |
//! | [`check`] | recovery and comparison | mounts in a namespace of its own |

pub mod attached;
pub mod check;
pub mod client;
pub mod cut;
pub mod expect;
pub mod guest;
pub mod initramfs;
pub mod journal;
pub mod machine;
pub mod nbd;
pub mod random;
pub mod record;
pub mod tree;
pub mod workload;

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::rootfs::{self, Suite};
use crate::vm;
use crate::workspace::{Workspace, remove_tree, require_root};
use check::{Task, Verdict};
use machine::{Filesystem, Load};
use record::{Event, Record};

/// Checks at once; more than that and they wait for one another.
const WORKERS: usize = 2;
/// How many failures are told at length.
const TOLD: usize = 8;
/// The folder below `target/` with what a failure leaves for a person to look at.
const FAILURES: &str = "power-failures";

/// A campaign: one VM, many cuts.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// What the VM does.
    pub load: Load,
    /// How many cuts.
    pub cuts: usize,
}

/// What a campaign found.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub campaign: Campaign,
    /// Events of the record that are writes, flushes.
    pub writes: usize,
    /// See `writes`.
    pub flushes: usize,
    /// Of each cut.
    pub verdicts: Vec<Verdict>,
    /// Where to look for the record and the first images after which something was wrong.
    pub evidence: Option<PathBuf>,
    /// How long the VM took, and the checks.
    pub took: (Duration, Duration),
}

impl Outcome {
    /// The cuts after which something was wrong.
    pub fn failures(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| verdict.failure.is_some())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = |of: fn(&Verdict) -> usize| self.verdicts.iter().map(of).max().unwrap_or(0);
        let sum = |of: fn(&Verdict) -> usize| self.verdicts.iter().map(of).sum::<usize>();
        let Load { filesystem, work, seed, .. } = self.campaign.load;
        write!(
            f,
            "power cuts on {filesystem}, {work}, seed {seed}: {} cuts in {} writes and {} flushes; up to {} calls ({} commits) \
             acknowledged before a cut; {} unflushed writes at stake, {} of them kept; {} calls under way; {} trees \
             compared; {} cuts lost something (VM {:.0} s, checks {:.0} s)",
            self.verdicts.len(),
            self.writes,
            self.flushes,
            most(|verdict| verdict.acknowledged),
            most(|verdict| verdict.commits),
            sum(|verdict| verdict.at_stake),
            sum(|verdict| verdict.kept),
            sum(|verdict| verdict.under_way),
            sum(|verdict| verdict.compared),
            self.failures().count(),
            self.took.0.as_secs_f64(),
            self.took.1.as_secs_f64(),
        )?;
        for verdict in self.failures().take(TOLD) {
            let failure: String = verdict.failure.iter().flat_map(|text| text.chars()).take(600).collect();
            write!(f, "\nseed {seed}, cut {} ({}): {failure}", verdict.number, verdict.cut)?;
        }
        match &self.evidence {
            Some(folder) => {
                write!(f, "\nthe record, and images of the first, are kept in {}", folder.display())
            }
            None => Ok(()),
        }
    }
}

/// Runs a campaign to its end. An error is one of the test bed; what capsuled lost is in the outcome.
pub fn run(workspace: &Workspace, campaign: Campaign) -> Result<Outcome> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    require_root("a campaign of power cuts")?;
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let runs = workspace.target("runs")?;
    vm::sweep(&runs)?;
    let id = format!("vm-{}-power-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let folder = runs.join(id);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let started = Instant::now();
    let record = machine::record(workspace, &rootfs, &folder, campaign.load)?;
    let worked = started.elapsed();
    let saved = folder.join("record");
    record.save(&saved)?;
    let verdicts = check_all(workspace, &folder, &saved, campaign)?;
    ensure!(verdicts.len() == campaign.cuts, "{} of {} cuts were checked", verdicts.len(), campaign.cuts);
    let lost = verdicts.iter().any(|verdict| verdict.failure.is_some());
    let evidence = match failures_folder(workspace, campaign.load)? {
        Some(folder) if lost => Some(keep_record(folder, &saved, campaign.load)?),
        _ => None,
    };
    let outcome = Outcome {
        campaign,
        evidence,
        writes: count(&record, |event| matches!(event, Event::Write { .. })),
        flushes: count(&record, |event| *event == Event::Flush),
        verdicts,
        took: (worked, started.elapsed().saturating_sub(worked)),
    };
    remove_tree(&folder)?;
    Ok(outcome)
}

/// Where failures are kept for a person to look at; nowhere when they are wanted.
fn failures_folder(workspace: &Workspace, load: Load) -> Result<Option<PathBuf>> {
    if load.omission.is_some() { Ok(None) } else { workspace.target(FAILURES).map(Some) }
}

fn keep_record(folder: PathBuf, record: &Path, load: Load) -> Result<PathBuf> {
    let to = folder.join(format!("{}-{}-seed-{}.record", load.filesystem, load.work, load.seed));
    fs::copy(record, &to).with_context(|| format!("copy {}", record.display()))?;
    Ok(folder)
}

fn count(record: &Record, of: impl Fn(&Event) -> bool) -> usize {
    record.events.iter().filter(|event| of(event)).count()
}

/// Divides the cuts among workers and collects their verdicts, in the order of the cuts.
fn check_all(
    workspace: &Workspace,
    folder: &Path,
    record: &Path,
    campaign: Campaign,
) -> Result<Vec<Verdict>> {
    let workers = (0..WORKERS).map(|number| {
        let own = folder.join(format!("worker-{number}"));
        fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
        let task = Task {
            xfs: campaign.load.filesystem == Filesystem::Xfs,
            work: campaign.load.work,
            record: record.to_owned(),
            folder: own,
            failures: failures_folder(workspace, campaign.load)?,
            programs: workspace.program(""),
            cuts: campaign.cuts,
            seed: campaign.load.seed,
            workers: WORKERS,
            number,
        };
        start_worker(workspace, &task)
    });
    let workers = workers.collect::<Result<Vec<_>>>()?;
    let mut verdicts = std::thread::scope(|scope| {
        let readers: Vec<_> = workers.into_iter().map(|worker| scope.spawn(|| collect(worker))).collect();
        let all: Result<Vec<Vec<Verdict>>> = readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
            .collect();
        all
    })?
    .concat();
    verdicts.sort_by_key(|verdict| verdict.number);
    Ok(verdicts)
}

/// In namespaces that end with it, and tied to this process's life.
fn start_worker(workspace: &Workspace, task: &Task) -> Result<Child> {
    let testbed = workspace.testbed();
    let task = serde_json::to_string(task).context("encode a task")?;
    Command::new(&testbed)
        .args(["leash", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .arg(&testbed)
        .arg("power-check")
        .arg(task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a worker")
}

fn collect(mut worker: Child) -> Result<Vec<Verdict>> {
    let out = worker.stdout.take().context("a worker has no output")?;
    let lines = BufReader::new(out).lines();
    let verdicts =
        lines.map(|line| Ok(serde_json::from_str(&line.context("read a worker's output")?)?)).collect();
    let status = worker.wait().context("wait for a worker")?;
    ensure!(status.success(), "a worker failed ({status}); see above");
    verdicts
}
