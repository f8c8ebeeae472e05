//! The annotations, which only our runtime follows: capsules that are there first, and logs that nobody waits for.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::bed::{Bed, FILES, SLEEP, eventually};
use super::streams::{LINES, all_lines, log_with, logger};
use super::{Case, Need};
use crate::images::layer::Entry;
use crate::images::{Image, oci};
use crate::scenario::capsulectl::{done, ps, refused, tzdata};
use crate::scenario::ctr::{OURS, ctr};
use crate::scenario::world::log_of;

pub(super) const ATTACH: &str = "resourcecapsules.io/attach";

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("with a slow log, blocking keeps all and non-blocking does not wait", slow_log),
    Case::new("runc: named capsules are there first", |bed| named(bed, "runc")).in_vm(),
    Case::new("crun: named capsules are there first", |bed| named(bed, "crun")).in_vm(),
    Case::new("a task made anew has what its annotation names", made_anew),
    Case::new("mistakes in the annotation are refused, and nothing is left", mistakes),
    Case::new("a container that takes no capsules gets none", refusing),
    Case::new("a start waits for capsuled", away),
    Case::new("a layer's directory hides that of the layer below", opaque),
    Case::new("in a user namespace, what is attached is root's there", owners)
        .needs(&[Need::Containerd2, Need::Root]),
    Case::new("a checkpoint with capsules attached is refused by name", checkpoint).needs(&[Need::Cgroups]),
];

/// A container writes more than fits anywhere, while its log is read by nobody for six seconds.
fn slow_log(bed: &Bed) -> Result<String> {
    let uri = format!("binary://{}?k=v", logger("slow", "6")?);
    let mode = "resourcecapsules.io/log-mode=non-blocking";
    let size = "resourcecapsules.io/log-max-buffer-size=64k";
    let script = format!("seq 1 {LINES}; touch /done; exec sleep 100000");
    let (keeps, drops) = (bed.id("keeps"), bed.id("drops"));
    let mut told = Vec::new();
    for (id, options) in [(&keeps, vec![]), (&drops, vec!["--annotation", mode, "--annotation", size])] {
        let began = Instant::now();
        let options = [vec!["--log-uri", uri.as_str()], options].concat();
        let container = bed.start_logged(id, &options, &script)?;
        let root = format!("/proc/{}/root/done", container.pid()?);
        while !Path::new(&root).exists() {
            ensure!(began.elapsed() < Duration::from_secs(60), "{id}: it never wrote all");
            std::thread::sleep(Duration::from_millis(5));
        }
        told.push((began.elapsed(), container));
    }
    ensure!(told[1].0 < told[0].0, "non-blocking waited: {:?}, {:?}", told[0].0, told[1].0);
    let times = format!("{:?} and {:?}", told[0].0, told[1].0);
    let kept = log_with(&format!("{FILES}/{keeps}.out"), &format!("\n{LINES}\n"))?;
    // At once: what was dropped is said however late the log is.
    for (_, container) in told {
        container.remove()?;
    }
    ensure!(kept == all_lines(), "blocking lost {} bytes", all_lines().len() - kept.len());
    let dropped = dropped(&drops)?;
    let some = eventually("the log to be whole", || {
        let log = fs::read_to_string(format!("{FILES}/{drops}.out")).context("read the log")?;
        ensure!(log.len() + dropped >= all_lines().len(), "{} bytes came", log.len());
        Ok(log)
    })?;
    ensure!(
        dropped > 0 && some.len() + dropped == all_lines().len(),
        "{} bytes came and {dropped} were dropped, of {}",
        some.len(),
        all_lines().len()
    );
    let numbers = some.lines().map(str::parse).collect::<Result<Vec<usize>, _>>().context("a torn line")?;
    let ordered = numbers.windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(ordered && numbers.last().is_none_or(|last| *last <= LINES), "out of order: {numbers:?}");
    Ok(format!("{} of {LINES} lines kept, {dropped} bytes dropped; {times}", numbers.len()))
}

/// How many bytes of a container's output its shim says in containerd's log that it has dropped. That it begins is said too.
fn dropped(id: &str) -> Result<usize> {
    eventually("the report of what was dropped", || {
        let log = fs::read_to_string(log_of("containerd")).context("read containerd's log")?;
        let of_it: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
        let begins = of_it.iter().any(|line| line.contains("a slow log loses output"));
        let total = of_it.iter().find_map(|line| line.split_once("a slow log lost ")?.1.split(' ').next());
        ensure!(begins, "it is not said that output is dropped: {of_it:?}");
        total.context("it is not said how much")?.parse().context("a number of bytes")
    })
}

