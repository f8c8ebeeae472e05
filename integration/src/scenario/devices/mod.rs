//! Devices of CDI specs, given to containers that run: real character and block devices behind a spec of the shape that `nvidia-ctk`
//! writes, on runc and crun, with both drivers of control groups.

mod again;
pub mod bench;
mod beside;
pub mod created;
mod cut;
mod moved;
mod nodes;
pub mod programs;
mod rules;
mod strangers;
mod together;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::capsulectl::{done, json, refused};
use super::ctr::{Container, OURS};
use super::sets::publish;
use super::world::{World, until, with_logs};
use crate::event::Reporter;
use crate::workspace::output_of;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
const FILES: &str = "/tmp/devices";
const HOOK: &str = "/usr/local/bin/example-cdi-hook";
const DENIED: &str = "Operation not permitted";

/// Runtimes, with systemd's driver or without.
const MATRIX: [(&str, bool); 4] = [("runc", false), ("crun", false), ("runc", true), ("crun", true)];

/// As `nvidia-ctk cdi generate` writes it, with other devices behind it: nodes, libraries and hooks that all share, and a node of each.
const SPEC: &str = r#"---
cdiVersion: 0.5.0
kind: example.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/examplectl
    hostPath: /dev/loop-control
    permissions: rw
  env:
  - EXAMPLE_VISIBLE_DEVICES=void
  hooks:
  - hookName: createContainer
    path: /usr/local/bin/example-cdi-hook
    args: [example-cdi-hook, create-symlinks, --link, "libexample.so.1::/usr/lib/example/libexample.so"]
  - hookName: createContainer
    path: /usr/local/bin/example-cdi-hook
    args: [example-cdi-hook, update-ldcache, --folder, /usr/lib/example]
    env: [DEBUG=false]
  mounts:
  - hostPath: /tmp/devices/libexample.so.1
    containerPath: /usr/lib/example/libexample.so.1
    options: [ro, nosuid, nodev, rbind, rprivate]
  - hostPath: /tmp/devices/firmware
    containerPath: /usr/lib/firmware/example
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/example0
      hostPath: /dev/fuse
      fileMode: 0640
      gid: 44
    hooks:
    - hookName: createContainer
      path: /usr/local/bin/example-cdi-hook
      args: [example-cdi-hook, chmod, --mode, "755", --path, /dev/example]
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/example1
      hostPath: /dev/zram0
      permissions: r
"#;

/// Devices of which something is wrong.
const BAD: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/bad", "devices": [
{"name": "fails", "containerEdits": {"deviceNodes": [{"path": "/dev/bad", "hostPath": "/dev/fuse"}],
  "hooks": [{"hookName": "createContainer", "path": "/usr/local/bin/example-cdi-hook", "args": ["example-cdi-hook", "fail"]}]}},
{"name": "hangs", "containerEdits": {"deviceNodes": [{"path": "/dev/bad", "hostPath": "/dev/fuse"}],
  "hooks": [{"hookName": "createContainer", "path": "/usr/local/bin/example-cdi-hook", "args": ["example-cdi-hook", "hang"], "timeout": 2}]}},
{"name": "taken", "containerEdits": {"deviceNodes": [{"path": "/dev/bad", "hostPath": "/dev/fuse"}, {"path": "/dev/null", "hostPath": "/dev/fuse"}]}},
{"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}},
{"name": "later", "containerEdits": {"hooks": [{"hookName": "poststart", "path": "/bin/true"}]}}
]}"#;

