//! What the kernel does with processes that want more than they may have, and what is told of it; and that their neighbours go on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Confined, FILES, MIB, start};
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::runtime::client::Client;
use crate::scenario::world::until;

/// How often something of `memory.events` was.
fn count(bin: &Confined, event: &str) -> Result<u64> {
    let events = bin.read("memory.events")?;
    let mut words = events.lines().filter_map(|line| line.split_once(' '));
    let (_, count) = words.find(|(name, _)| *name == event).with_context(|| format!("no {event}"))?;
    count.parse().context("memory.events")
}

fn kills(bin: &Confined) -> Result<u64> {
    count(bin, "oom_kill")
}

/// Takes so much memory at once.
pub(super) fn take(bin: &Confined, exec: &str, mib: u64) -> Result<i32> {
    let script = format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1");
    Ok(bin.container.exec(exec, &["/bin/sh", "-c", &script], b"")?.code)
}

/// What `capsulectl top` says that a container uses.
fn top(id: &str) -> Result<Value> {
    let all = json(&["top"])?;
    let rows = all["containers"].as_array().context("containers")?;
    let row = rows.iter().find(|row| row["container"] == id).with_context(|| format!("no {id} in {all}"))?;
    Ok(row["used"].clone())
}

/// A number that `capsulectl metrics` tells of a container, of the line that has all of `words`.
fn metric(id: &str, words: &[&str]) -> Result<f64> {
    let (all, container) = (done(&["metrics"])?, format!("container=\"{id}\""));
    let is_it = |line: &&str| line.contains(&container) && words.iter().all(|word| line.contains(word));
    let line = all.lines().find(is_it).with_context(|| format!("no metric {words:?} of {id}"))?;
    let number = line.rsplit(' ').next().context("a number")?;
    number.parse().with_context(|| line.to_owned())
}

/// Waits until `top` shows that processes of a container wait for something, which the metrics show too.
fn pressed(id: &str, resource: &str) -> Result<f64> {
    let field = format!("{resource}_pressure");
    let seen = std::cell::Cell::new(0.0);
    until(&format!("{id} under pressure, by top"), || {
        seen.set(top(id)?[&field]["some"].as_f64().with_context(|| format!("no {field}"))?);
        Ok(seen.get() > 0.0)
    })?;
    let resource = format!("resource=\"{resource}\"");
    let waited = metric(id, &["capsule_container_pressure_waiting_seconds_total", &resource, "\"some\""])?;
    ensure!(waited > 0.0, "{resource} of {id} in the metrics: {waited}");
    Ok(seen.get())
}

pub fn memory() -> Result<String> {
    let limit = (48 * MIB).to_string();
    let bin = start("eats", "runc", true, &["--memory-limit", &limit])?;
    let beside = start("beside", "crun", false, &["--memory-limit", &limit])?;
    ensure!(take(&bin, "before", 80)? != 0 && kills(&bin)? > 0, "80 MiB fit in 48");
    done(&["attach", "eats", "one", "--grant", "memory.max=64MiB"])?;
    let killed = kills(&bin)?;
    ensure!(take(&bin, "within", 80)? == 0 && kills(&bin)? == killed, "80 MiB do not fit in 112");
    ensure!(take(&bin, "past", 150)? != 0 && kills(&bin)? > killed, "150 MiB fit in 112");
    until("that is told of the attachment", || {
        let told = done(&["events", "--all", "--no-follow", "--container", "eats"])?;
        Ok(told.lines().any(|line| line.contains("out-of-memory") && line.contains("one")))
    })?;
    let killed = kills(&bin)?;
    bin.container.wait_for("RUNNING")?;
    ensure!(kills(&beside)? == 0 && take(&beside, "small", 20)? == 0, "the neighbour was hurt");
    let slowed = high(&bin, &beside)?;

    // What is in use is not taken.
    bin.container.sh("hold", "dd if=/dev/zero of=/dev/shm/held bs=1M count=56 2>/dev/null")?;
    used(&bin, killed)?;
    let line = refused(&["detach", "eats", "one"], &["memory.max", "50331648", "lazy"])?;
    bin.expect("refused", &[("memory.max", "117440512")])?;
    bin.container.sh("still", "cat /opt/one/version")?;
    // Caches are.
    bin.container.sh(
        "cache",
        "rm /dev/shm/held; dd if=/dev/zero of=/cache bs=1M count=60 2>/dev/null; sync; cat /cache > /dev/null",
    )?;
    let used: u64 = bin.read("memory.current")?.parse().context("memory.current")?;
    done(&["detach", "eats", "one"])?;
    bin.expect("detached", &[("memory.max", limit.as_str())])?;
    ensure!(kills(&bin)? == killed, "a detach killed");
    bin.container.remove()?;
    beside.container.remove()?;
    Ok(format!("{slowed} | {line} | detached with {} MiB in use before", used / MIB))
}

