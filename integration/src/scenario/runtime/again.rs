//! A container's next task has what its last one had, whatever dies in between; only our runtime has that.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Case;
use super::bed::{Bed, FILES, eventually};
use super::capsules::{ATTACH, bare_root};
use crate::scenario::capsulectl::{Seen, done, ps, refused};
use crate::scenario::ctr::{Container, OURS, Output, ctr};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("the next task has what was attached by hand, before its first process", by_hand).in_vm(),
    Case::new("it is kept while capsuled is killed between two tasks", capsuled_killed),
    Case::new("it is kept while containerd is killed between two tasks", containerd_killed),
    Case::new("by hand it can be upgraded and goes back, in the next task too", moved).in_vm(),
    Case::new("what cannot be attached again is named, and waits until it is detached", taken),
    Case::new("it goes with its container, also while capsuled is away", deleted),
    Case::new("what has no attachments starts without capsuled", without),
];

/// Says what its first process finds, and stays.
const LOOKS: &str = "ls /usr/share/zoneinfo 2>&1 | wc -l > /found; exec sleep 100000";

fn start(bed: &Bed, options: &[&str]) -> Result<Container> {
    OURS.start(&bed.id("again"), options, &["/bin/sh", "-c", LOOKS])
}

/// The same on a root of its own, `FILES/NAME`.
fn on_bare_root(bed: &Bed, name: &str) -> Result<Container> {
    let (root, id) = (bare_root(name)?, bed.id(name));
    let run = ["--rootfs", &root, &id, "/bin/sh", "-c", LOOKS];
    ctr(&[&["run", "-d", "--null-io"], &OURS.words()[..], &run].concat())?.success("ctr run --rootfs")?;
    let container = Container { id };
    // The root outlives the task: what the first one says must be said before the next.
    found(&container)?;
    Ok(container)
}

/// How many entries the first process of the task that runs now found.
fn found(container: &Container) -> Result<usize> {
    let path = format!("/proc/{}/root/found", container.pid()?);
    eventually("the first process to say what it found", || {
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        text.trim().parse().context("no number")
    })
}

fn end_task(container: &Container) -> Result<()> {
    let _ = fs::remove_file(format!("/proc/{}/root/found", container.pid()?));
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", &container.id])?.success("ctr task rm").map(drop)
}

fn start_task(container: &Container) -> Result<Output> {
    ctr(&["task", "start", "-d", "--null-io", &container.id])
}

fn next_task(container: &Container) -> Result<()> {
    end_task(container)?;
    start_task(container)?.success("ctr task start")?;
    container.wait_for("RUNNING")
}

/// What `ps` shows of it: version and state.
fn shown(container: &Container) -> Result<Vec<(String, String)>> {
    let of = |seen: &Seen| seen.container == container.id;
    Ok(ps()?.into_iter().filter(of).map(|seen| (seen.version, seen.state)).collect())
}

fn is_shown(container: &Container, version: &str, state: &str) -> Result<()> {
    let expected = vec![(version.to_owned(), state.to_owned())];
    eventually("ps to show it", || {
        let shown = shown(container)?;
        ensure!(shown == expected, "{shown:?} instead of {expected:?}");
        Ok(())
    })
}

/// A container that was started with nothing and has had tzdata attached since.
fn attached(bed: &Bed) -> Result<Container> {
    let container = start(bed, &[])?;
    ensure!(found(&container)? <= 1, "something is there already");
    done(&["attach", &container.id, &format!("tzdata@{}", bed.newest()?)])?;
    Ok(container)
}

fn by_hand(bed: &Bed) -> Result<String> {
    let container = attached(bed)?;
    end_task(&container)?;
    is_shown(&container, bed.newest()?, "waiting")?;
    refused(&["upgrade", &container.id, "tzdata"], &[&container.id, "not running"])?;
    for _ in 0..2 {
        start_task(&container)?.success("ctr task start")?;
        let entries = found(&container)?;
        ensure!(entries > 10, "the first process found {entries} entries");
        is_shown(&container, bed.newest()?, "attached")?;
        end_task(&container)?;
    }
    // Without anything to read it from, what waits can be let go.
    done(&["detach", &container.id, "tzdata"])?;
    start_task(&container)?.success("ctr task start")?;
    ensure!(found(&container)? <= 1, "it is there, and was detached");
    container.remove().map(|_| String::new())
}

