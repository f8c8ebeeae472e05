//! Whole images, unpacked by containerd's overlayfs and by ours: the same trees, layer by layer and merged, before and
//! after containers have changed them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::ctr::{REFERENCE, SNAPSHOTTER, Stack, ctr};
use super::snapshots::{self, Mount, Mounted};
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::images::Image;
use crate::trees::{Tree, Window, differences, read};

const OURS: &str = SNAPSHOTTER.snapshotter;
const THEIRS: &str = REFERENCE.snapshotter;

/// Of one layer (a bind mount), of Debian's packages, of everything odd, of very many layers.
pub const IMAGES: [Image; 6] =
    [Image::Busybox, Image::Python, Image::Git, Image::System, Image::Odd, Image::Deep];

/// What runs on an image, and what it writes.
type Program = (Image, &'static [&'static str], &'static [&'static str], &'static str);

const PROGRAMS: [Program; 6] = [
    (Image::Python, &[], &["/usr/bin/python3", "/srv/app/main.py"], "{\"python\": 3}\n"),
    (
        Image::Git,
        &[],
        &["/bin/busybox", "sh", "-c", "git init -q /srv/r && git -C /srv/r rev-parse --is-inside-work-tree"],
        "true\n",
    ),
    (
        Image::System,
        &[],
        &["/bin/bash", "-c", "stat -c '%a %u:%g' /usr/bin/sudo /etc/shadow"],
        "4755 0:0\n640 0:42\n",
    ),
    // Capabilities of a file: a user has CAP_NET_RAW, number 13, and nothing else.
    (
        Image::Odd,
        &["--user", "1000", "--allow-new-privs"],
        &["/srv/odd/attributes/busybox-raw", "grep", "CapEff", "/proc/self/status"],
        "CapEff:\t0000000000002000\n",
    ),
    (Image::Deep, &[], &["/bin/sh", "-c", "cat /srv/newest; ls /srv/layers | wc -l"], "139\n10\n"),
    (
        Image::Deep,
        &[],
        &["/bin/sh", "-c", "echo x > /srv/newest && rm -r /srv/layers && ls /srv"],
        "newest\n",
    ),
];

/// Everything that a container can do to its files, with times that are the same in every run.
const CHANGES: &str = include_str!("changes.py");

/// Compares all images, and runs programs on them with each stack.
pub fn run(reporter: &mut Reporter, stacks: &[Stack]) -> Result<()> {
    with_logs(reporter, |reporter| compare(reporter, stacks))
}

fn compare(reporter: &mut Reporter, stacks: &[Stack]) -> Result<()> {
    // One for all: images share layers.
    let window = Window::open()?;
    let world = World::start(true)?;
    for image in IMAGES {
        unpacked(reporter, image, window)?;
    }
    for (number, (image, options, command, expected)) in PROGRAMS.into_iter().enumerate() {
        for stack in stacks {
            reporter.check(&format!("{}: {} runs, program {number}", image.file(), stack.name), || {
                let out = stack.run_image_once(image, options, command)?;
                ensure!(out == expected, "{out:?} instead of {expected:?}");
                Ok(String::new())
            });
        }
    }
    changed(reporter, window)?;
    removed(reporter);
    world.stop()
}

fn unpacked(reporter: &mut Reporter, image: Image, window: Window) -> Result<()> {
    let name = |step: &str| format!("{}: {step}", image.file());
    reporter.must(&name("unpacked by both"), || {
        let times = [REFERENCE, SNAPSHOTTER].map(|stack| -> Result<Duration> {
            let started = Instant::now();
            stack.import_image(image)?;
            Ok(started.elapsed())
        });
        let [theirs, ours] = times;
        Ok(((), format!("overlayfs in {:.1?}, ours in {:.1?}", theirs?, ours?)))
    })?;
    let mounted = reporter.must(&name("mounted by both"), || {
        Ok(([Mounted::image(THEIRS, image)?, Mounted::image(OURS, image)?], String::new()))
    })?;
    reporter.check(&name("the merged trees are the same"), || {
        let [theirs, ours] = &mounted;
        same(&read(theirs.path(), window)?, &read(ours.path(), window)?)
    });
    reporter.check(&name("every layer is the same"), || {
        let [theirs, ours] = [mounted[0].mount()?, mounted[1].mount()?];
        ensure!(theirs.shape() == ours.shape(), "{:?} and {:?}", theirs.shape(), ours.shape());
        if image == Image::Deep {
            let length = ours.options.iter().map(String::len).sum::<usize>();
            ensure!(length > 4096, "a page holds the options: {length}");
        }
        let [theirs, ours] = [theirs.lower(), ours.lower()];
        ensure!(theirs.len() == ours.len(), "{} and {} layers", theirs.len(), ours.len());
        let mut files = 0;
        for (number, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            let tree = read(theirs, window)?;
            files += tree.len();
            same(&tree, &read(ours, window)?)
                .with_context(|| format!("layer {number} of {}, {}", ours.display(), theirs.display()))?;
        }
        Ok(format!("{} layers, {files} files", ours.len()))
    });
    mounted.into_iter().try_for_each(Mounted::unmount)
}

