//! Roots of what snapshotters for files ask for beside overlays: file systems in files (`loop`), mounts below the root
//! (`target`), and file systems of programs (`fuse3.`). The client names the mounts itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::services::snapshots::v1::{RemoveSnapshotRequest, ViewSnapshotRequest};
use capsule_proto::containerd::types::Mount;

use super::bed::{Bed, FILES, SLEEP, eventually, processes_named};
use super::capsules::bare_root;
use super::client::{NAMESPACE, request};
use super::task::{Stdio, Task};
use super::{Case, Need};
use crate::images::Image;
use crate::scenario::ctr::{Stack, ctr};
use crate::workspace::output_of;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("a root in a file, which can be written to", in_a_file),
    Case::new("a root in a file, read-only", |bed| once(bed, FILES, "ro", true, false)),
    // On a disk: no memory's file system can.
    Case::new("a root in a file, without the page cache", |bed| {
        once(bed, "/var/lib/containerd", "direct-io", false, true)
    }),
    Case::new("a file that is no root is refused, and no loop device is left", no_root),
    Case::new("a root in a file whose shim is killed", killed),
    Case::new("layers in files below an overlay", layers_in_files)
        .forgiven("it cannot unmount what is hidden by a mount over it", &["device or resource busy"]),
    Case::new("mounts below the root, through its links", below_the_root).in_vm(),
    Case::new("a mount below the root that its links lead out of", out_of_the_root),
    Case::new("a root that is made read-only afterwards", remounted),
    // Debian's kernel has erofs as a module, and containerd leaves its snapshotter out when that is not loaded yet.
    Case::new("images of the snapshotter erofs", of_erofs).needs(&[Need::Native, Need::Containerd2]),
    Case::new("a root of a program, which ends with it", of_a_program),
    Case::new("a root of a program whose shim is killed", of_a_program_killed),
    Case::new("a program that makes no root is named", of_no_program),
];

const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task";

fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.to_owned(), source: source.to_owned(), target: target.to_owned(), options }
}

/// A container's task on these mounts, running.
fn start<'a>(bed: &'a Bed, hint: &str, mounts: &[Mount]) -> Result<Task<'a>> {
    let task = Task::container(bed, hint, &[], &SLEEP)?;
    task.create_on(mounts.to_vec(), &Stdio::default()).context("create the task")?;
    task.start("").context("start the task")?;
    Ok(task)
}

/// A container that cannot be made of these mounts: what is said, in small letters.
fn refused(bed: &Bed, hint: &str, mounts: &[Mount]) -> Result<String> {
    let task = Task::container(bed, hint, &[], &SLEEP)?;
    let answer = task.create_on(mounts.to_vec(), &Stdio::default());
    let said = answer.err().context("the task is created")?.message().to_lowercase();
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let left: Vec<&str> = table.lines().filter(|line| line.contains(&task.id)).collect();
    ensure!(left.is_empty(), "left: {left:?}");
    task.forget()?;
    Ok(said)
}

fn sh(task: &Task<'_>, exec: &str, script: &str) -> Result<String> {
    let args = ["task", "exec", "--exec-id", exec, &task.id, "/bin/sh", "-c", script];
    ctr(&args)?.success(script)
}

/// A file of its own for a file system.
fn file(bed: &Bed, hint: &str) -> String {
    format!("{FILES}/{}.img", bed.id(hint))
}

/// A bare root as an ext4 file system in `file`.
fn make_ext4(bed: &Bed, file: &str) -> Result<()> {
    let root = bare_root(&bed.id("tree"))?;
    let mut command = Command::new("mkfs.ext4");
    output_of(command.args(["-q", "-d", &root, file, "64M"])).map(drop)?;
    fs::remove_dir_all(&root).with_context(|| format!("remove {root}"))
}

/// A loop device of a file.
#[derive(Debug, PartialEq, Eq)]
struct Loop {
    read_only: bool,
    autoclear: bool,
    direct: bool,
}

fn loops_of(file: &str) -> Result<Vec<Loop>> {
    let mut loops = Vec::new();
    for entry in fs::read_dir("/sys/block").context("read /sys/block")?.filter_map(Result::ok) {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("loop/backing_file").trim_end() != file {
            continue;
        }
        let is_set = |name: &str| read(name).trim_end() == "1";
        let (read_only, autoclear) = (is_set("ro"), is_set("loop/autoclear"));
        loops.push(Loop { read_only, autoclear, direct: is_set("loop/dio") });
    }
    Ok(loops)
}

fn expect_loop(file: &str, read_only: bool, direct: bool) -> Result<()> {
    let (seen, expected) = (loops_of(file)?, [Loop { read_only, autoclear: true, direct }]);
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    Ok(())
}

