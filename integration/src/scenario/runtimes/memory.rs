//! What a shim weighs.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Bench;
use super::client::Output;
use super::lives::SLEEP;
use super::samples::Unit;
use super::subject::Subject;

/// For what ends after the last answer.
const SETTLE: Duration = Duration::from_millis(500);

/// Of one process.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    rss: f64,
    /// Its share of what it shares, and all of what is its own.
    pss: f64,
    /// What no other has and no file holds.
    anonymous: f64,
    threads: f64,
}

impl Weight {
    fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (rollup, status) = (read("smaps_rollup")?, read("status")?);
        let mebibytes = |name| Ok::<_, anyhow::Error>(number(&rollup, name)? / 1024.0);
        Ok(Self {
            rss: mebibytes("Rss:")?,
            pss: mebibytes("Pss:")?,
            anonymous: mebibytes("Anonymous:")?,
            threads: number(&status, "Threads:")?,
        })
    }
}

/// The number after a name at the beginning of a line.
fn number(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.split_ascii_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {name} in {text:?}"))
}

/// The shim of a container whose first process is `pid`: its parent, as a shim adopts what its runtime leaves.
pub fn shim_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(number(&status, "PPid:")? as u32)
}

/// The figures of one state of a shim.
struct Figures {
    rss: &'static str,
    pss: &'static str,
    anonymous: &'static str,
    threads: &'static str,
}

const ONE: Figures = Figures {
    rss: "memory, 1 container: RSS",
    pss: "memory, 1 container: PSS",
    anonymous: "memory, 1 container: anonymous",
    threads: "threads, 1 container",
};
const TEN: Figures = Figures {
    rss: "memory, 10 containers: RSS",
    pss: "memory, 10 containers: PSS",
    anonymous: "memory, 10 containers: anonymous",
    threads: "threads, 10 containers",
};
const EXECS: Figures = Figures {
    rss: "memory after the execs: RSS",
    pss: "memory after the execs: PSS",
    anonymous: "memory after the execs: anonymous",
    threads: "threads after the execs",
};

impl Bench {
    fn weigh(&mut self, subject: &Subject, figures: &Figures, pid: u32) -> Result<()> {
        let weight = Weight::of(pid)?;
        let samples = &mut self.samples;
        samples.add(subject, figures.rss, Unit::Mebibytes, weight.rss);
        samples.add(subject, figures.pss, Unit::Mebibytes, weight.pss);
        samples.add(subject, figures.anonymous, Unit::Mebibytes, weight.anonymous);
        samples.add(subject, figures.threads, Unit::Count, weight.threads);
        Ok(())
    }

    /// After the execs of the benchmark.
    pub async fn weigh_after_execs(&mut self, subject: &Subject, pid: u32) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        self.weigh(subject, &EXECS, pid)
    }

    /// A shim's part of what `count` shims of one container each hold together.
    pub async fn weigh_crowd(&mut self, subject: &Subject, pids: &[u32]) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        let mut total = 0.0;
        for pid in pids {
            total += Weight::of(shim_of(*pid)?)?.pss;
        }
        let share = total / pids.len() as f64;
        self.samples.add(subject, "memory, a shim of many: PSS", Unit::Mebibytes, share);
        Ok(())
    }
}

/// A shim with one container, and with ten in one group, as a pod has them.
pub async fn group(bench: &mut Bench, subject: &Subject, group: &str) -> Result<()> {
    let template = bench.template(subject)?.clone();
    let mut client = bench.client.clone();
    for number in 0..10 {
        let id = format!("{group}-{number}");
        let rootfs = client.make(subject, &template, &id, &SLEEP, Some(group)).await?;
        client.create(&id, rootfs, &Output::default()).await?;
        let pid = client.start(&id, "").await?;
        let figures = match number {
            0 => &ONE,
            9 => &TEN,
            _ => continue,
        };
        tokio::time::sleep(SETTLE).await;
        bench.weigh(subject, figures, shim_of(pid)?)?;
    }
    for number in 0..10 {
        client.remove(subject, &format!("{group}-{number}")).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "Rss:    5704 kB\nPss:     1893 kB\nPss_Anon: 300 kB\n";
        assert_eq!(number(text, "Pss:").unwrap(), 1893.0);
        assert!(number(text, "Swap:").is_err());
    }
}