/// Without a snapshot: those of containers that start need capsuled too.
fn capsuled_killed(bed: &Bed) -> Result<String> {
    let container = on_bare_root(bed, "killed")?;
    done(&["attach", &container.id, "tzdata", "--target", "/usr/share/zoneinfo"])?;
    bed.world().kill_capsuled()?;
    end_task(&container)?;
    // The start waits for capsuled, as it does for what an annotation names.
    let id = container.id.clone();
    let starting = std::thread::spawn(move || ctr(&["task", "start", "-d", "--null-io", &id]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    bed.restart_capsuled()?;
    let started = starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
    started.success("ctr task start while capsuled is away")?;
    let entries = found(&container)?;
    ensure!(entries > 10, "the first process found {entries} entries");
    is_shown(&container, bed.newest()?, "attached")?;
    container.remove().map(|_| String::new())
}

fn containerd_killed(bed: &Bed) -> Result<String> {
    let container = attached(bed)?;
    bed.world().restart_containerd()?;
    end_task(&container)?;
    bed.world().restart_containerd()?;
    start_task(&container)?.success("ctr task start")?;
    let entries = found(&container)?;
    ensure!(entries > 10, "the first process found {entries} entries");
    container.remove().map(|_| String::new())
}

fn moved(bed: &Bed) -> Result<String> {
    let newest = bed.newest()?;
    let older = older(bed)?;
    let named = format!("{ATTACH}=tzdata@{older}");
    let container = start(bed, &["--annotation", &named])?;
    done(&["upgrade", &container.id, "tzdata"])?;
    next_task(&container)?;
    // The annotation says the same as before: it was moved by hand, and that is how it comes back.
    is_shown(&container, newest, "attached")?;
    done(&["rollback", &container.id, "tzdata"])?;
    next_task(&container)?;
    is_shown(&container, &older, "attached")?;
    container.remove().map(|_| format!("{older} and {newest}"))
}

fn older(bed: &Bed) -> Result<String> {
    let [(older, _), (newest, _)] = crate::scenario::capsulectl::tzdata()?;
    ensure!(newest == bed.newest()?, "{newest} is not the newest");
    Ok(older)
}

/// A start that cannot give back what was there fails, and says how to go on.
fn taken(bed: &Bed) -> Result<String> {
    let container = on_bare_root(bed, "taken")?;
    let share = Path::new(FILES).join("taken/usr/share");
    done(&["attach", &container.id, "tzdata", "--target", "/usr/share/zoneinfo"])?;
    end_task(&container)?;
    fs::remove_dir_all(&share).context("remove a directory")?;
    fs::write(&share, "").context("make a file")?;
    let output = start_task(&container)?;
    ensure!(output.code != 0, "it started");
    for word in ["tzdata", "/usr/share/zoneinfo", "not a directory", "capsulectl detach"] {
        ensure!(output.err.contains(word), "does not name {word:?}: {}", output.err);
    }
    is_shown(&container, bed.newest()?, "waiting")?;
    ctr(&["task", "rm", "-f", &container.id])?;
    done(&["detach", &container.id, "tzdata"])?;
    start_task(&container)?.success("ctr task start")?;
    container.remove().map(|_| output.err.trim().to_owned())
}

fn deleted(bed: &Bed) -> Result<String> {
    let container = attached(bed)?;
    let id = container.id.clone();
    container.remove()?;
    eventually("the record to go with its container", || {
        ensure!(ps()?.is_empty() && !mark(&id).exists(), "left: {:?}", ps()?);
        Ok(())
    })?;
    // Another container of the same id, while nobody can hear of it.
    let container = OURS.start(&id, &[], &["/bin/sh", "-c", LOOKS])?;
    done(&["attach", &id, "tzdata"])?;
    bed.world().kill_capsuled()?;
    end_task(&container)?;
    ctr(&["container", "rm", &id])?.success("ctr container rm")?;
    std::mem::forget(container);
    let root = bare_root("deleted")?;
    let run = ["--rootfs", &root, &id, "/bin/sleep", "100000"];
    let command = [&["run", "-d", "--null-io"], &OURS.words()[..], &run].concat();
    let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
    let starting = std::thread::spawn(move || {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        ctr(&command)
    });
    std::thread::sleep(std::time::Duration::from_millis(500));
    bed.restart_capsuled()?;
    starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))??.success("ctr run")?;
    let container = Container { id: id.clone() };
    let mounts = container.mounts()?;
    ensure!(!mounts.iter().any(|mount| mount.contains("capsule:")), "it has another's: {mounts:?}");
    ensure!(ps()?.is_empty() && !mark(&id).exists(), "left: {:?}", ps()?);
    container.remove().map(|_| String::new())
}

/// The file by which a shim knows that there is something to give back.
fn mark(id: &str) -> std::path::PathBuf {
    Path::new("/run/capsule/kept/default").join(id)
}

fn without(bed: &Bed) -> Result<String> {
    let root = bare_root("without")?;
    bed.world().kill_capsuled()?;
    let id = bed.id("without");
    let run = ["--rootfs", &root, &id, "/bin/echo", "ran"];
    let ran = ctr(&[&["run", "--rm"], &OURS.words()[..], &run].concat());
    bed.restart_capsuled()?;
    let out = ran?.success("ctr run while capsuled is away")?;
    ensure!(out == "ran\n", "{out:?}");
    Ok(String::new())
}
