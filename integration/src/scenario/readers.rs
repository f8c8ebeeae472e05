//! The programs in the container that watch a capsule while it changes, and what they saw.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::ctr::Container;

/// A volume that the container and the scenario share.
pub const SHARED: &str = "/shared";
/// As `ctr run` takes it, with the capsule trees beside it: what readers compare with.
pub const VOLUMES: [&str; 4] = [
    "--mount",
    "type=bind,src=/shared,dst=/shared,options=rbind:rw",
    "--mount",
    "type=bind,src=/payload/capsules,dst=/reference,options=rbind:ro",
];

/// The same for clients that take volumes as Docker does.
pub const BINDS: [&str; 4] = ["-v", "/shared:/shared", "-v", "/payload/capsules:/reference:ro"];

/// A container that programs are started in, whoever drives it.
pub trait Inside {
    /// Starts a command in it and does not wait for it. `exec_id` is used where the client wants one.
    ///
    /// # Errors
    /// The client's.
    fn spawn(&self, exec_id: &str, command: &[&str]) -> Result<()>;
}

impl Inside for Container {
    fn spawn(&self, exec_id: &str, command: &[&str]) -> Result<()> {
        Self::spawn(self, exec_id, command)
    }
}

/// What one reader counted.
#[derive(Debug, Clone, Deserialize)]
pub struct Count {
    /// Open-read-close rounds.
    pub rounds: u64,
    /// Opens or reads that failed.
    pub errors: u64,
    /// Reads that equalled no version.
    pub torn: u64,
    /// Reads of each allowed version.
    pub seen: Vec<u64>,
    /// The longest time between two rounds' ends, in microseconds.
    pub longest_us: u64,
    /// The first failure.
    pub first_error: String,
}

/// Readers that run in a container.
#[derive(Debug)]
pub struct Readers {
    outs: Vec<PathBuf>,
    stop: PathBuf,
}

impl Readers {
    /// Starts `count` readers of `file` in the container and waits until all of them read.
    pub fn start(container: &impl Inside, count: usize, file: &str, allowed: &[String]) -> Result<Self> {
        Self::across(&vec![container; count], file, allowed)
    }

    /// Starts one in each of the containers, which share the volume.
    pub fn across(containers: &[&impl Inside], file: &str, allowed: &[String]) -> Result<Self> {
        let stop = shared("readers.stop");
        remove(&stop)?;
        let outs: Vec<PathBuf> = (0..containers.len()).map(|n| shared(&format!("reader{n}"))).collect();
        for (n, (out, container)) in outs.iter().zip(containers).enumerate() {
            remove(out)?;
            let (out, stop) = (text(out)?, text(&stop)?);
            let mut command = vec!["/usr/bin/capsule-reader", "read", file, "--out", out, "--stop", stop];
            command.extend(allowed.iter().flat_map(|path| ["--allowed", path.as_str()]));
            container.spawn(&format!("reader{n}"), &command)?;
        }
        for out in &outs {
            wait_for(out, |text| text.starts_with("started"))?;
        }
        Ok(Self { outs, stop })
    }

    /// Ends them; what each counted.
    pub fn stop(self) -> Result<Vec<Count>> {
        fs::write(&self.stop, "").with_context(|| format!("write {}", self.stop.display()))?;
        self.outs
            .iter()
            .map(|out| {
                let line = wait_for(out, |text| text.starts_with('{'))?;
                serde_json::from_str(&line).with_context(|| format!("a reader wrote {line:?}"))
            })
            .collect()
    }
}

/// Fails unless no reader ever missed the file or read anything but one whole version, and each saw every version.
pub fn expect_seamless(counts: &[Count]) -> Result<String> {
    for count in counts {
        ensure!(count.seen.iter().all(|seen| *seen > 0), "a reader did not see every version: {count:?}");
    }
    expect_unbroken(counts)
}

