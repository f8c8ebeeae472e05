//! Very many snapshots: List, memory, and the time to start.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::client::Client;
use super::load::{BASE, each, settle};
use super::node::Node;
use super::subject::Subject;

/// Clients that make the snapshots.
const CLIENTS: usize = 64;
/// How often a daemon is started.
const STARTS: usize = 5;

/// How many committed snapshots are made: images of `layers` layers each.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Chains.
    pub images: usize,
    /// Their length.
    pub layers: usize,
}

impl Size {
    fn snapshots(self) -> usize {
        self.images * self.layers
    }
}

struct Filler {
    client: Client,
    images: Vec<usize>,
    layers: usize,
}

impl Filler {
    async fn fill(&mut self) -> Result<()> {
        for image in &self.images {
            let mut parent = String::new();
            for layer in 0..self.layers {
                // As long as the chain ids that containerd uses.
                let name = format!("sha256:{image:032x}{layer:032x}");
                let key = format!("extract-{name}");
                self.client.prepare(&key, &parent).await?;
                self.client.commit(&name, &key).await?;
                parent = name;
            }
        }
        Ok(())
    }
}

/// Makes the snapshots; how long it took.
pub async fn fill(subject: &Subject, size: Size) -> Result<Duration> {
    let mut fillers = Vec::new();
    for first in 0..CLIENTS.min(size.images) {
        let images = (first..size.images).step_by(CLIENTS).collect();
        let client = Client::connect(subject, None).await?;
        fillers.push(Filler { client, images, layers: size.layers });
    }
    let started = Instant::now();
    each(fillers, async |filler| filler.fill().await).await?;
    Ok(started.elapsed())
}

/// Lists everything at once from `clients` clients; how long until the last has its list.
pub async fn list(subject: &Subject, clients: usize, size: Size) -> Result<Duration> {
    let mut listers = Vec::new();
    for _ in 0..clients {
        listers.push(Client::connect(subject, None).await?);
    }
    let started = Instant::now();
    let (_, counts) = each(listers, async |client| client.list().await).await?;
    let elapsed = started.elapsed();
    let short = counts.iter().find(|count| **count < size.snapshots());
    ensure!(short.is_none(), "{} listed {short:?} of {}", subject.name(), size.snapshots());
    Ok(elapsed)
}

/// Memory of a subject's daemon as it has been filled; where the daemon is the subject's alone, after a start too, and
/// how long a start takes until the first answer.
pub async fn weigh(node: &mut Node, subject: &Subject) -> Result<Value> {
    let daemon = subject.daemon().unwrap_or_else(|| "containerd".to_owned());
    let filled = memory(node.pid(&daemon)?)?;
    if subject.behind {
        return Ok(json!({ "subject": subject.name(), "daemon": daemon, "filled": filled }));
    }
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        settle()?;
        let started = node.restart(subject)?;
        Client::connect(subject, None).await?.stat(BASE).await?;
        starts.push(started.elapsed().as_secs_f64() * 1e3);
    }
    starts.sort_by(f64::total_cmp);
    Ok(json!({
        "subject": subject.name(), "daemon": daemon, "filled": filled,
        "restarted": memory(node.pid(&daemon)?)?, "start_ms": starts.get(STARTS / 2),
    }))
}

/// What a process holds in memory, in KiB: `rss_kib`, and `pss_kib`, in which shared pages count in part.
fn memory(pid: u32) -> Result<Value> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        number.and_then(|number| number.parse().ok()).with_context(|| format!("{path}: no {name}"))
    };
    Ok(json!({ "rss_kib": field("Rss:")?, "pss_kib": field("Pss:")? }))
}