/// The annotation's capsules are there for the very first program: it is one of them.
fn named(bed: &Bed, binary: &str) -> Result<String> {
    let options = format!("{FILES}/{binary}.toml");
    fs::write(&options, format!("BinaryName = \"{binary}\"\n")).context("write options")?;
    let named = format!("{ATTACH}=tzdata@{}, debug-tools:/:union", bed.newest()?);
    let read = "test -s /usr/share/zoneinfo/Europe/Berlin && ls /usr/share/zoneinfo | wc -l";
    let id = format!("named-{binary}");
    let with = ["--runtime-config-path", &options, "--annotation", &named, Image::Busybox.name(), &id];
    let args = [&["run", "--rm"], &OURS.words()[..], &with, &["/bin/sh", "-c", read]].concat();
    let out = ctr(&args)?.success("run with named capsules")?;
    eventually("the records to go with the container", || {
        ensure!(ps()?.iter().all(|seen| seen.container != id), "still on record: {:?}", ps()?);
        Ok(())
    })?;
    Ok(format!("{} entries", out.trim()))
}

/// A capsule of two layers, as an image that another tool has made.
fn opaque(bed: &Bed) -> Result<String> {
    let folders = || ["opt", "opt/layered"].map(Entry::folder);
    let lower = folders().into_iter().chain([Entry::file("opt/layered/old", "old")]).collect();
    // Without root containerd makes an opaque directory of one that is removed and made anew, with root of the other mark.
    let marks =
        [Entry::removed("opt", "layered"), Entry::folder("opt/layered"), Entry::opaque("opt/layered")];
    let upper =
        [Entry::folder("opt")].into_iter().chain(marks).chain([Entry::file("opt/layered/new", "new")]);
    let upper = upper.collect();
    let archive = format!("{FILES}/layered.tar");
    oci::write(Path::new(&archive), "localhost/capsules/layered:1.0.0", &[lower, upper])?;
    let import = ["--namespace", "capsules", "image", "import", "--snapshotter", OURS.snapshotter, &archive];
    ctr(&import)?.success("ctr image import")?;
    let container = bed.start_container("layered", &SLEEP)?;
    eventually("the capsule to be known", || done(&["inspect", "layered"]))?;
    for (target, mode, below) in [("/mnt/alone", "ro", "/mnt/alone"), ("/", "union", "")] {
        done(&["attach", &container.id, "layered", "--target", target, "--mode", mode])?;
        let seen = container.sh("look", &format!("ls {below}/opt/layered"))?;
        ensure!(seen == "new\n", "{target}: {seen:?}");
    }
    container.remove().map(|_| String::new())
}

fn made_anew(_: &Bed) -> Result<String> {
    let named = format!("{ATTACH}=tzdata");
    let container = OURS.start("again", &["--annotation", &named], &SLEEP)?;
    let read = |exec: &str| container.sh(exec, "ls /usr/share/zoneinfo | wc -l");
    let first = read("one")?;
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", &container.id])?.success("ctr task rm")?;
    ctr(&["task", "start", "-d", "--null-io", &container.id])?.success("ctr task start")?;
    container.wait_for("RUNNING")?;
    ensure!(read("two")? == first, "not the same: {first}");
    ensure!(ps()?.iter().filter(|seen| seen.container == container.id).count() == 1, "{:?}", ps()?);
    container.remove().map(|_| first.trim().to_owned())
}

fn mistakes(_: &Bed) -> Result<String> {
    for (entry, words) in [
        ("no-such", vec!["no-such", "not known"]),
        ("tzdata:relative", vec!["tzdata:relative", "absolute"]),
        ("tzdata,tzdata", vec!["/usr/share/zoneinfo", "taken"]),
        ("tzdata,no-such", vec!["no-such"]),
    ] {
        let named = format!("{ATTACH}={entry}");
        let refused = OURS.start("wrong", &["--annotation", &named], &SLEEP);
        let error = refused.err().with_context(|| format!("{entry:?} was taken"))?.to_string();
        for word in [vec![ATTACH], words].concat() {
            ensure!(error.contains(word), "{entry:?}: does not name {word:?}: {error}");
        }
        ctr(&["task", "rm", "-f", "wrong"])?;
        ctr(&["container", "rm", "wrong"])?.success("ctr container rm")?;
        eventually("no record to be left", || {
            ensure!(ps()?.is_empty(), "{entry:?}: left: {:?}", ps()?);
            Ok(())
        })?;
    }
    Ok(String::new())
}