/// Fails unless no reader ever missed the file or read anything but one whole version.
pub fn expect_unbroken(counts: &[Count]) -> Result<String> {
    for count in counts {
        ensure!(
            count.errors == 0,
            "{} of {} rounds failed: {}",
            count.errors,
            count.rounds,
            count.first_error
        );
        ensure!(count.torn == 0, "{} of {} reads equalled no version", count.torn, count.rounds);
    }
    let rounds: u64 = counts.iter().map(|count| count.rounds).sum();
    let longest = counts.iter().map(|count| count.longest_us).max().unwrap_or_default();
    Ok(format!(
        "{rounds} rounds by {} readers, 0 failed opens, 0 torn reads, longest gap {longest} µs",
        counts.len()
    ))
}

/// A process of the container that keeps a file open until it is told to stop.
#[derive(Debug)]
pub struct Holder {
    stop: PathBuf,
    out: PathBuf,
}

impl Holder {
    /// Opens `file` in the container and keeps it open.
    pub fn start(container: &impl Inside, file: &str) -> Result<Self> {
        let (stop, out) = (shared("hold.stop"), shared("hold"));
        remove(&stop)?;
        remove(&out)?;
        let args = ["/usr/bin/capsule-reader", "hold", file, "--stop", text(&stop)?, "--out", text(&out)?];
        container.spawn("holder", &args)?;
        wait_for(&out, |text| text.starts_with("open"))?;
        Ok(Self { stop, out })
    }

    /// Closes the file; its first line, read through the descriptor that was open all the time.
    pub fn stop(self) -> Result<String> {
        fs::write(&self.stop, "").with_context(|| format!("write {}", self.stop.display()))?;
        let line = wait_for(&self.out, |text| text.starts_with("closed after "))?;
        Ok(line.trim().trim_start_matches("closed after ").to_owned())
    }
}

/// The container's first process, which writes the time every 100 ms.
#[derive(Debug)]
pub struct Clock {
    log: PathBuf,
}

impl Clock {
    /// What the container runs, for a clock in `zone`.
    pub fn command(zone: &str) -> [&str; 5] {
        ["/usr/bin/capsule-reader", "clock", zone, "--out", "/shared/clock"]
    }

    /// The clock of the container that runs [`Clock::command`].
    pub fn new() -> Result<Self> {
        fs::create_dir_all(SHARED).with_context(|| format!("create {SHARED}"))?;
        let log = shared("clock");
        remove(&log)?;
        Ok(Self { log })
    }

    /// The clock that runs already: it has its log open, and writes to no other.
    pub fn running() -> Self {
        Self { log: shared("clock") }
    }

    /// The first line written from now on that names this release of tzdata (`none` for no release).
    pub fn shows(&self, release: &str) -> Result<String> {
        let length = fs::metadata(&self.log).map(|meta| meta.len()).unwrap_or_default();
        let start = usize::try_from(length)?;
        let ending = format!("tzdata={release}\n");
        let written = wait_for(&self.log, |text| text.get(start..).is_some_and(|new| new.contains(&ending)))?;
        let new = written.get(start..).unwrap_or_default();
        let line = new.lines().find(|line| line.ends_with(ending.trim_end()));
        Ok(line.context("the clock's line is gone")?.to_owned())
    }

    /// The first line written from now on.
    pub fn ticks(&self) -> Result<String> {
        let before = fs::read_to_string(&self.log).context("read the clock's log")?.lines().count();
        let log = wait_for(&self.log, |text| text.matches('\n').count() > before)?;
        Ok(log.lines().nth(before).unwrap_or_default().to_owned())
    }

    /// Fails unless every line ever written came from one process.
    pub fn expect_one_process(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log).context("read the clock's log")?;
        let mut pids: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
        let lines = pids.len();
        pids.dedup();
        ensure!(pids.len() == 1, "the clock's processes: {pids:?}");
        Ok(format!("{lines} lines, all from {}", pids.concat()))
    }
}

/// A file of the shared volume; the same path inside and outside.
pub fn shared(name: &str) -> PathBuf {
    Path::new(SHARED).join(name)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove a shared file")
        }
        _ => Ok(()),
    }
}

/// Waits until a shared file's content is as wanted; the content.
fn wait_for(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if wanted(&text) {
            return Ok(text);
        }
        if Instant::now() > deadline {
            bail!("{} is still {:?}", path.display(), text.lines().last());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
