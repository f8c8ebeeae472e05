//! How containers come to life besides `ctr run`: from a checkpoint, on a root that somebody else has mounted, in a user
//! namespace.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::types::Mount;

use super::bed::{Bed, FILES, SLEEP, eventually};
use super::capsules::bare_root;
use super::task::{Stdio, Task};
use super::{Case, Need};
use crate::scenario::ctr::{Container, ctr, run};
use crate::workspace::output_of;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("a container goes on after a checkpoint, and comes back from it", comes_back).needs(CRIU),
    Case::new("a container ends with its checkpoint, and can be removed", ends).needs(CRIU),
    Case::new("a checkpoint that fails is named, and the container goes on", fails).needs(CRIU),
    Case::new("a root that the client has mounted is left as it is", mounted_by_client),
    Case::new("a directory, bound read-only", bound),
    // ctr 1.7 sends every runtime but runc's own an option's type that is older than all of them.
    Case::new("no pivot_root, and a read-only root", no_pivot).needs(&[Need::Containerd2]),
    Case::new("a user namespace: owners, an exec and a terminal", user_namespace)
        .needs(&[Need::Containerd2, Need::Root])
        .in_vm(),
];

/// criu is slow where processors are emulated, and asks more of a kernel than an emulated one need have.
const CRIU: &[Need] = &[Need::Native, Need::Containerd2, Need::Root];
/// Counts in its memory, and says how far it is.
const COUNTS: &str = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
const MAP: &str = "0:100000:65536";

/// Machines have no iptables, which criu would keep a container's network still with.
pub(super) fn without_network_lock() -> Result<()> {
    fs::create_dir_all("/etc/criu").context("create criu's folder")?;
    fs::write("/etc/criu/default.conf", "network-lock skip\n").context("configure criu")
}

fn count(container: &Container) -> Result<u64> {
    let path = format!("/proc/{}/root/count", container.pid()?);
    eventually("a count", || {
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        text.trim().parse().with_context(|| format!("{text:?} is no number"))
    })
}

fn counts_beyond(container: &Container, number: u64) -> Result<u64> {
    eventually("the container to go on", || {
        let now = count(container)?;
        ensure!(now > number, "it is at {now}, not beyond {number}");
        Ok(now)
    })
}

fn comes_back(bed: &Bed) -> Result<String> {
    without_network_lock()?;
    let container = bed.start_container("written", &["/bin/sh", "-c", COUNTS])?;
    let before = counts_beyond(&container, 10)?;
    let image = format!("localhost/{}:1", container.id);
    let args = ["container", "checkpoint", "--task", "--rw", "--image", &container.id, &image];
    ctr(&args)?.success("ctr container checkpoint")?;
    let after = counts_beyond(&container, before)?;
    container.remove()?;
    let again = Container { id: bed.id("restored") };
    let restored = ctr(&["container", "restore", "--live", "--rw", &again.id, &image])?;
    restored.success("ctr container restore")?;
    again.wait_for("RUNNING")?;
    // It counts in its memory: one that began anew would begin with 1.
    let first = count(&again)?;
    ensure!(first >= before, "it was at {before}, and began again at {first}");
    let later = counts_beyond(&again, first)?;
    let out = again.sh("look", "cat /proc/1/comm")?;
    ensure!(out == "sh\n", "its first process is {out:?}");
    let code = again.remove()?;
    ensure!(code == 137, "exit status {code}");
    ctr(&["image", "rm", &image])?.success("ctr image rm")?;
    Ok(format!("at {before}, then {after}; restored at {first}, then {later}"))
}

fn ends(bed: &Bed) -> Result<String> {
    without_network_lock()?;
    let container = bed.start_container("ends", &["/bin/sh", "-c", COUNTS])?;
    counts_beyond(&container, 1)?;
    let [image, work] = ["image", "work"].map(|part| format!("{FILES}/{}-{part}", container.id));
    let args = ["task", "checkpoint", "--exit", "--image-path", &image, "--work-path", &work];
    ctr(&[&args[..], &[&container.id]].concat())?.success("ctr task checkpoint")?;
    container.wait_for("STOPPED")?;
    ensure!(Path::new(&image).join("inventory.img").exists(), "no images in {image}");
    ensure!(Path::new(&work).join("dump.log").exists(), "no log in {work}");
    let code = container.remove()?;
    ensure!(code == 137, "exit status {code}");
    Ok(String::new())
}

