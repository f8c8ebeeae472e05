//! Clients that all do the same at once, and how long that takes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::{JoinSet, LocalSet};

use super::client::{Client, Lease, upper_of};
use super::subject::Subject;

/// The snapshot that all others stand on: the topmost of [`BASES`] layers.
pub const BASE: &str = "base-4";
/// How many layers are below every snapshot.
const BASES: usize = 5;
/// Files of a snapshot that is committed, and their size: a small layer.
const LAYER: (usize, usize) = (16, 4096);
/// Files of the snapshot whose usage is asked.
const COUNTED: (usize, usize) = (100, 4096);

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Both, until nothing is left of the snapshot: the collector's or the clean-up's share is in the time.
    PrepareRemove,
    /// Of an active snapshot with the files of a small layer.
    Commit,
    /// Of the base.
    View,
    /// Of an active snapshot.
    Mounts,
    /// Of an active snapshot.
    Stat,
    /// Of an active snapshot with a hundred files.
    Usage,
}

impl Operation {
    /// In the order of the table.
    pub const ALL: [Self; 6] =
        [Self::PrepareRemove, Self::Commit, Self::View, Self::Mounts, Self::Stat, Self::Usage];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrepareRemove => "Prepare+Remove",
            Self::Commit => "Commit",
            Self::View => "View",
            Self::Mounts => "Mounts",
            Self::Stat => "Stat",
            Self::Usage => "Usage",
        }
    }

    /// Reads are done more often: they are quick, and change nothing.
    fn times(self) -> usize {
        match self {
            Self::PrepareRemove | Self::Commit | Self::View => 1,
            Self::Mounts | Self::Stat | Self::Usage => 4,
        }
    }
}

/// Times of one cell of the table in one round.
#[derive(Debug)]
pub struct Sample {
    /// From the first call to the end of the last, with what must be awaited after it.
    pub elapsed: Duration,
    /// Of every call.
    pub latencies: Vec<Duration>,
}

/// Commits the layers that all other snapshots stand on.
pub async fn prepare_base(subject: &Subject) -> Result<()> {
    let mut client = Client::connect(subject, None).await?;
    let mut parent = String::new();
    for layer in 0..BASES {
        let (key, name) = (format!("making-base-{layer}"), format!("base-{layer}"));
        let mounts = client.prepare(&key, &parent).await?;
        fill(upper_of(&mounts).as_deref(), LAYER)?;
        client.commit(&name, &key).await?;
        parent = name;
    }
    Ok(())
}

/// One step of a snapshot's life, for those who look at each alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A view of the base.
    View,
    /// An active snapshot with the files of a small layer.
    Prepare,
    /// The same, committed.
    Commit,
    /// The same, removed.
    Remove,
}

impl Step {
    /// In the order in which they can be done, once the views are cleared away.
    pub const ALL: [Self; 4] = [Self::View, Self::Prepare, Self::Commit, Self::Remove];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "View",
            Self::Prepare => "Prepare",
            Self::Commit => "Commit",
            Self::Remove => "Remove",
        }
    }
}

/// One client's share of a cell.
#[derive(Debug)]
pub struct Worker {
    client: Client,
    /// Unique among the workers of all cells.
    tag: String,
    calls: usize,
}

impl Worker {
    fn key(&self, call: usize) -> String {
        format!("{}-{call}", self.tag)
    }

    fn name(&self, call: usize) -> String {
        format!("{}-{call}-committed", self.tag)
    }

    /// What must be there before the clock runs.
    async fn set_up(&mut self, operation: Operation) -> Result<()> {
        let (snapshots, files) = match operation {
            Operation::PrepareRemove | Operation::View => return Ok(()),
            Operation::Commit => (self.calls, LAYER),
            Operation::Mounts | Operation::Stat => (1, LAYER),
            Operation::Usage => (1, COUNTED),
        };
        for call in 0..snapshots {
            let mounts = self.client.prepare(&self.key(call), BASE).await?;
            fill(upper_of(&mounts).as_deref(), files)?;
        }
        Ok(())
    }

