//! Containers in user namespaces: their files' owners, inside and on disk, are those of containerd's own overlayfs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::ctr::{OURS, REFERENCE, SNAPSHOTTER, Stack, ctr};
use super::images::same;
use super::snapshots::{Mount, Mounted};
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::images::Image;
use crate::trees::{Window, read};

/// Root and 65535 others are 100000 and those after it.
const MAP: &str = "0:100000:65536";

/// Theirs first, and ours beside it: its snapshotter below containerd's own runtime, and below ours.
const STACKS: [Stack; 3] = [REFERENCE, SNAPSHOTTER, OURS];

/// One way to give a container in a user namespace its files.
struct Case {
    name: &'static str,
    /// The snapshotter is asked for mapped mounts; otherwise `ctr` copies the image and changes owners.
    labels: bool,
    image: Image,
    script: &'static str,
    /// Some of what the script must say.
    seen: &'static [&'static str],
    /// Some of the owners on disk after it.
    on_disk: &'static [(&'static str, u32, u32)],
}

const CASES: [Case; 2] = [
    Case {
        name: "mapped mounts",
        labels: true,
        image: Image::Odd,
        // Says who owns what after it has changed some of it and added to it.
        script: "set -e
            cd /srv/odd
            mkdir work
            chown 0:7 changed/attributes
            chown 1000:1000 changed/kept-folder
            echo more >> attributes/owner-1000
            mv changed/name-1 work/moved
            rm -r changed/opaque
            mkdir changed/opaque
            touch work/root work/other
            chown 5:6 work/other
            chmod 4755 work/root
            ln -s nowhere work/link
            mkfifo work/fifo
            find attributes kinds changed work -exec stat -c '%n %u:%g %a %F' {} + | sort
            attributes/busybox-raw grep Cap /proc/self/status",
        seen: &[
            "attributes/owner-1000 1000:999 755 regular file\n",
            "attributes/owner-65534 65534:65533 6755 ",
            // Of nobody in this namespace.
            "attributes/owner-3000000000 65534:65534 6755 ",
            "changed/attributes 0:7 ",
            "work/other 5:6 644 ",
            "CapEff:\t00000000a80425fb\n",
        ],
        on_disk: &[
            ("", 100_000, 100_000),
            ("srv/odd/work/root", 100_000, 100_000),
            ("srv/odd/work/other", 100_005, 100_006),
            ("srv/odd/attributes/owner-1000", 101_000, 100_999),
        ],
    },
    Case {
        name: "a copy with other owners",
        labels: false,
        image: Image::System,
        script: "set -e
            cd /etc
            echo more >> shadow
            touch new
            chown 5:6 new
            stat -c '%n %u:%g %a' shadow passwd new /home/user /usr/bin/sudo",
        seen: &[
            "shadow 0:42 640\n",
            "new 5:6 644\n",
            "/home/user 1000:1000 700\n",
            "/usr/bin/sudo 0:0 4755\n",
        ],
        on_disk: &[("", 100_000, 100_000), ("etc/shadow", 100_000, 100_042), ("etc/new", 100_005, 100_006)],
    },
];

/// Runs everything with both snapshotters, and with our runtime.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, compare)
}

fn compare(reporter: &mut Reporter) -> Result<()> {
    let window = Window::open()?;
    let world = World::start(true)?;
    reporter.must("images are unpacked", || {
        for stack in STACKS {
            for image in [Image::Odd, Image::Deep, Image::System] {
                stack.import_image(image)?;
            }
        }
        Ok(((), String::new()))
    })?;
    for case in &CASES {
        case.run(reporter, window)?;
    }
    layers_are_untouched(reporter, window);
    reporter.check("140 layers, mapped", || {
        for stack in STACKS {
            let script = "stat -c %u:%g /srv/newest; cat /srv/newest";
            let out = run_mapped(stack, true, Image::Deep, "deep", script)?;
            ensure!(out == "0:0\n139\n", "{}: {out:?}", stack.name);
            ctr(&["container", "rm", "deep"])?.success("ctr container rm")?;
        }
        Ok(String::new())
    });
    world.stop()
}

/// Runs a script in a user namespace; the container and its snapshot stay.
fn run_mapped(stack: Stack, labels: bool, image: Image, id: &str, script: &str) -> Result<String> {
    let mut args = vec!["run", "--runtime", stack.runtime, "--snapshotter", stack.snapshotter];
    args.extend(["--uidmap", MAP, "--gidmap", MAP]);
    args.extend(labels.then_some("--remap-labels"));
    args.extend([image.name(), id, "/bin/sh", "-c", script]);
    ctr(&args)?.success("ctr run").with_context(|| format!("on {}", stack.name))
}

impl Case {
    fn run(&self, reporter: &mut Reporter, window: Window) -> Result<()> {
        let step = |what: &str| format!("{}: {what}", self.name);
        let ids = STACKS.map(|stack| format!("{}-{}", stack.name, self.labels));
        let [theirs, ours @ ..] = reporter.must(&step("the script runs on all"), || {
            let run = |at: usize| run_mapped(STACKS[at], self.labels, self.image, &ids[at], self.script);
            Ok(([run(0)?, run(1)?, run(2)?], String::new()))
        })?;
        reporter.check(&step("all containers see the same owners"), || {
            for line in self.seen {
                ensure!(theirs.contains(line), "overlayfs: no {line:?} in {theirs}");
            }
            for ours in &ours {
                let different = theirs.lines().zip(ours.lines()).find(|(theirs, ours)| theirs != ours);
                ensure!(theirs == *ours, "{different:?}");
            }
            Ok(format!("{} lines", theirs.lines().count()))
        });
        let upper = |at: usize| Mount::of(STACKS[at].snapshotter, &ids[at])?.upper();
        reporter.check(&step("on disk, what they wrote has the node's owners"), || {
            for at in 0..STACKS.len() {
                for (file, uid, gid) in self.on_disk {
                    expect_owner(&upper(at)?.join(file), *uid, *gid)?;
                }
            }
            Ok(String::new())
        });
        reporter.check(&step("on disk, what they wrote is the same"), || {
            same(&read(&upper(0)?, window)?, &read(&upper(1)?, window)?)?;
            same(&read(&upper(0)?, window)?, &read(&upper(2)?, window)?)
        });
        for id in &ids {
            ctr(&["container", "rm", id])?.success("ctr container rm")?;
        }
        Ok(())
    }
}

fn expect_owner(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let seen = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let seen = (seen.uid(), seen.gid());
    ensure!(seen == (uid, gid), "{}: {seen:?} instead of {:?}", path.display(), (uid, gid));
    Ok(())
}

fn layers_are_untouched(reporter: &mut Reporter, window: Window) {
    reporter.check("the image's own layers keep their owners", || {
        let [theirs, ours] =
            [REFERENCE, SNAPSHOTTER].map(|stack| Mounted::image(stack.snapshotter, Image::Odd));
        let [theirs, ours] = [theirs?, ours?];
        expect_owner(&ours.path().join("bin/busybox"), 0, 0)?;
        expect_owner(&ours.path().join("srv/odd/attributes/owner-1000"), 1000, 999)?;
        same(&read(theirs.path(), window)?, &read(ours.path(), window)?)
    });
}
