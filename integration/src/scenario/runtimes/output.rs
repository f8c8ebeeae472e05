//! How fast a shim passes on what a container writes.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::sync::oneshot;

use super::Bench;
use super::client::Output;
use super::samples::Unit;
use super::subject::Subject;
use crate::scenario::snapshotters::load::settle;

/// In the machine's memory: a disk would be what is measured.
const FOLDER: &str = "/run/bench";
/// What each write of a container that writes in lines is.
const LINE: u64 = 100;
const BLOCK: u64 = 64 << 10;

/// How much is written.
#[derive(Debug, Clone, Copy)]
pub struct Volume {
    /// In blocks of 64 KiB.
    pub blocks: u64,
    /// In lines of 100 bytes, one call each.
    pub lines: u64,
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A client that reads all there is.
    Fifo,
    /// A log file that the shim writes.
    File,
}

/// Every way of one subject.
pub async fn measure(bench: &mut Bench, subject: &Subject, tag: &str, volume: Volume) -> Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER}"))?;
    for (way, size, count, figure) in [
        (Way::Fifo, BLOCK, volume.blocks, "stdout: FIFO, bytes"),
        (Way::File, BLOCK, volume.blocks, "stdout: log file, bytes"),
        (Way::Fifo, LINE, volume.lines, "stdout: FIFO, lines"),
        (Way::File, LINE, volume.lines, "stdout: log file, lines"),
    ] {
        let took = pass(bench, subject, &format!("{tag}-{way:?}-{size}"), way, (size, count)).await;
        let took = took.with_context(|| format!("{figure} of {}", subject.name))?.as_secs_f64();
        match size {
            LINE => bench.samples.add(subject, figure, Unit::LinesPerSecond, count as f64 / took),
            _ => {
                let mebibytes = (size * count) as f64 / f64::from(1 << 20);
                bench.samples.add(subject, figure, Unit::MebibytesPerSecond, mebibytes / took);
            }
        }
    }
    Ok(())
}

/// Has a container write and waits until all of it has come; the time from its start.
async fn pass(
    bench: &mut Bench,
    subject: &Subject,
    id: &str,
    way: Way,
    (size, count): (u64, u64),
) -> Result<Duration> {
    let template = bench.template(subject)?.clone();
    let mut client = bench.client.clone();
    let path = format!("{FOLDER}/{id}");
    // What it says of itself would be output too.
    let script = format!("exec dd if=/dev/zero bs={size} count={count} 2>/dev/null");
    let write = ["/bin/sh", "-c", &script];
    let rootfs = client.make(subject, &template, id, &write, None).await?;
    settle()?;
    let (stdout, reader) = match way {
        Way::Fifo => {
            mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).context("make a FIFO")?;
            let opened = path.clone();
            let (sender, read) = oneshot::channel();
            // Not on the runtime, whose end would wait for a reader that nobody writes to.
            std::thread::spawn(move || sender.send(read_all(Path::new(&opened))));
            (path.clone(), Some(read))
        }
        Way::File => (format!("file://{path}"), None),
    };
    client.create(id, rootfs, &Output { stdout }).await?;
    let began = Instant::now();
    client.start(id, "").await?;
    let status = client.wait(id, "").await?;
    // The shim keeps a FIFO open until its task is deleted, so its reader says when it has read all.
    let ended = Instant::now();
    client.delete(id).await?;
    let (got, ended) = match reader {
        Some(reader) => reader.await.context("the reader")??,
        None => (fs::metadata(&path).with_context(|| format!("stat {path}"))?.len(), ended),
    };
    ensure!(status == 0, "{id}: exit status {status}");
    ensure!(got == size * count, "{id}: {got} of {} bytes came", size * count);
    fs::remove_file(&path).with_context(|| format!("remove {path}"))?;
    client.unmake(subject, id).await?;
    Ok(ended - began)
}

/// Reads a FIFO to its end; how much there was, and when the last of it came.
fn read_all(path: &Path) -> Result<(u64, Instant)> {
    let mut fifo = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut bytes, mut total, mut last) = (vec![0; 1 << 20], 0, Instant::now());
    loop {
        match fifo.read(&mut bytes).context("read a FIFO")? {
            0 => return Ok((total, last)),
            length => (total, last) = (total + length as u64, Instant::now()),
        }
    }
}
