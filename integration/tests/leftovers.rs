//! A machine leaves nothing behind: no process, mount, cgroup, network namespace or file, however its harness ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use capsule_integration::machine::Kind;
use capsule_integration::workspace::{Workspace, require_root};
use rustix::process::{Pid, Signal, kill_process};

const TESTBED: &str = env!("CARGO_BIN_EXE_capsule-testbed");
const PATIENCE: Duration = Duration::from_secs(30);

/// A harness whose machine holds a running container.
fn busy_harness(machine: &str) -> Result<Child> {
    // A shell's background job ignores interrupts, and so would all below it.
    let mut harness = Command::new("env")
        .args(["--default-signal=INT", TESTBED, "run", "idle", "--machine", machine])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a harness")?;
    let out = harness.stdout.take().context("no output")?;
    for line in BufReader::new(out).lines() {
        let line = line.context("read the harness's output")?;
        ensure!(!line.contains("FAILED"), "{line}");
        if line.contains("idle now") {
            return Ok(harness);
        }
    }
    anyhow::bail!("the harness ended early: {:?}", harness.wait())
}

/// What a machine could leave on the host.
fn left_by(harness: u32) -> Result<Vec<String>> {
    let run = format!("capsule-run-{harness}-");
    let mut left = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    left.extend(mounts.lines().filter(|line| line.contains(&run)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(&run) {
            left.push(format!("process {}", String::from_utf8_lossy(&cmdline).replace('\0', " ")));
        }
    }
    find_named(Path::new("/sys/fs/cgroup"), &run, &mut left);
    let runs = Workspace::of(Path::new(TESTBED))?.target("runs")?;
    find_named(&runs, &run, &mut left);
    Ok(left)
}

fn find_named(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path().display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_named(&entry.path(), prefix, found);
        }
    }
}

/// Network namespaces that some process is in.
fn networks() -> Result<BTreeSet<String>> {
    let processes = fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok);
    Ok(processes
        .filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok())
        .map(|link| link.display().to_string())
        .collect())
}

fn ends_clean_after(signal: Signal) -> Result<()> {
    require_root("a native machine")?;
    let workspace = Workspace::of(Path::new(TESTBED))?;
    let _lock = workspace.lock(Kind::Native.turn())?;
    let before = networks()?;
    let mut harness = busy_harness("native")?;
    let id = harness.id();
    ensure!(!left_by(id)?.is_empty(), "a running machine leaves no trace that this test could find");
    ensure!(networks()?.len() > before.len(), "a running machine has no network namespace of its own");
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, signal).context("signal the harness")?;
    let deadline = Instant::now() + PATIENCE;
    while harness.try_wait().context("look at the harness")?.is_none() {
        if Instant::now() > deadline {
            harness.kill().context("kill the harness")?;
            anyhow::bail!("the harness goes on after {signal:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    loop {
        let left = left_by(id)?;
        if left.is_empty() && networks()?.is_subset(&before) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn privileged_nothing_is_left_after_an_interrupt() -> Result<()> {
    ends_clean_after(Signal::INT)
}

#[test]
fn privileged_nothing_is_left_after_a_kill() -> Result<()> {
    ends_clean_after(Signal::KILL)
}

/// Command lines of processes that run on this VM's files.
fn of_vm(harness: u32) -> Result<Vec<String>> {
    let run = format!("vm-{harness}-");
    let processes = fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok);
    Ok(processes
        .map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default())
        .map(|cmdline| String::from_utf8_lossy(&cmdline).replace('\0', " "))
        .filter(|cmdline| cmdline.contains(&run))
        .collect())
}

#[test]
fn privileged_vm_ends_with_its_harness() -> Result<()> {
    require_root("a VM's root file system")?;
    let workspace = Workspace::of(Path::new(TESTBED))?;
    let _lock = workspace.lock(Kind::Vm.turn())?;
    let mut harness = busy_harness("vm")?;
    let id = harness.id();
    ensure!(!of_vm(id)?.is_empty(), "this test cannot see qemu");
    harness.kill().context("kill the harness")?;
    harness.wait().context("wait for the harness")?;
    let deadline = Instant::now() + PATIENCE;
    while !of_vm(id)?.is_empty() {
        ensure!(Instant::now() < deadline, "left behind: {:#?}", of_vm(id)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
