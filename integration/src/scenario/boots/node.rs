//! A node as a user installs it: programs in `/usr/bin`, units in `/etc/systemd/system`, started by each boot.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::scenario::capsulectl::done;
use crate::scenario::ctr::{Container, ctr};
use crate::scenario::others::MONITOR;
use crate::scenario::world::{CAPSULED_SOCKET, write_configs};
use crate::workspace::output_of;

/// The container that containerd starts again by itself.
pub const AUTO: &str = "auto";
/// The container that is started by hand.
pub const HAND: &str = "hand";

/// Writes down what it finds when it begins, and ends when it is asked to: a restart waits long for one that does not.
pub const PROGRAM: [&str; 3] = [
    "/bin/sh",
    "-c",
    "cat /opt/lib/version /bin/label > /seen 2>&1; trap exit TERM; while :; do sleep 1; done",
];

/// A device of the node's.
pub const DEVICE: &str = "example.com/box=0";
const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/box", "devices": [{"name": "0", "containerEdits":
{"deviceNodes": [{"path": "/dev/box", "hostPath": "/dev/fuse"}]}}]}"#;

/// A boot where processors are emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Installs containerd's and capsuled's units, programs and configurations, and starts them, now and with each boot.
pub fn install() -> Result<()> {
    for program in ["capsuled", "capsulectl", "containerd-shim-capsule-v1"] {
        copy(&format!("/payload/bin/{program}"), &format!("/usr/bin/{program}"))?;
    }
    for unit in ["capsuled.service", "capsuled.socket"] {
        copy(&format!("/payload/configs/{unit}"), &format!("/etc/systemd/system/{unit}"))?;
    }
    fs::create_dir_all("/etc/cdi").and_then(|()| fs::write("/etc/cdi/box.json", SPEC)).context("/etc/cdi")?;
    let config = write_configs(MONITOR)?;
    copy(&config.to_string_lossy(), "/etc/containerd/config.toml")?;
    // The test bed's root file systems have it masked.
    systemctl(&["unmask", "containerd.service"])?;
    systemctl(&["add-wants", "capsule-testbed.service", "capsuled.service", "containerd.service"])?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", "capsuled.service"])?;
    systemctl(&["start", "containerd.service"]).map(drop)
}

/// capsule-remote by its unit, which takes nearly everything away from it: refused, started, asked, reloaded and ended.
pub fn remote() -> Result<String> {
    copy("/payload/bin/capsule-remote", "/usr/bin/capsule-remote")?;
    copy("/payload/configs/capsule-remote.service", "/etc/systemd/system/capsule-remote.service")?;
    systemctl(&["daemon-reload"])?;
    let unit = |what: &str| systemctl(&[what, "capsule-remote.service"]);
    ensure!(unit("start").is_err(), "it started with no address");
    let config = "/etc/capsule/config.toml";
    let text = fs::read_to_string(config).context(config)?;
    let on = text.replace("address = \"none\"", "address = \"127.0.0.1:7443\"");
    fs::write(config, on).context(config)?;
    done(&["certs", "init", "--host", "127.0.0.1"])?;
    let file = "/root/ada.yml";
    done(&["certs", "issue", "ada", "--role", "admin", "--to", "n=127.0.0.1:7443", "--file", file])?;
    unit("reset-failed")?;
    unit("start")?;
    done(&["--config", file, "ls"])?;
    done(&["certs", "server", "--host", "127.0.0.1"])?;
    unit("reload")?;
    done(&["--config", file, "ls"])?;
    let journal = output_of(Command::new("journalctl").args(["--no-pager", "-ucapsule-remote.service"]))?;
    for word in ["the remote API is off", "audit: call client=\"ada\"", "certificates read again"] {
        ensure!(journal.contains(word), "no {word:?} in {journal}");
    }
    let memory = systemctl(&["show", "--value", "--property=MemoryPeak", "capsule-remote.service"])?;
    unit("stop")?;
    fs::write(config, text).context(config)?;
    Ok(format!("{} bytes of memory at most", memory.trim()))
}

/// Copies a file.
pub fn copy(from: &str, to: &str) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {from} to {to}")).map(drop)
}

/// Runs `systemctl`, which must succeed.
pub fn systemctl(args: &[&str]) -> Result<String> {
    output_of(Command::new("systemctl").args(args))
}

/// Waits until containerd and capsuled answer, which systemd has started; what the boot took.
pub fn wait() -> Result<String> {
    let answers = || {
        let snapshots = ctr(&["snapshots", "--snapshotter", "capsule", "ls"]);
        UnixStream::connect(CAPSULED_SOCKET).is_ok() && snapshots.is_ok_and(|output| output.code == 0)
    };
    let deadline = Instant::now() + PATIENCE;
    while !answers() {
        ensure!(Instant::now() < deadline, "no answer after {PATIENCE:?}");
        sleep(Duration::from_millis(500));
    }
    let up = fs::read_to_string("/proc/uptime").context("/proc/uptime")?;
    Ok(format!("{} s after the boot began", up.split('.').next().unwrap_or_default()))
}

/// Starts a container's next task by hand.
pub fn start_again(id: &str) -> Result<()> {
    ctr(&["task", "start", "-d", "--null-io", id])?.success("ctr task start")?;
    std::mem::ManuallyDrop::new(Container { id: id.to_owned() }).wait_for("RUNNING")
}

/// Whether containerd is to start the container by itself. Said once it runs: containerd would be quicker than `ctr run`.
pub fn start_by_itself(id: &str, is: bool) -> Result<()> {
    let status = format!("containerd.io/restart.status={}", if is { "running" } else { "stopped" });
    ctr(&["container", "label", id, &status])?.success("ctr container label").map(drop)
}

/// containerd starts the container no more, and has ended its task.
pub fn let_go(id: &str) -> Result<()> {
    start_by_itself(id, false)?;
    let container = std::mem::ManuallyDrop::new(Container { id: id.to_owned() });
    let deadline = Instant::now() + PATIENCE;
    while container.task()?.is_some_and(|(_, status)| status != "STOPPED") {
        ensure!(Instant::now() < deadline, "{id} still runs");
        sleep(Duration::from_millis(500));
    }
    Ok(())
}