/// What nvidia-cdi-hook does, as far as it is asked for: it finds the container's root by the state on its standard input.
const HOOK_TEXT: &str = r#"#!/bin/sh
set -e
state=$(tr -d '\n' | sed 's|\\/|/|g')
bundle=${state#*\"bundle\":}; bundle=${bundle#*\"}
root=${bundle%%\"*}/rootfs
case $1 in
create-symlinks) ln -sf "${3%%::*}" "$root${3##*::}" ;;
update-ldcache) test "$DEBUG" = false; test -e "$root$3/libexample.so.1"; echo "$3" > "$root/etc/ld.so.cache" ;;
chmod) mkdir -p "$root$5"; chmod "$3" "$root$5" ;;
fail) echo "the driver is not loaded" >&2; exit 3 ;;
hang) sleep 611 ;;
esac
"#;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image, a capsule and specs are there", || {
        OURS.import()?;
        publish("tool@1", &[])?;
        prepare()?;
        Ok(((), String::new()))
    })?;
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        reporter.check("on control groups of version 1 it is refused, and said why", refused_on_version_1);
        return world.stop();
    }
    for (binary, systemd) in MATRIX {
        let case =
            format!("{}: opened after attach, and denied before and afterwards", told_as(binary, systemd));
        reporter.check(&case, || life(binary, systemd));
    }
    reporter.check("a GPU, where there is one", nodes::gpu);
    reporter.check("what cannot be given is refused, and nothing has changed", mistakes);
    reporter.check("devices and capsules are a set: all of it or nothing", together::sets);
    reporter.check("what is open is told, and taken lazily only", together::in_use);
    reporter.check("a capsule brings the devices that it declares", together::declared);
    reporter.check("a set of everything is there as a whole or not at all, whatever is killed", || {
        cut::sets(&mut world)
    });
    reporter.check(
        "it is of one version, or gone, as a whole, whatever is killed while it moves or goes",
        || moved::sets(&mut world),
    );
    reporter.check("devices outlive capsuled, and are there again for the next task", || {
        again::tasks(&mut world)
    });
    world.stop()
}

fn prepare() -> Result<()> {
    // What a node with a driver has loaded.
    for module in ["fuse", "loop", "zram"] {
        let _ = Command::new("modprobe").arg(module).status();
    }
    fs::create_dir_all(format!("{FILES}/firmware")).context("a folder")?;
    fs::write(format!("{FILES}/libexample.so.1"), "library").context("a library")?;
    fs::write(format!("{FILES}/firmware/blob"), "firmware").context("firmware")?;
    fs::write(HOOK, HOOK_TEXT).context("a hook")?;
    fs::set_permissions(HOOK, fs::Permissions::from_mode(0o755)).context("a hook")?;
    fs::create_dir_all("/etc/cdi").context("/etc/cdi")?;
    fs::write("/etc/cdi/example.yaml", SPEC).context("a spec")?;
    fs::write("/etc/cdi/bad.json", BAD).context("a spec")?;
    nodes::prepare()
}

fn refused_on_version_1() -> Result<String> {
    let box_ = OURS.start("box", &[], &SLEEP)?;
    let mounts = box_.mounts()?;
    let line =
        refused(&["attach", "box", "tool", "--device", "example.com/gpu=0"], &["version 1", "version 2"])?;
    refused(
        &["attach", "box", "--device", "example.com/gpu=9"],
        &["example.com/gpu=9", "example.com/gpu=0"],
    )?;
    ensure!(box_.mounts()? == mounts && attached("box")?.is_empty(), "something is attached");
    box_.remove()?;
    Ok(line)
}

/// A container of a runtime and a driver.
fn start(id: &str, binary: &str, systemd: bool) -> Result<Container> {
    let options = options(id, binary, systemd)?;
    OURS.start(id, &options.iter().map(String::as_str).collect::<Vec<_>>(), &SLEEP)
}

/// What `ctr run` is told for it.
fn options(id: &str, binary: &str, systemd: bool) -> Result<Vec<String>> {
    let toml = format!("{FILES}/{id}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\nSystemdCgroup = {systemd}\n")).context("options")?;
    let mut options = vec!["--runtime-config-path".to_owned(), toml];
    if systemd {
        // crun speaks to systemd over the system's bus.
        output_of(Command::new("systemctl").args(["start", "dbus.socket"]))?;
        options.extend(["--cgroup".to_owned(), format!("system.slice:capsule:{id}")]);
    }
    Ok(options)
}

fn told_as(binary: &str, systemd: bool) -> String {
    format!("{binary} with {}", if systemd { "systemd" } else { "files" })
}

fn attached(container: &str) -> Result<Vec<Value>> {
    let list = json(&["ps", container])?;
    Ok(list["attachments"].as_array().context("attachments")?.clone())
}

/// Events of a container, of one kind.
fn told(kind: &str, container: &str) -> Result<Vec<String>> {
    let all = done(&["events", "--no-follow", "--all", "--container", container])?;
    Ok(all.lines().filter(|line| line.contains(kind)).map(str::to_owned).collect())
}