fn owners(bed: &Bed) -> Result<String> {
    let map = "0:100000:65536";
    let options = ["--uidmap", map, "--gidmap", map, "--remap-labels"];
    let container = OURS.start(&bed.id("owners"), &options, &SLEEP)?;
    let before = container.mounts()?;
    let [(older, _), _] = tzdata()?;
    done(&["attach", &container.id, &format!("tzdata@{older}")])?;
    done(&["attach", &container.id, "debug-tools", "--target", "/", "--mode", "union"])?;
    done(&["upgrade", &container.id, "tzdata"])?;
    let look =
        "stat -c '%n %u:%g' /usr/share/zoneinfo /usr/share/zoneinfo/Europe/Berlin /usr/bin/strace /usr/bin";
    let out = container.sh("look", look)?;
    ensure!(out.lines().count() == 4 && out.lines().all(|line| line.ends_with(" 0:0")), "{out}");
    for capsule in ["debug-tools", "tzdata"] {
        done(&["detach", &container.id, capsule])?;
    }
    ensure!(container.mounts()? == before, "left: {:?}", container.mounts()?);
    container.remove().map(|_| out.trim().replace('\n', ", "))
}

fn checkpoint(bed: &Bed) -> Result<String> {
    let container = OURS.start(&bed.id("checkpoint"), &[], &SLEEP)?;
    done(&["attach", &container.id, "tzdata"])?;
    let output = ctr(&["task", "checkpoint", "--image-path", &format!("{FILES}/cp"), &container.id])?;
    ensure!(output.code != 0, "it was made");
    for word in [&container.id, "tzdata@", "/usr/share/zoneinfo", "detach"] {
        ensure!(output.err.contains(word), "does not name {word:?}: {}", output.err);
    }
    container.wait_for("RUNNING")?;
    container.remove().map(|_| output.err.trim().to_owned())
}

fn refusing(_: &Bed) -> Result<String> {
    let named = format!("{ATTACH}=tzdata");
    let options = ["--annotation", "resourcecapsules.io/enabled=false", "--annotation", &named];
    let container = OURS.start("none", &options, &SLEEP)?;
    ensure!(ps()?.is_empty(), "attached: {:?}", ps()?);
    let line = refused(&["attach", "none", "tzdata"], &["none", "resourcecapsules.io/enabled"])?;
    container.remove().map(|_| line)
}

/// A container that names capsules waits for a capsuled that is being replaced.
fn away(bed: &Bed) -> Result<String> {
    bed.world().kill_capsuled()?;
    let args = [&["run", "-d", "--null-io"], &OURS.words()[..], &["--rootfs"]].concat();
    let named = format!("{ATTACH}=tzdata");
    let root = bare_root("root")?;
    let started = std::thread::spawn(move || {
        ctr(&[&args[..], &["--annotation", &named, &root, "late"], &SLEEP].concat())
    });
    std::thread::sleep(Duration::from_secs(1));
    bed.restart_capsuled()?;
    let started = started.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
    started.success("ctr run while capsuled is away")?;
    ensure!(ps()?.iter().any(|seen| seen.container == "late"), "{:?}", ps()?);
    done(&["detach", "late", "tzdata"])?;
    ctr(&["task", "rm", "-f", "late"])?;
    ctr(&["container", "rm", "late"])?.success("ctr container rm")?;
    // It waits a moment before it connects again.
    eventually("containerd to find the new capsuled", || {
        ctr(&["snapshots", "--snapshotter", OURS.snapshotter, "ls"])?.success("ctr snapshots ls")
    })?;
    Ok(String::new())
}

/// A root for `ctr run --rootfs`, which needs no snapshotter: it can be started while capsuled is away.
pub fn bare_root(name: &str) -> Result<String> {
    let root = format!("{FILES}/{name}");
    fs::create_dir_all(format!("{root}/bin")).context("make a root")?;
    for program in ["busybox", "echo", "ls", "sh", "sleep", "wc"] {
        fs::copy("/bin/busybox", format!("{root}/bin/{program}")).context("copy busybox")?;
    }
    for directory in ["proc", "sys", "dev", "usr/share", "run", "tmp", "etc"] {
        fs::create_dir_all(format!("{root}/{directory}")).context("make a root")?;
    }
    Ok(root)
}
