//! What a snapshotter does for durability, counted, not claimed: the calls that wait for the disk, and whether a
//! snapshot's directory is gone when Remove returns.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::client::{Client, Lease};
use super::load::{BASE, Operation, Step, Worker, each, settle, workers};
use super::node::Node;
use super::subject::Subject;
use crate::scenario::world::path;

/// The calls that wait until the disk has something.
const WAITING: &str = "fdatasync,fsync,syncfs,sync,sync_file_range,msync";
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts of one subject with `clients` clients at once, each of which does every step `calls` times: for each step
/// the calls of each kind that wait for the disk, per call of the client.
pub async fn count(node: &Node, subject: &Subject, clients: usize, calls: usize, tag: &str) -> Result<Value> {
    let mut lease = if subject.behind { Some(Lease::create(tag).await?) } else { None };
    let mut workers: Vec<Worker> = workers(subject, (clients, calls), tag, lease.as_ref()).await?;
    let pids = subject.daemons().iter().map(|daemon| node.pid(daemon)).collect::<Result<Vec<_>>>()?;
    let mut steps = serde_json::Map::new();
    for step in Step::ALL {
        settle()?;
        let trace = Trace::start(&pids)?;
        workers = each(workers, async move |worker| worker.step(step).await).await?.0;
        if step == Step::Remove {
            collect(subject, lease.take()).await?;
        }
        let counts = trace.stop()?;
        let each_call = |count: u64| count as f64 / (clients * calls) as f64;
        let counts: BTreeMap<_, _> =
            counts.into_iter().map(|(name, count)| (name, each_call(count))).collect();
        steps.insert(step.name().to_owned(), json!(counts));
        if step == Step::View {
            workers = each(workers, async |worker| worker.clear(Operation::View).await).await?.0;
            let collector = if subject.behind { Some(Lease::create("views").await?) } else { None };
            collect(subject, collector).await?;
        }
    }
    Ok(json!({ "subject": subject.name(), "clients": clients, "steps": steps }))
}

/// Whether the directory of a snapshot is gone when Remove returns.
pub async fn gone_at_once(subject: &Subject, tag: &str) -> Result<bool> {
    let lease = if subject.behind { Some(Lease::create(tag).await?) } else { None };
    let mut client = Client::connect(subject, lease.as_ref()).await?;
    let before = subject.directories()?;
    client.prepare(tag, BASE).await?;
    let made = subject.directories()?;
    ensure!(made.len() > before.len(), "{}: Prepare made no directory", subject.name());
    client.remove(tag).await?;
    let left = subject.directories()?;
    collect(subject, lease).await?;
    ensure!(
        subject.directories()? == before,
        "{}: the directory of a removed snapshot stays",
        subject.name()
    );
    Ok(left == before)
}

/// Waits until nothing is left of what was removed.
async fn collect(subject: &Subject, lease: Option<Lease>) -> Result<()> {
    match lease {
        Some(lease) => lease.collect().await,
        None => Client::connect(subject, None).await?.cleanup().await,
    }
}

/// `strace` on processes that run.
struct Trace {
    strace: Child,
    output: String,
}

impl Trace {
    fn start(pids: &[u32]) -> Result<Self> {
        let output = "/tmp/strace.out".to_owned();
        let messages = fs::File::create("/tmp/strace.err").context("create a log")?;
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "signal=none", "-e"]).arg(format!("trace={WAITING}"));
        command.args(["-o", &output]).args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
        command.env("PATH", path()).stdin(Stdio::null()).stderr(messages);
        let trace = Self { strace: command.spawn().context("start strace")?, output };
        let deadline = Instant::now() + PATIENCE;
        while !pids.iter().all(|pid| is_traced(*pid)) {
            ensure!(
                Instant::now() < deadline,
                "strace: {}",
                fs::read_to_string("/tmp/strace.err").unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(trace)
    }

    /// How often each call was made.
    fn stop(mut self) -> Result<BTreeMap<String, u64>> {
        let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::INT).context("end strace")?;
        self.strace.wait().context("wait for strace")?;
        let text = fs::read_to_string(&self.output).context("read what strace saw")?;
        Ok(counts_in(&text))
    }
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default()).all(|status| {
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_none_or(|tracer| tracer.trim() != "0") // a thread that ended has no status
    })
}

/// Lines are `PID call(…) = 0`, or in two halves `PID call(… <unfinished ...>` and `PID <... call resumed>) = 0`.
fn counts_in(trace: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        let call = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('));
        if let Some((name, _)) = call.filter(|(name, _)| !name.contains('<')) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_two_halves_is_one_call() {
        let trace = "12  fdatasync(9)    = 0\n13  syncfs(4 <unfinished ...>\n12  fdatasync(9) = 0\n13  <... syncfs resumed>) = 0\n";
        let expected = [("fdatasync".to_owned(), 2), ("syncfs".to_owned(), 1)];
        assert_eq!(counts_in(trace), BTreeMap::from(expected));
    }
}