/// Fails with the first differences.
pub fn same(theirs: &Tree, ours: &Tree) -> Result<String> {
    let found = differences(theirs, ours);
    if found.is_empty() {
        ensure!(!theirs.is_empty(), "there is nothing to compare");
        return Ok(format!("{} files", theirs.len()));
    }
    let first: Vec<String> = found.iter().take(12).map(ToString::to_string).collect();
    bail!("{} differences, overlayfs first: {}", found.len(), first.join("; "))
}

fn changed(reporter: &mut Reporter, window: Window) -> Result<()> {
    let ids = ["changed-theirs", "changed-ours"];
    reporter.must("changed: the same is done in a container on each", || {
        for (stack, id) in [(REFERENCE, ids[0]), (SNAPSHOTTER, ids[1])] {
            let mut args = vec!["run", "--runtime", stack.runtime, "--snapshotter", stack.snapshotter];
            args.extend([Image::Python.name(), id, "/usr/bin/python3", "-c", CHANGES]);
            let out = ctr(&args)?.success("ctr run")?;
            ensure!(out == "changed\n", "{out:?}");
        }
        Ok(((), String::new()))
    })?;
    reporter.check("changed: the upper directories are the same", || {
        let [theirs, ours] = [Mount::of(THEIRS, ids[0])?, Mount::of(OURS, ids[1])?];
        ensure!(theirs.shape() == ours.shape(), "{:?} and {:?}", theirs.shape(), ours.shape());
        same(&read(&theirs.upper()?, window)?, &read(&ours.upper()?, window)?)
    });
    reporter.check("changed: the differences from the image have one digest", || {
        let [theirs, ours] = [snapshots::diff(THEIRS, ids[0])?, snapshots::diff(OURS, ids[1])?];
        ensure!(theirs == ours, "{theirs} and {ours}");
        Ok(ours)
    });
    reporter.check("changed: committed, the trees are the same", || {
        let mut trees = Vec::new();
        for (stack, id) in [(REFERENCE, ids[0]), (SNAPSHOTTER, ids[1])] {
            // Or containerd's collector may be faster than what comes next.
            let keep =
                ["snapshots", "--snapshotter", stack.snapshotter, "label", id, "containerd.io/gc.root=kept"];
            ctr(&keep)?.success("ctr snapshots label")?;
            ctr(&["container", "rm", "--keep-snapshot", id])?.success("ctr container rm")?;
            snapshots::commit(stack.snapshotter, &format!("{id}-committed"), id)?;
            trees.push(committed(stack.snapshotter, id, window)?);
        }
        same(&trees[0], &trees[1])
    });
    Ok(())
}

/// The tree of the committed snapshot `ID-committed`, as the layers below a child of it show it.
fn committed(snapshotter: &str, id: &str, window: Window) -> Result<Tree> {
    let (child, parent) = (format!("{id}-child"), format!("{id}-committed"));
    let target = Path::new("/tmp").join(&child);
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    snapshots::prepare(snapshotter, &child, &parent)?;
    let mounted = Mount::of(snapshotter, &child)?.mount_lower(&target)?;
    let tree = read(&target, window);
    drop(mounted);
    snapshots::remove(snapshotter, &child)?;
    snapshots::remove(snapshotter, &parent)?;
    tree
}

fn removed(reporter: &mut Reporter) {
    reporter.check("removed: with the images every snapshot goes, and every directory", || {
        for image in IMAGES {
            ctr(&["images", "rm", "--sync", image.name()])?.success("ctr images rm")?;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut left = snapshots::list(THEIRS)?;
            left.extend(snapshots::list(OURS)?);
            let folder = Path::new("/var/lib/capsule/snapshots");
            let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
            left.extend(entries.filter_map(Result::ok).map(|entry| entry.path().display().to_string()));
            if left.is_empty() {
                return Ok(String::new());
            }
            ensure!(Instant::now() < deadline, "left: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}
