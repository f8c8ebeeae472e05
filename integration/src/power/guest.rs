//! The inside of the VM: process 1. Mounts the disk, starts capsuled on it, lets clients work, and waits for the cut.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount};

use super::attached;
use super::journal::{Mark, Marker};
use super::machine::{Load, Omission, Work};
use super::workload::{self, Limit};

const DISK: &str = "/dev/vdb";
const MARKS: &str = "/dev/vdc";
const MOUNT_POINT: &str = "/data";
const PROGRAMS: &str = "/payload/bin";
const LOG: &str = "/run/capsuled.log";
/// Emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Works until the load is done, says so, and then waits to be cut off.
pub fn run() -> Result<()> {
    let cmdline = fs::read_to_string("/proc/cmdline").context("read the kernel's command line")?;
    let load = Load::from_cmdline(&cmdline)?;
    let marker = Marker::open(Path::new(MARKS))?;
    let last = match work(&load, &marker) {
        Ok(calls) => Mark::End { calls },
        Err(error) => {
            let log = fs::read_to_string(LOG).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            Mark::Failed { reason: format!("{error:#}; capsuled: {}", tail.join(" | ")) }
        }
    };
    marker.mark(&last)?;
    loop {
        std::thread::park();
    }
}

fn work(load: &Load, marker: &Marker) -> Result<usize> {
    // What is dirty reaches the disk earlier than by default, also between flushes: the record gets its middle states.
    for (setting, value) in [("dirty_writeback_centisecs", "20"), ("dirty_expire_centisecs", "50")] {
        fs::write(Path::new("/proc/sys/vm").join(setting), value)
            .with_context(|| format!("set {setting}"))?;
    }
    fs::create_dir_all(MOUNT_POINT).context("create the mount point")?;
    mount(DISK, MOUNT_POINT, load.filesystem.name(), MountFlags::empty(), None)
        .with_context(|| format!("mount {DISK}"))?;
    if load.work == Work::Attachments {
        return attached::work::run(load, Path::new(MOUNT_POINT), marker);
    }
    let root = Path::new(MOUNT_POINT).join("capsule");
    let mut capsuled = start_capsuled(Path::new(PROGRAMS), &root, Path::new("/run"), load.omission)?;
    let socket = Path::new("/run/capsule/capsuled.sock");
    wait_until_serving(&mut capsuled, socket)?;
    let limit = Limit { calls: load.calls, until: Instant::now() + Duration::from_secs(load.seconds) };
    workload::run(socket, marker, load.seed, limit)
}

/// Starts capsuled on `root`, with what else it needs in `folder`: its configuration, sockets, log.
pub fn start_capsuled(
    programs: &Path,
    root: &Path,
    folder: &Path,
    omission: Option<Omission>,
) -> Result<Child> {
    let config = folder.join("capsuled.toml");
    let settings = format!(
        "root = {:?}\nrun = {:?}\n[containerd]\naddress = {:?}\n",
        root,
        folder.join("capsule"),
        folder.join("no-containerd.sock"),
    );
    fs::write(&config, settings).with_context(|| format!("write {}", config.display()))?;
    let log = File::options().create(true).append(true).open(folder.join("capsuled.log"));
    let log = log.context("open capsuled's log")?;
    let capsuled = programs.join("capsuled");
    let mut command = match omission {
        None => Command::new(capsuled),
        Some(omission) => {
            let mut strace = Command::new("strace");
            let call = omission.name();
            strace.args(["--follow-forks", "--seccomp-bpf", "--quiet=all", "--output=/dev/null"]);
            strace
                .arg(format!("--trace={call}"))
                .arg(format!("--inject={call}:retval=0"))
                .arg("--")
                .arg(capsuled);
            strace
        }
    };
    command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log.try_clone().context("share a log")?);
    command.stderr(log).spawn().context("start capsuled")
}

/// Waits until capsuled answers; an error if it ends before.
pub fn wait_until_serving(capsuled: &mut Child, socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        if let Some(status) = capsuled.try_wait().context("look at capsuled")? {
            bail!("capsuled ended: {status}");
        }
        if Instant::now() > deadline {
            bail!("capsuled was not ready after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
