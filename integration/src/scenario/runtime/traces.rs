//! What containers leave on a node: everything that could be left behind, as lines of text that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::faulty::Faulty;
use crate::images::Image;
use crate::scenario::capsulectl::ps;
use crate::scenario::ctr::{Stack, ctr};
use crate::scenario::world::World;

/// Where runtimes, shims, containerd and its clients have files of containers.
const PLACES: [&str; 4] = ["/run", "/tmp", "/dev/shm", "/var/lib/containerd/io.containerd.runtime.v2.task"];
/// How long the last of it may take to go: clients' connections are closed by a daemon in its own time.
const PATIENCE: Duration = Duration::from_secs(90);
/// Folders that the first container makes and that stay: capsuled's for the marks of containers, ours for terminals, systemd's
/// for scopes. What is in them counts.
const FOLDERS: [&str; 4] =
    ["/run/capsule/kept", "/run/capsule/kept/default", "/run/capsule/pty", "/run/systemd/transient"];

/// Everything of a node, counted by kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeMap<String, usize>);

impl Traces {
    /// Reads them when there has been a container of each runtime: what the first one makes for all stays.
    pub fn of_idle(world: &World, stack: Stack) -> Result<Self> {
        for runtime in ["runc", "crun"] {
            let faulty = Faulty::new(&format!("idle-{}-{runtime}", stack.name), runtime)?;
            let mut options = faulty.options(stack)?.to_vec();
            options.extend(["--rm".to_owned()]);
            let mut args = [&["run"], &stack.words()[..]].concat();
            args.extend(options.iter().map(String::as_str));
            args.extend([Image::Busybox.name(), "idle", "/bin/true"]);
            ctr(&args)?.success("a container that does nothing")?;
        }
        // Until that has gone itself.
        let mut last = Self::read(world)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = Self::read(world)?;
            if now == last || Instant::now() > deadline {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Reads them. The daemons' descriptors are counted by kind, since their numbers change.
    pub fn read(world: &World) -> Result<Self> {
        let mut lines = Vec::new();
        let daemons = ["containerd", "capsuled"].map(|daemon| (daemon, world.pid(daemon)));
        processes(&daemons.map(|(_, pid)| pid), &mut lines)?;
        mounts(&mut lines)?;
        sockets(&mut lines)?;
        cgroups(Path::new("/sys/fs/cgroup"), &mut lines)?;
        for place in PLACES {
            files(Path::new(place), &mut lines)?;
        }
        for (daemon, pid) in daemons {
            if let Some(pid) = pid {
                descriptors(daemon, pid, &mut lines)?;
            }
        }
        records(world, &mut lines)?;
        let mut counted = BTreeMap::new();
        for line in lines {
            *counted.entry(line).or_default() += 1;
        }
        Ok(Self(counted))
    }

    /// What is there now and was not here, or not so often. The daemons connect to each other in their own time: what leaks a
    /// descriptor of theirs has to do so for more than two containers.
    pub fn more(&self, now: &Self) -> Vec<String> {
        let before = |line: &String| self.0.get(line).copied().unwrap_or_default();
        let slack = |line: &String| if line.starts_with("descriptor of") { 2 } else { 0 };
        let more = now.0.iter().filter(|(line, count)| **count > before(line) + slack(line));
        more.map(|(line, count)| format!("{line} ({} before, {count} now)", before(line))).collect()
    }

    /// Waits until nothing is there that was not here, but for lines that hold one of the `forgiven` words.
    pub fn settle(&self, world: &World, forgiven: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut more = self.more(&Self::read(world)?);
            more.retain(|line| !forgiven.iter().any(|word| line.contains(word)));
            if more.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left after {PATIENCE:?}: {}", more.join("; "));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// All processes but kernel threads and the daemons, which may be other ones later. One that is gone before it is
/// looked at is not there.
fn processes(daemons: &[Option<u32>], lines: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse() else { continue };
        if daemons.contains(&Some(pid)) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map_or("gone", |(_, rest)| &rest[..1]);
        if state == "Z" {
            lines.push(format!("zombie {name} {stat}"));
        } else if !command.is_empty() {
            lines.push(format!("process {name} {command}"));
        }
    }
    Ok(())
}

fn mounts(lines: &mut Vec<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    lines.extend(table.lines().map(|line| {
        let at = line.split(' ').nth(4).unwrap_or_default();
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        format!("mount {at} {}", kind.unwrap_or_default())
    }));
    Ok(())
}

fn sockets(lines: &mut Vec<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/net/unix").context("read the sockets")?;
    let listening = |line: &&str| line.split_ascii_whitespace().nth(3) == Some("00010000");
    let bound = table.lines().filter(listening).filter_map(|line| line.split_ascii_whitespace().nth(7));
    lines.extend(bound.map(|path| format!("listening socket {path}")));
    Ok(())
}

fn cgroups(at: &Path, lines: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(at) else { return Ok(()) }; // gone meanwhile
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            lines.push(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), lines)?;
        }
    }
    Ok(())
}

/// All files of one file system below `at`: what is mounted there is another's.
fn files(at: &Path, lines: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(at) else { return Ok(()) }; // gone meanwhile, or not there yet
    let Ok(device) = at.metadata().map(|metadata| metadata.dev()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        let name = if kind.is_fifo() {
            "FIFO"
        } else if kind.is_socket() {
            "socket"
        } else if kind.is_dir() {
            "directory"
        } else {
            "file"
        };
        if !FOLDERS.iter().any(|folder| path == Path::new(folder)) {
            lines.push(format!("{name} {}", path.display()));
        }
        if kind.is_dir() && path.metadata().is_ok_and(|metadata| metadata.dev() == device) {
            files(&path, lines)?;
        }
    }
    Ok(())
}

fn descriptors(daemon: &str, pid: u32, lines: &mut Vec<String>) -> Result<()> {
    let folder = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&folder).with_context(|| format!("read {folder}"))?.filter_map(Result::ok) {
        // Closed meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
        lines.push(format!("descriptor of {daemon}: {kind}"));
    }
    Ok(())
}

/// What containerd and capsuled know of.
fn records(world: &World, lines: &mut Vec<String>) -> Result<()> {
    for list in [&["task", "ls", "-q"][..], &["container", "ls", "-q"]] {
        let names = ctr(list)?.success("ctr ls")?;
        lines.extend(names.lines().map(|name| format!("{} {name}", list[0])));
    }
    for snapshotter in ["overlayfs", "capsule"] {
        if snapshotter == "capsule" && world.pid("capsuled").is_none() {
            continue;
        }
        let list = ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?.success("ctr snapshots ls")?;
        lines.extend(list.lines().map(|line| format!("snapshot of {snapshotter}: {line}")));
    }
    if world.pid("capsuled").is_some() {
        lines.extend(ps()?.iter().map(|seen| format!("attachment {seen:?}")));
    }
    Ok(())
}