/// Opens a file in a container, for reading or for both; what the shell says where it cannot.
fn open(container: &Container, exec: &str, how: &str, path: &str) -> Result<Result<(), String>> {
    let script = format!("( : {how}{path} ) 2>&1");
    let output = container.exec(exec, &["/bin/sh", "-c", &script], b"")?;
    Ok(if output.code == 0 { Ok(()) } else { Err(format!("{} {}", output.out.trim(), output.err.trim())) })
}

fn opens(container: &Container, exec: &str, how: &str, path: &str) -> Result<()> {
    let outcome = open(container, exec, how, path)?;
    ensure!(outcome.is_ok(), "{path} ({exec}): {outcome:?}");
    Ok(())
}

fn denied(container: &Container, exec: &str, how: &str, path: &str, why: &str) -> Result<()> {
    let outcome = open(container, exec, how, path)?;
    ensure!(
        outcome.as_ref().is_err_and(|said| said.contains(why)),
        "{path} ({exec}): {outcome:?}, not {why:?}"
    );
    Ok(())
}

fn life(binary: &str, systemd: bool) -> Result<String> {
    let id = format!("box-{binary}-{}", if systemd { "systemd" } else { "files" });
    let container = start(&id, binary, systemd)?;
    // A node that the container has made for itself opens nothing.
    container.sh("own", "mknod /dev/own c 10 229")?;
    denied(&container, "b1", "<>", "/dev/own", DENIED)?;
    denied(&container, "b2", "<", "/dev/example0", "o such file")?;
    let mounts = container.mounts()?;

    let said = done(&["attach", &id, "--device", "example.com/gpu=0"])?;
    opens(&container, "a1", "<>", "/dev/example0")?;
    opens(&container, "a2", "<>", "/dev/own")?;
    opens(&container, "a3", "<>", "/dev/examplectl")?;
    opens(&container, "a4", "<>", "/dev/null")?;
    let seen = container.sh(
        "look",
        "stat -c '%a %u:%g %t:%T' /dev/example0; cat /usr/lib/example/libexample.so /usr/lib/firmware/example/blob /etc/ld.so.cache; \
         stat -c ' %a' /dev/example; echo \"$EXAMPLE_VISIBLE_DEVICES\"; tr '\\0' '\\n' < /proc/1/environ | grep -c EXAMPLE || true; \
         ( echo > /usr/lib/example/libexample.so.1 ) 2>&1 || true",
    )?;
    let want = "640 0:44 a:e5\nlibraryfirmware/usr/lib/example\n 755\nvoid\n0\n";
    ensure!(seen.starts_with(want) && seen.contains("Read-only"), "{seen:?} instead of {want:?}");
    used_by(&id, "example.com/gpu=0", true)?;
    let ps = attached(&id)?;
    ensure!(ps.len() == 1 && ps[0]["devices"] == serde_json::json!(["example.com/gpu=0"]), "{ps:?}");

    let kvm = nodes::opened(&container)?;
    beside::limits(&container)?;
    let kept = undisturbed(&container, binary, systemd)?;
    done(&["detach", &id, "--device", "example.com/gpu=0"])?;
    denied(&container, "c1", "<>", "/dev/own", DENIED)?;
    denied(&container, "c2", "<", "/dev/example0", "o such file")?;
    opens(&container, "c3", "<>", "/dev/null")?;
    ensure!(container.mounts()? == mounts, "the mount table is another one");
    let left = container.sh("left", "ls /usr/lib/firmware /usr/lib/example/libexample.so.1 2>&1 || true")?;
    ensure!(left.matches("o such file").count() == 2, "{left}");
    used_by(&id, "example.com/gpu=0", false)?;
    container.remove()?;
    Ok(format!("{} | {kept} | {kvm}", said.trim()))
}

fn used_by(container: &str, device: &str, is: bool) -> Result<()> {
    let list = json(&["devices", device])?;
    let users = list["devices"][0]["used_by"].as_array().context("used_by")?.clone();
    let found = users.iter().any(|user| user["container"] == container);
    ensure!(found == is, "{device} is used by {users:?}");
    Ok(())
}