/// Past `memory.high` processes are held up, which is told as pressure; what is granted of it they have at once.
fn high(bin: &Confined, beside: &Confined) -> Result<String> {
    let client = Client::connect()?;
    bin.update(&client, r#"{"unified": {"memory.high": "33554432"}}"#)?;
    let held_up = count(bin, "high")?;
    bin.container.spawn("slowed", &["/bin/sh", "-c", "dd if=/dev/zero of=/dev/null bs=60M count=1"])?;
    let pressure = pressed("eats", "memory")?;
    ensure!(count(bin, "high")? > held_up, "60 MiB fit below a memory.high of 32");
    ensure!(take(beside, "beside-high", 20)? == 0, "the neighbour was hurt");
    done(&["attach", "eats", "two@1", "--grant", "memory.high=64MiB"])?;
    bin.expect("granted", &[("memory.high", "100663296")])?;
    until("what was slowed is done", || Ok(bin.read("pids.current")? == "1"))?;
    let held_up = count(bin, "high")?;
    ensure!(take(bin, "free", 60)? == 0, "60 MiB do not fit below a memory.high of 96");
    ensure!(count(bin, "high")? == held_up, "60 MiB are held up below a memory.high of 96");
    done(&["detach", "eats", "two"])?;
    bin.expect("high", &[("memory.high", "33554432")])?;
    bin.update(&client, r#"{"unified": {"memory.high": "max"}}"#)?;
    Ok(format!("memory pressure {pressure}% past memory.high"))
}

/// `top` and the metrics say what the container has: 56 MiB of memory, and processes that were killed.
fn used(bin: &Confined, killed: u64) -> Result<()> {
    let used = top(bin.id())?;
    let number = |field: &str| used[field].as_u64().with_context(|| format!("no {field} in {used}"));
    ensure!(number("memory")? > 56 * MIB && number("memory")? < 112 * MIB, "{used}");
    ensure!(number("memory_limit")? == 112 * MIB && number("pids")? == 1, "{used}");
    ensure!(number("oom_kills")? == killed, "{used}");
    #[allow(clippy::cast_precision_loss)] // small numbers
    for (name, at_least) in [
        ("capsule_container_memory_bytes", (56 * MIB) as f64),
        ("capsule_container_oom_kills_total", killed as f64),
        ("capsule_container_cpu_seconds_total", 0.001),
    ] {
        let told = metric(bin.id(), &[name])?;
        ensure!(told >= at_least, "{name}: {told}");
    }
    Ok(())
}

pub fn forks() -> Result<String> {
    let (bin, beside) = (start("bomb", "crun", true, &[])?, start("beside", "runc", false, &[])?);
    done(&["attach", "bomb", "one", "--cap", "pids.max=20"])?;
    let bomb = "i=0; while [ $i -lt 60 ]; do sleep 500 & i=$((i+1)); done; wait";
    bin.container.spawn("bomb", &["/bin/sh", "-c", bomb])?;
    until("no more processes fit", || Ok(bin.read("pids.events")?.trim() != "max 0"))?;
    let count: u64 = bin.read("pids.current")?.parse().context("pids.current")?;
    ensure!(count <= 20, "{count} processes");
    beside.container.sh("fork", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0 & done; wait")?;
    bin.container.remove()?;
    beside.container.remove()?;
    Ok(format!("{count} processes"))
}

/// Publishes a capsule with a file of 16 MiB.
fn publish_large(name: &str) -> Result<()> {
    let tree = format!("{FILES}/{name}");
    fs::create_dir_all(&tree).context("a tree")?;
    let make = format!("dd if=/dev/urandom of={tree}/file bs=1M count=16 2>/dev/null");
    crate::workspace::output_of(std::process::Command::new("sh").args(["-c", &make]))?;
    done(&["build", &tree, "--name", name, "--version", "1", "--target", &format!("/opt/{name}")])?;
    rustix::fs::sync();
    Ok(())
}

/// How long a file takes to be read, by the container's clock: to start an exec takes longer.
fn time_to_read(bin: &Confined, exec: &str, file: &str) -> Result<Duration> {
    let script =
        format!("read a x < /proc/uptime; cat {file} > /dev/null; read b x < /proc/uptime; echo $a $b");
    let said = bin.container.sh(exec, &script)?;
    let mut times = said.split_ascii_whitespace().map(str::parse::<f64>);
    let (Some(Ok(began)), Some(Ok(ended))) = (times.next(), times.next()) else { bail!("{said:?}") };
    Duration::try_from_secs_f64(ended - began).context("a time")
}

/// So that what is read next comes from the disk.
fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop caches")
}

/// A file of a capsule, in a container that reads it at so much a second, and beside it one that reads another at once.
pub fn reading() -> Result<String> {
    for capsule in ["large", "other"] {
        publish_large(capsule)?;
    }
    let (bin, beside) = (start("reads", "runc", false, &[])?, start("beside", "crun", false, &[])?);
    done(&["attach", "beside", "other"])?;
    done(&["attach", "reads", "large", "--cap", "io.max=store rbps=512K"])?;
    drop_caches()?;
    let (capped, free, pressure) = std::thread::scope(|scope| {
        let capped = scope.spawn(|| time_to_read(&bin, "capped", "/opt/large/file"));
        // While the first one reads.
        let pressure = pressed("reads", "io");
        let free = time_to_read(&beside, "free", "/opt/other/file");
        let is_still_reading = !capped.is_finished();
        let capped = capped.join().map_err(|_| anyhow::anyhow!("the reader's thread"))??;
        let (free, pressure) = (free?, pressure?);
        ensure!(is_still_reading, "the neighbour read after the other one was done: {free:?}, {capped:?}");
        Ok((capped, free, pressure))
    })?;
    let read = metric("reads", &["capsule_container_io_read_bytes_total"])?;
    ensure!(read >= 16.0 * 1024.0 * 1024.0, "{read} bytes read, by the metrics");
    done(&["detach", "reads", "large"])?;
    done(&["attach", "reads", "large"])?;
    drop_caches()?;
    let again = time_to_read(&bin, "again", "/opt/large/file")?;
    let said = format!(
        "16 MiB of a capsule: at 512 KiB/s {capped:.1?} with an I/O pressure of {pressure}%, beside it {free:.1?}, without a cap {again:.1?}"
    );
    ensure!(capped > Duration::from_secs(24), "{said}");
    ensure!(capped > free && capped > again, "{said}");
    ensure!(bin.read("io.max")?.is_empty(), "io.max: {}", bin.read("io.max")?);
    bin.container.remove()?;
    beside.container.remove()?;
    Ok(said)
}