/// The last one who looks into a device, udev for one, frees it.
fn no_loop(file: &str) -> Result<()> {
    eventually("the loop device to be free", || {
        let left = loops_of(file)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn in_a_file(bed: &Bed) -> Result<String> {
    let file = file(bed, "rw");
    make_ext4(bed, &file)?;
    let root = [mount("ext4", &file, "", &["loop", "rw", "nodev"])];
    for round in ["first", "second"] {
        let task = start(bed, "file", &root)?;
        expect_loop(&file, false, false)?;
        let out =
            sh(&task, "write", &format!("echo {round} >> /written; cat /written; grep ' / ' /proc/mounts"))?;
        // What one container has written is in the file for the next one.
        let expected = if round == "first" { "first\n" } else { "first\nsecond\n" };
        ensure!(out.starts_with(expected) && out.contains(" ext4 rw,nodev"), "{out:?}");
        task.remove()?;
        no_loop(&file)?;
    }
    fs::remove_file(&file).with_context(|| format!("remove {file}"))?;
    Ok(String::new())
}

fn once(bed: &Bed, at: &str, option: &str, read_only: bool, direct: bool) -> Result<String> {
    let file = format!("{at}/{}.img", bed.id(option));
    make_ext4(bed, &file)?;
    let task = start(bed, "file", &[mount("ext4", &file, "", &[option, "loop"])])?;
    expect_loop(&file, read_only, direct)?;
    let out = sh(&task, "write", "echo written > /new || echo refused; cat /new 2>/dev/null || :")?;
    ensure!(out == if read_only { "refused\n" } else { "written\n" }, "{out:?}");
    task.remove()?;
    no_loop(&file)?;
    fs::remove_file(&file).with_context(|| format!("remove {file}"))?;
    Ok(String::new())
}

fn no_root(bed: &Bed) -> Result<String> {
    let file = file(bed, "odd");
    let mut said = Vec::new();
    let missing = refused(bed, "missing", &[mount("ext4", &file, "", &["loop"])])?;
    ensure!(missing.contains(&file) && missing.contains("no such file"), "{missing}");
    said.push(missing);
    fs::write(&file, vec![7; 1 << 20]).with_context(|| format!("write {file}"))?;
    said.push(refused(bed, "odd", &[mount("ext4", &file, "", &["loop"])])?);
    no_loop(&file)?;
    make_ext4(bed, &file)?;
    // A root that was mounted already, and one over it that cannot be.
    let mounts = [mount("ext4", &file, "", &["loop"]), mount("bind", "/nowhere", "", &["rbind"])];
    said.push(refused(bed, "half", &mounts)?);
    no_loop(&file)?;
    fs::remove_file(&file).with_context(|| format!("remove {file}"))?;
    Ok(said.join("; "))
}

fn killed(bed: &Bed) -> Result<String> {
    let file = file(bed, "killed");
    make_ext4(bed, &file)?;
    let task = start(bed, "killed", &[mount("ext4", &file, "", &["loop"])])?;
    expect_loop(&file, false, false)?;
    output_of(Command::new("kill").args(["-9", &shim_of(&task.id)?]))?;
    no_loop(&file)?;
    drop(task);
    fs::remove_file(&file).with_context(|| format!("remove {file}"))?;
    Ok(String::new())
}

/// The process that has the container's id among its arguments.
fn shim_of(id: &str) -> Result<String> {
    for process in processes_named("containerd-shim")? {
        let pid = process.split(' ').next().unwrap_or_default();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if arguments.split(|byte| *byte == 0).any(|argument| argument == id.as_bytes()) {
            return Ok(pid.to_owned());
        }
    }
    anyhow::bail!("{id} has no shim")
}

/// As block images are laid: each layer is mounted from its file below the root, and an overlay of them over all.
fn layers_in_files(bed: &Bed) -> Result<String> {
    let tree = bare_root(&bed.id("tree"))?;
    let [low, high] = ["low", "high"].map(|layer| file(bed, layer));
    output_of(Command::new("mkfs.erofs").args(["--quiet", &low, &tree]))?;
    fs::remove_dir_all(format!("{tree}/bin")).context("empty the tree")?;
    fs::write(format!("{tree}/etc/high"), "high\n").context("write a file")?;
    output_of(Command::new("mkfs.erofs").args(["--quiet", &high, &tree]))?;
    let at = format!("{FILES}/{}", bed.id("layers"));
    for name in ["base/low", "base/high", "upper", "work"] {
        fs::create_dir_all(format!("{at}/{name}")).with_context(|| format!("make {at}/{name}"))?;
    }
    let task = Task::container(bed, "layers", &[], &SLEEP)?;
    let rootfs = format!("{BUNDLES}/{NAMESPACE}/{}/rootfs", task.id);
    let lower = format!("lowerdir={rootfs}/high:{rootfs}/low");
    let mounts = vec![
        mount("bind", &format!("{at}/base"), "", &["rbind", "rw"]),
        mount("erofs", &low, "low", &["ro", "loop"]),
        mount("erofs", &high, "/high", &["ro", "loop"]),
        mount(
            "overlay",
            "overlay",
            "/",
            &[&lower, &format!("upperdir={at}/upper"), &format!("workdir={at}/work")],
        ),
    ];
    task.create_on(mounts, &Stdio::default()).context("create the task")?;
    task.start("").context("start the task")?;
    expect_loop(&low, true, false)?;
    expect_loop(&high, true, false)?;
    let out = sh(&task, "look", "cat /etc/high; echo mine > /etc/mine")?;
    ensure!(out == "high\n", "{out:?}");
    task.remove()?;
    ensure!(
        Path::new(&format!("{at}/upper/etc/mine")).exists(),
        "what it wrote is not in the upper directory"
    );
    for layer in [&low, &high] {
        no_loop(layer)?;
        fs::remove_file(layer).with_context(|| format!("remove {layer}"))?;
    }
    Ok(String::new())
}

fn below_the_root(bed: &Bed) -> Result<String> {
    let root = bare_root(&bed.id("below"))?;
    for name in ["volumes/one", "volumes/two", "volumes/three"] {
        fs::create_dir_all(format!("{root}/{name}")).with_context(|| format!("make {name}"))?;
    }
    // As a process in the root sees them.
    std::os::unix::fs::symlink("/volumes", format!("{root}/absolute")).context("make a link")?;
    std::os::unix::fs::symlink("../../../volumes/three", format!("{root}/usr/climbs"))
        .context("make a link")?;
    let data = format!("{FILES}/{}", bed.id("data"));
    fs::create_dir_all(&data).context("make a directory")?;
    fs::write(format!("{data}/file"), "data\n").context("write a file")?;
    let mounts = [
        mount("bind", &root, "", &["rbind", "rw"]),
        mount("tmpfs", "tmpfs", "/volumes/one", &["nosuid", "size=1m"]),
        mount("bind", &data, "absolute/two", &["rbind", "ro"]),
        mount("bind", &data, "../usr/climbs", &["rbind", "rw"]),
    ];
    let task = start(bed, "below", &mounts)?;
    let script =
        "grep -o ' /volumes[^ ]* [^ ]* r[ow]' /proc/mounts; cat /volumes/two/file /volumes/three/file;
        echo x > /volumes/two/x || echo refused; echo x > /volumes/three/x; ls /volumes/two";
    let out = sh(&task, "look", script)?;
    task.remove()?;
    let expected = " /volumes/one tmpfs rw\n /volumes/two";
    ensure!(out.starts_with(expected), "{out:?}");
    ensure!(out.ends_with("data\ndata\nrefused\nfile\nx\n"), "{out:?}");
    ensure!(
        fs::read_dir(format!("{root}/volumes/one")).context("look at the root")?.count() == 0,
        "files stay"
    );
    Ok(String::new())
}

fn out_of_the_root(bed: &Bed) -> Result<String> {
    let root = bare_root(&bed.id("out"))?;
    let outside = format!("/srv/{}", bed.id("outside"));
    fs::create_dir_all(&outside).context("make a directory")?;
    std::os::unix::fs::symlink(&outside, format!("{root}/out")).context("make a link")?;
    let climb = format!("../../../../../../../..{outside}");
    for (hint, target) in [("link", "out"), ("climb", &climb)] {
        let mounts = [mount("bind", &root, "", &["rbind", "rw"]), mount("tmpfs", "tmpfs", target, &[])];
        let said = refused(bed, hint, &mounts)?;
        ensure!(said.contains("no such file"), "{said}");
    }
    // Where there is such a directory in the root, that one is meant.
    fs::create_dir_all(format!("{root}{outside}")).context("make a directory")?;
    let mounts = [mount("bind", &root, "", &["rbind", "rw"]), mount("tmpfs", "tmpfs", "out", &[])];
    let task = start(bed, "in", &mounts)?;
    let out = sh(&task, "look", "grep -c ' tmpfs ' /proc/mounts; touch /out/file; ls /out")?;
    ensure!(out.ends_with("file\n"), "{out:?}");
    ensure!(fs::read_dir(&outside).context("look outside")?.count() == 0, "it is mounted outside");
    task.remove()?;
    Ok(String::new())
}

fn remounted(bed: &Bed) -> Result<String> {
    let root = bare_root(&bed.id("remounted"))?;
    let mounts =
        [mount("bind", &root, "", &["rbind", "rw"]), mount("bind", "", "", &["bind", "remount", "ro"])];
    let task = start(bed, "remounted", &mounts)?;
    let out = sh(&task, "look", "echo x > /written || echo refused")?;
    ensure!(out == "refused\n", "{out:?}");
    task.remove().map(|()| String::new())
}

/// A view of one layer is a file system in a file; what can be written to is an overlay over what containerd has mounted.
fn of_erofs(bed: &Bed) -> Result<String> {
    let stack = Stack { snapshotter: "erofs", ..bed.stack };
    // By `ctr` itself: containerd's transfer service has to be told of each snapshotter.
    let archive = Image::Busybox.in_machine();
    let archive = archive.to_str().context("an archive's path is no text")?;
    let args = ["image", "import", "--local", "--snapshotter", stack.snapshotter, archive];
    ctr(&args)?.success("import the image")?;
    let script = "grep -o ' / [a-z]* r[ow]' /proc/mounts; (echo x > /x && cat /x) || echo refused";
    let out = stack.run_image_once(Image::Busybox, &[], &["/bin/sh", "-c", script])?;
    ensure!(out == " / overlay rw\nx\n", "{out:?}");

    let list = ctr(&["snapshots", "--snapshotter", stack.snapshotter, "ls"])?.success("ctr snapshots ls")?;
    let layer = list.lines().find(|line| line.trim_end().ends_with("Committed")).context("no layer")?;
    let view = ViewSnapshotRequest {
        snapshotter: stack.snapshotter.to_owned(),
        key: bed.id("view"),
        parent: layer.split_ascii_whitespace().next().context("no layer")?.to_owned(),
        // Or containerd takes it away, as nothing refers to it.
        labels: [("containerd.io/gc.root".to_owned(), "now".to_owned())].into(),
    };
    let (client, key) = (bed.client(), view.key.clone());
    let mounts = client.call(client.snapshots().view(request(view)))?.mounts;
    ensure!(mounts.iter().any(|mount| mount.options.iter().any(|option| option == "loop")), "{mounts:?}");
    let task = start(bed, "erofs", &mounts)?;
    expect_loop(&mounts[0].source, true, false)?;
    let out = sh(&task, "look", script)?;
    ensure!(out == " / erofs ro\nrefused\n", "{out:?}");
    task.remove()?;
    no_loop(&mounts[0].source)?;
    let remove = RemoveSnapshotRequest { snapshotter: stack.snapshotter.to_owned(), key };
    client.call(client.snapshots().remove(request(remove)))?;
    Ok(String::new())
}

/// A bare root below a program's overlay: its mount, and the upper directory.
fn program_root(bed: &Bed, kind: &str) -> Result<(Mount, String)> {
    let root = bare_root(&bed.id("fuse"))?;
    let at = format!("{FILES}/{}", bed.id("layers"));
    for name in ["upper", "work"] {
        fs::create_dir_all(format!("{at}/{name}")).with_context(|| format!("make {at}/{name}"))?;
    }
    let lower = format!("lowerdir={root}");
    let (upper, work) = (format!("upperdir={at}/upper"), format!("workdir={at}/work"));
    Ok((mount(kind, "overlay", "", &[&lower, &upper, &work]), format!("{at}/upper")))
}

fn no_program() -> Result<()> {
    eventually("the program to end", || {
        let left = processes_named("fuse-overlayfs")?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn of_a_program(bed: &Bed) -> Result<String> {
    for kind in ["fuse3.fuse-overlayfs", "fuse.fuse-overlayfs"] {
        let (root, upper) = program_root(bed, kind)?;
        let task = start(bed, "fuse", &[root])?;
        ensure!(processes_named("fuse-overlayfs")?.len() == 1, "no program, or more than one");
        let out = sh(&task, "look", "grep ' / ' /proc/mounts; echo mine > /mine; cat /mine")?;
        ensure!(out.contains(" fuse.fuse-overlayfs ") && out.ends_with("mine\n"), "{out:?}");
        task.remove()?;
        no_program()?;
        ensure!(Path::new(&upper).join("mine").exists(), "what it wrote is not in the upper directory");
    }
    Ok(String::new())
}

fn of_a_program_killed(bed: &Bed) -> Result<String> {
    let (root, _) = program_root(bed, "fuse3.fuse-overlayfs")?;
    let task = start(bed, "fuse", &[root])?;
    output_of(Command::new("kill").args(["-9", &shim_of(&task.id)?]))?;
    no_program()?;
    drop(task);
    Ok(String::new())
}

fn of_no_program(bed: &Bed) -> Result<String> {
    let mut said = Vec::new();
    for kind in ["fuse3.not-there", "fuse3.fuse-overlayfs"] {
        let answer = refused(bed, "no-fuse", &[mount(kind, "overlay", "", &["lowerdir=/nowhere"])])?;
        ensure!(answer.contains("mount.fuse3"), "{answer}");
        said.push(answer);
    }
    Ok(said.join("; "))
}