/// The runtime's own update, behind the shim's back, and systemd's reload. What takes the device away is repaired without anybody
/// asking what the container has, and told.
fn undisturbed(container: &Container, binary: &str, systemd: bool) -> Result<String> {
    let root = format!("/run/containerd/{binary}/default");
    let root = if Path::new(&root).exists() { root } else { "/run/containerd/runc/default".to_owned() };
    let mut update = Command::new(binary);
    update.args(["--root", &root]);
    if systemd {
        update.arg("--systemd-cgroup");
    }
    update.args(["update", "--pids-limit", "777", &container.id]);
    if !systemd {
        output_of(&mut update)?;
        opens(container, "u-update", "<>", "/dev/example0")?;
        return Ok("kept over update".to_owned());
    }
    // crun's update leaves systemd's program alone (seen with 1.28).
    let mut said = vec![taken(container, "update", &mut update, binary == "runc")?];
    let mut reload = Command::new("systemctl");
    said.push(taken(container, "daemon-reload", reload.arg("daemon-reload"), true)?);
    Ok(said.join(", "))
}

/// How long a repair may take that has to come: capsuled looks every few seconds, on a machine that may be busy.
const TOLD: Duration = Duration::from_secs(60);
/// How long one is waited for that need not come.
const LOOKED: Duration = Duration::from_secs(10);

/// What becomes of the device when systemd changes the unit: it is kept, or there again before capsuled has looked a second time, and
/// then it is told. Nothing but events is asked for meanwhile. With `is_taken` it is known that it cannot be kept.
fn taken(container: &Container, what: &str, command: &mut Command, is_taken: bool) -> Result<String> {
    let before = told("repaired", &container.id)?.len();
    let began = Instant::now();
    output_of(command)?;
    let is_told = || Ok::<_, anyhow::Error>(told("repaired", &container.id)?.len() > before);
    while !is_told()? && began.elapsed() < if is_taken { TOLD } else { LOOKED } {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (took, is_told) = (began.elapsed(), is_told()?);
    let tries = std::cell::Cell::new(0);
    until("the device is there again", || {
        tries.set(tries.get() + 1);
        Ok(open(container, &format!("u-{what}-{}", tries.get()), "<>", "/dev/example0")?.is_ok())
    })?;
    ensure!(is_told || !is_taken, "{TOLD:?} after {what}: no repair is told");
    Ok(if is_told {
        format!("repaired {:.1} s after {what}", took.as_secs_f64())
    } else {
        format!("kept over {what}")
    })
}

fn mistakes() -> Result<String> {
    let container = start("mistakes", "runc", false)?;
    container.sh("own", "mknod /dev/own c 10 229")?;
    let mounts = container.mounts()?;
    let mut told = Vec::new();
    for (device, words) in [
        ("example.com/gpu=7", &["example.com/gpu=7", "example.com/gpu=0"][..]),
        ("example.com=7", &["names no CDI device", "VENDOR/CLASS=NAME"]),
        ("example.com/bad=gone", &["/dev/no-such-device"]),
        ("example.com/bad=later", &["poststart", "create the container"]),
        ("example.com/bad=taken", &["/dev/null exists in the container already"]),
        (
            "example.com/bad=fails",
            &["hook /usr/local/bin/example-cdi-hook failed", "status 3", "the driver is not loaded"],
        ),
        ("example.com/bad=hangs", &["hook /usr/local/bin/example-cdi-hook failed", "not done after 2 s"]),
    ] {
        let began = Instant::now();
        told.push(refused(
            &["attach", "mistakes", "--device", "example.com/gpu=1", "--device", device],
            words,
        )?);
        ensure!(began.elapsed() < Duration::from_secs(90), "{device} took {:?}", began.elapsed());
        ensure!(container.mounts()? == mounts, "{device}: the mount table is another one");
        ensure!(attached("mistakes")?.is_empty(), "{device}: something is attached");
    }
    let left = container.sh("ls", "ls /dev/bad /dev/example1 /dev/examplectl 2>&1 || true")?;
    ensure!(left.matches("o such file").count() == 3, "{left}");
    denied(&container, "own-again", "<>", "/dev/own", DENIED)?;
    until("the hook that hangs is gone", || {
        Ok(!output_of(Command::new("ps").args(["-eo", "args"]))?.contains("sleep 611"))
    })?;
    container.remove()?;
    Ok(told.pop().unwrap_or_default())
}