fn fails(bed: &Bed) -> Result<String> {
    without_network_lock()?;
    let container = bed.start_container("fails", &["/bin/sh", "-c", COUNTS])?;
    let before = counts_beyond(&container, 1)?;
    // A directory that cannot be made.
    let file = format!("{FILES}/{}-file", container.id);
    fs::write(&file, "").context("make a file")?;
    let output = ctr(&["task", "checkpoint", "--image-path", &format!("{file}/images"), &container.id])?;
    ensure!(output.code != 0, "it was made");
    ensure!(output.err.contains("not a directory"), "the reason is missing: {}", output.err);
    counts_beyond(&container, before)?;
    container.remove().map(|_| output.err.trim().to_owned())
}

/// As dockerd does: the spec names the root, and Create has no mounts.
fn mounted_by_client(bed: &Bed) -> Result<String> {
    let root = bare_root(&bed.id("mounted"))?;
    fs::write(Path::new(&root).join("etc/mine"), "mine\n").context("write a file")?;
    let id = bed.id("mounted");
    let run = ["run", "-d", "--null-io", "--rootfs"];
    ctr(&[&run[..], &bed.stack.words(), &[&root, &id], &SLEEP].concat())?.success("ctr run --rootfs")?;
    let container = Container { id };
    let out = container.exec("look", &["/bin/busybox", "cat", "/etc/mine"], b"")?.success("look")?;
    ensure!(out == "mine\n", "{out:?}");
    container.remove()?;
    ensure!(Path::new(&root).join("etc/mine").exists(), "it is gone");
    Ok(String::new())
}

/// As a snapshotter gives a view of one layer. A node without root must keep the flags that its mounts have.
fn bound(bed: &Bed) -> Result<String> {
    let name = bed.id("bound");
    let root = bare_root(&name)?;
    let source = format!("/var/lib/containerd/{name}");
    output_of(Command::new("mv").args([&root, &source]))?;
    let task = Task::container(bed, "bound", &[], &["/bin/busybox", "touch", "/mine"])?;
    let mount = Mount {
        r#type: "bind".to_owned(),
        source: source.clone(),
        options: ["rbind", "ro"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    task.create_on(vec![mount], &Stdio::default())?;
    task.start("")?;
    let code = task.wait("")?.exit_status;
    ensure!(code == 1 && !fs::exists(format!("{source}/mine"))?, "it could be written to: {code}");
    task.remove()?;
    ensure!(fs::exists(format!("{source}/bin/busybox"))?, "it is gone");
    fs::remove_dir_all(&source).context("remove the directory").map(|()| String::new())
}

fn no_pivot(bed: &Bed) -> Result<String> {
    let script = "touch /x 2>/dev/null && echo writable; grep -c ' / / ' /proc/self/mountinfo; exec sleep 1";
    let args = ["run", "--rm", "--no-pivot", "--read-only"];
    let image = crate::images::Image::Busybox.name();
    let id = bed.id("no-pivot");
    let with = [image, &id, "/bin/sh", "-c", script];
    let out = ctr(&[&args[..], &bed.stack.words(), &with].concat())?.success("ctr run --no-pivot")?;
    ensure!(!out.contains("writable"), "the root can be written to");
    Ok(out.trim().replace('\n', " "))
}

fn user_namespace(bed: &Bed) -> Result<String> {
    let options = ["--uidmap", MAP, "--gidmap", MAP, "--remap-labels"];
    let container = bed.stack.start(&bed.id("users"), &options, &SLEEP)?;
    let map =
        fs::read_to_string(format!("/proc/{}/uid_map", container.pid()?)).context("read its mapping")?;
    ensure!(map.split_ascii_whitespace().eq(["0", "100000", "65536"]), "{map:?}");
    let out = container.sh("look", "touch /mine; stat -c %u:%g / /bin/busybox /mine")?;
    ensure!(out == "0:0\n0:0\n0:0\n", "{out:?}");
    let line = format!("ctr task exec -t --exec-id tty {} /bin/sh -c 'tty; stat -c %u $(tty)'", container.id);
    let out = run("script", &["-qec", &line, "/dev/null"], b"")?.success("an exec with a terminal")?;
    // The terminal around ctr shows the end of its input, while it is not ctr's yet.
    let out = out.replace("^@", "").replace("^D", "");
    ensure!(out.contains("/dev/pts/0") && out.contains("\n0"), "{out:?}");
    container.remove().map(|_| String::new())
}