    async fn run(&mut self, operation: Operation) -> Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(self.calls * operation.times());
        let first = self.key(0);
        for call in 0..self.calls * operation.times() {
            let (key, name) = (self.key(call), self.name(call));
            let started = Instant::now();
            match operation {
                Operation::PrepareRemove => {
                    self.client.prepare(&key, BASE).await?;
                    self.client.remove(&key).await?;
                }
                Operation::Commit => self.client.commit(&name, &key).await?,
                Operation::View => drop(self.client.view(&key, BASE).await?),
                Operation::Mounts => drop(self.client.mounts(&first).await?),
                Operation::Stat => self.client.stat(&first).await?,
                Operation::Usage => drop(self.client.usage(&first).await?),
            }
            latencies.push(started.elapsed());
        }
        Ok(latencies)
    }

    /// Does one step as often as the worker has calls.
    pub async fn step(&mut self, step: Step) -> Result<()> {
        for call in 0..self.calls {
            let (key, name) = (self.key(call), self.name(call));
            match step {
                Step::View => drop(self.client.view(&key, BASE).await?),
                Step::Prepare => {
                    let mounts = self.client.prepare(&key, BASE).await?;
                    fill(upper_of(&mounts).as_deref(), LAYER)?;
                }
                Step::Commit => self.client.commit(&name, &key).await?,
                Step::Remove => self.client.remove(&name).await?,
            }
        }
        Ok(())
    }

    /// Removes what the cell made.
    pub async fn clear(&mut self, operation: Operation) -> Result<()> {
        let (snapshots, committed) = match operation {
            Operation::PrepareRemove => return Ok(()),
            Operation::Commit => (self.calls, true),
            Operation::View => (self.calls, false),
            Operation::Mounts | Operation::Stat | Operation::Usage => (1, false),
        };
        for call in 0..snapshots {
            let key = if committed { self.name(call) } else { self.key(call) };
            self.client.remove(&key).await?;
        }
        Ok(())
    }
}

/// What one cell is.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// What is timed.
    pub operation: Operation,
    /// How many clients, each with a connection of its own.
    pub clients: usize,
    /// Calls of each client.
    pub calls: usize,
}

/// Measures a cell once. Leaves nothing behind.
pub async fn measure(subject: &Subject, cell: Cell, tag: &str) -> Result<Sample> {
    let lease = if subject.behind { Some(Lease::create(tag).await?) } else { None };
    let mut workers = workers(subject, (cell.clients, cell.calls), tag, lease.as_ref()).await?;
    let operation = cell.operation;
    workers = each(workers, async move |worker| worker.set_up(operation).await).await?.0;
    // Nobody pays for what another has left to be written.
    settle()?;
    let started = Instant::now();
    let (mut workers, latencies) = each(workers, async move |worker| worker.run(operation).await).await?;
    let mut elapsed = started.elapsed();
    if !subject.behind {
        workers = each(workers, async move |worker| worker.clear(operation).await).await?.0;
    }
    let collecting = Instant::now();
    match lease {
        Some(lease) => lease.collect().await?,
        None => workers[0].client.cleanup().await?,
    }
    if operation == Operation::PrepareRemove {
        elapsed += collecting.elapsed();
    }
    Ok(Sample { elapsed, latencies: latencies.into_iter().flatten().collect() })
}

/// Connects that many clients for that many calls each.
pub async fn workers(
    subject: &Subject,
    (clients, calls): (usize, usize),
    tag: &str,
    lease: Option<&Lease>,
) -> Result<Vec<Worker>> {
    let mut workers = Vec::new();
    for number in 0..clients {
        let client = Client::connect(subject, lease).await?;
        workers.push(Worker { client, tag: format!("{tag}-{number}"), calls });
    }
    Ok(workers)
}

/// Lets all do `work` at once and waits for all; they come back with what they gave.
pub async fn each<W: 'static, T: 'static, F>(workers: Vec<W>, work: F) -> Result<(Vec<W>, Vec<T>)>
where
    F: AsyncFn(&mut W) -> Result<T> + Copy + 'static,
{
    let local = LocalSet::new();
    let mut running = JoinSet::new();
    for mut worker in workers {
        let share = async move {
            let value = work(&mut worker).await;
            (worker, value)
        };
        running.spawn_local_on(share, &local);
    }
    let all = async {
        let (mut workers, mut values) = (Vec::new(), Vec::new());
        while let Some(done) = running.join_next().await {
            let (worker, value) = done.context("a client ended early")?;
            workers.push(worker);
            values.push(value?);
        }
        Ok((workers, values))
    };
    local.run_until(all).await
}

/// Writes files of a size into a folder.
fn fill(folder: Option<&Path>, (files, size): (usize, usize)) -> Result<()> {
    let Some(folder) = folder.filter(|folder| folder.exists()) else {
        return Ok(());
    };
    for file in 0..files {
        let path = folder.join(format!("file-{file}"));
        fs::write(&path, vec![0x5a; size]).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Waits until the disk has all that was written to it.
pub fn settle() -> Result<()> {
    let folder = fs::File::open("/var/lib/containerd").context("open containerd's folder")?;
    rustix::fs::syncfs(&folder).context("sync the disk")
}
