//! Much output and much input: every byte, in its order.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::bed::{Bed, SLEEP, eventually};
use super::task::{Stdio, Task, read_all, text_of};
use super::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("1 GiB of output through a FIFO", through_fifo).needs(&[Need::Native]),
    Case::new("1 GiB of output to a log file", to_file).needs(&[Need::Native]),
    Case::new("64 MiB of input", input).needs(&[Need::Native]),
];

const ROUNDS: usize = 128;
/// Lines of a round, each of 16 bytes: 8 MiB.
const LINES: usize = 512 << 10;

/// What the container writes: each round says which it is, and no line of it is like another.
fn script() -> String {
    format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); printf '%015d\\n' $i; done > /block; \
         r=0; while [ $r -lt {ROUNDS} ]; do r=$((r+1)); echo round $r; cat /block; done; exec sleep 100000"
    )
}

/// Reads all of that from `from`, and nothing else.
fn compare(mut from: impl Read) -> Result<u64> {
    let mut block = Vec::with_capacity(LINES * 16);
    for line in 1..=LINES {
        writeln!(block, "{line:015}").context("make a block")?;
    }
    let mut seen = vec![0; block.len()];
    let mut total = 0;
    for round in 1..=ROUNDS {
        let head = format!("round {round}\n");
        from.read_exact(&mut seen[..head.len()]).with_context(|| format!("read at {total}"))?;
        ensure!(seen[..head.len()] == *head.as_bytes(), "at {total}: not {head:?}");
        from.read_exact(&mut seen).with_context(|| format!("read at {total}"))?;
        ensure!(seen == block, "another block after {total} bytes");
        total += (head.len() + block.len()) as u64;
    }
    Ok(total)
}

fn through_fifo(bed: &Bed) -> Result<String> {
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let fifo = stdio.stdout.clone();
    let reader = std::thread::spawn(move || -> Result<(u64, Instant, File)> {
        let mut file = File::open(fifo).context("open the output")?;
        let mut first = [0];
        file.read_exact(&mut first).context("read the first byte")?;
        let began = Instant::now();
        Ok((compare(first.chain(&file))?, began, file))
    });
    let task = Task::started(bed, "bulk", &stdio, &["/bin/sh", "-c", &script()])?;
    let (total, began, file) = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    let rate = total as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20);
    drop(file);
    task.remove().map(|()| format!("{total} bytes, {rate:.0} MiB/s"))
}

fn to_file(bed: &Bed) -> Result<String> {
    // On a disk: what lies in /run is memory.
    let path = format!("/var/lib/containerd/{}.log", bed.id("bulk"));
    let uri = format!("file://{path}");
    // Both: containerd's own shim ends over a log file for one stream alone.
    let stdio = Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::default() };
    let task = Task::started(bed, "bulk", &stdio, &["/bin/sh", "-c", &script()])?;
    let expected =
        (1..=ROUNDS).map(|round| format!("round {round}\n").len() + LINES * 16).sum::<usize>() as u64;
    eventually("the end of the log", || {
        let length = fs::metadata(&path).with_context(|| format!("look at {path}"))?.len();
        ensure!(length == expected, "{length} of {expected} bytes");
        Ok(())
    })?;
    let total = compare(File::open(&path).with_context(|| format!("open {path}"))?)?;
    task.remove()?;
    fs::remove_file(&path).with_context(|| format!("remove {path}"))?;
    Ok(format!("{total} bytes"))
}

fn input(bed: &Bed) -> Result<String> {
    const SIZE: usize = 64 << 20;
    let task = Task::started(bed, "input", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::fifos(bed, &["stdin", "stdout"])?;
    let out = read_all(&stdio.stdout);
    task.run_exec("e1", &stdio, &["/bin/sh", "-c", "cat > /input; wc -c < /input"])?;
    let mut file = File::options().write(true).open(&stdio.stdin).context("open the input")?;
    let bytes: Vec<u8> = (0..SIZE / 8).flat_map(|n| (n as u64).to_le_bytes()).collect();
    file.write_all(&bytes).context("write the input")?;
    drop(file);
    task.close_stdin("e1")?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    let path = format!("/proc/{}/root/input", task.get("")?.pid);
    let arrived = fs::read(&path).with_context(|| format!("read {path}"))? == bytes;
    task.delete_exec("e1")?;
    let told = text_of(out)?;
    ensure!(arrived, "other bytes arrived; wc says {told:?}");
    task.remove().map(|()| format!("{} bytes", told.trim()))
}
