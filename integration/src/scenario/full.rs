//! Disks that are full: each call says so in one line, changes nothing, and works as soon as there is room.
//!
//! containerd's and capsuled's directories each have a small disk of their own, as nodes may have them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::capsule::v1::BuildHeader;

use super::api::Api;
use super::capsulectl::{Seen, capsulectl, done, json, ps, refused};
use super::ctr::{Container, OURS, ctr, run as program};
use super::registry::store::{Held, held, same};
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Where trees and the disks' files are.
const FILES: &str = "/tmp/full";
/// A file that a disk with [`LITTLE`] room does not hold.
const LARGE: usize = 16 << 20;
/// What is left of a disk where a call is to fail in the middle.
const LITTLE: u64 = 4 << 20;
const TOLD: &str = "the disk is full; make room and repeat it";

/// A small file system of its own.
#[derive(Debug)]
struct Disk {
    at: &'static str,
}

/// What holds layers, and what containerd knows of them.
const CONTAINERDS: Disk = Disk { at: "/var/lib/containerd" };
/// What holds snapshots, and what capsuled knows of them.
const OWN: Disk = Disk { at: "/var/lib/capsule" };

impl Disk {
    fn mount(&self, size: u64) -> Result<()> {
        let name = Path::new(self.at).file_name().context("a name")?;
        let image = Path::new(FILES).join(name).with_extension("img");
        let file = File::create(&image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(size).context("make it large")?;
        let image = image.to_str().context("a path")?;
        // -m 0: no blocks that only root may use. nodelalloc: none that are promised to a file and given back when it does not get them all.
        program("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", image], b"")?.success("mke2fs")?;
        fs::create_dir_all(self.at).with_context(|| format!("create {}", self.at))?;
        program("mount", &["-o", "loop,nodelalloc", image, self.at], b"")?.success("mount").map(drop)
    }

    fn ballast(&self) -> PathBuf {
        Path::new(self.at).join("ballast")
    }

    /// Takes all the room but `left` bytes; with 0, to the last block.
    fn fill(&self, left: u64) -> Result<()> {
        let path = self.ballast();
        let mut file = File::options().create(true).append(true).open(&path).context("open ballast")?;
        let length = |file: &File| Ok::<_, anyhow::Error>(file.metadata().context("look at ballast")?.len());
        // What is removed in the background makes room a little later.
        let mut unchanged = 0;
        while unchanged < 3 {
            let before = length(&file)?;
            for size in [1 << 20, 4096, 1] {
                let block = vec![0x5a; size];
                while file.write_all(&block).is_ok() {}
                file.sync_all().ok();
            }
            sleep(Duration::from_millis(150));
            unchanged = if length(&file)? == before { unchanged + 1 } else { 0 };
        }
        // A directory is one block, where a file that grows may need more than are left.
        let directories = self.ballast().with_extension("d");
        fs::create_dir(&directories).ok();
        let _made = (0..4096).take_while(|n| fs::create_dir(directories.join(n.to_string())).is_ok()).count();
        if left > 0 {
            file.set_len(length(&file)?.saturating_sub(left)).context("leave a little")?;
        }
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        // Not there, where there was no room for it.
        let _directories = fs::remove_dir_all(self.ballast().with_extension("d"));
        fs::remove_file(self.ballast()).context("remove ballast")
    }

    /// Runs something on the full disk, and makes room however that ends.
    fn while_full<T>(&self, left: u64, call: impl FnOnce() -> Result<T>) -> Result<T> {
        collect()?;
        let called = self.fill(left).and_then(|()| call());
        self.make_room()?;
        called
    }
}

/// Has containerd collect what failed calls have left to it: that would make room at any later moment.
fn collect() -> Result<()> {
    ctr(&["leases", "create", "--id", "collect"])?.success("ctr leases create")?;
    ctr(&["leases", "rm", "--sync", "collect"])?.success("ctr leases rm").map(drop)
}

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    fs::create_dir_all(FILES).with_context(|| format!("create {FILES}"))?;
    CONTAINERDS.mount(192 << 20)?;
    OWN.mount(192 << 20)?;
    let world = World::start(true)?;
    reporter.must("an image and a capsule are there", || {
        OURS.import()?;
        tree("tool@1", 0)?;
        build("tool@1", &[])?;
        Ok(((), String::new()))
    })?;
    let shop = OURS.start("shop", &[], &SLEEP)?;
    reporter.check("a build that containerd has no room for, in the middle and from the start", || {
        building(&shop, "large@1", &[], &CONTAINERDS)
    });
    reporter.check("a build that there is no room to unpack", || building(&shop, "large@2", &[], &OWN));
    reporter.check("a build on a base", || {
        let base = ["--base", "tool@1"];
        let first = building(&shop, "tool@2", &base, &CONTAINERDS)?;
        Ok(format!("{first} | {}", building(&shop, "tool@3", &base, &OWN)?))
    });
    reporter.check("a version that there is no room to unpack is not attached", || unpacking(&shop));
    reporter.check("what was written is not published, and stays", || committing(&shop));
    reporter.check("a target directory that there is no room for", || targeting(&shop));
    reporter.check("an upper directory that there is no room for", || upper(&shop));
    reporter.check("an upgrade that there is no room to unpack", || upgrading(&shop));
    reporter.check("an upgrade that brings what there is no room for moves nothing", || moving(&shop));
    reporter.check("an attachment, an upgrade and a rollback without room for their records", || {
        recording(&shop)
    });
    reporter.check("the API has a code for it", || coded(&shop));
    shop.remove()?;
    world.stop()
}

/// All that a call that fails must leave as it was.
#[derive(Debug, PartialEq)]
struct Before {
    versions: serde_json::Value,
    attachments: Vec<Seen>,
    container: Vec<String>,
    node: BTreeSet<String>,
    uppers: serde_json::Value,
    layers: BTreeSet<PathBuf>,
}

impl Before {
    fn read(container: &Container) -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let layers = fs::read_dir("/var/lib/capsule/snapshots").context("read the snapshots")?;
        Ok(Self {
            versions: json(&["ls"])?,
            attachments: ps()?,
            container: container.mounts()?,
            node: table.lines().map(str::to_owned).collect(),
            uppers: json(&["uppers"])?,
            layers: layers.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        })
    }
}

impl Before {
    /// With what each mount of the container is, and not which one it is.
    fn anew(mut self) -> Self {
        for line in &mut self.container {
            // Mount, parent, and device of its own (proc_pid_mountinfo(5)).
            *line = line.split(' ').skip(3).collect::<Vec<_>>().join(" ");
        }
        self.container.sort();
        self
    }

    /// Whether all is as it was. A directory that an earlier call has left goes at any later moment.
    fn is_as(&self, now: &Self) -> bool {
        self.versions == now.versions
            && self.attachments == now.attachments
            && self.uppers == now.uppers
            && self.container == now.container
            && self.node == now.node
            && now.layers.is_subset(&self.layers)
    }

    /// The lines of the one that the other has not.
    fn differs(&self, now: &Self) -> String {
        let (before, now) = (format!("{self:#?}"), format!("{now:#?}"));
        let only = |these: &str, others: &str| {
            let lines = these.lines().filter(|line| !others.lines().any(|other| other == *line));
            lines.map(str::trim).collect::<Vec<_>>().join(" ")
        };
        format!("gone: {}; new: {}", only(&before, &now), only(&now, &before))
    }
}

/// Runs something that must fail, after which all is as it was: looked at while the disk is still full.
fn leaves_nothing<T>(container: &Container, fails: impl FnOnce() -> Result<T>) -> Result<T> {
    let (before, kept) = (Before::read(container)?, held()?);
    let told = fails()?;
    same_as(container, &before, &kept)?;
    Ok(told)
}

fn same_as(container: &Container, before: &Before, kept: &Held) -> Result<()> {
    same(kept)?;
    // Directories go when containerd has collected.
    settles(container, before)
}

fn settles(container: &Container, before: &Before) -> Result<()> {
    let now = || Before::read(container);
    let settled = until("all as it was", || Ok(now().is_ok_and(|now| before.is_as(&now))));
    settled.with_context(|| now().map_or_else(|error| format!("{error:#}"), |now| before.differs(&now)))
}

/// A call that must say that the disk is full, with all of `words`, and leave nothing.
fn told(container: &Container, args: &[&str], words: &[&str]) -> Result<String> {
    leaves_nothing(container, || refused(args, &[&[TOLD], words].concat()))
}

/// A tree with a file of noise of `size` bytes, in `FILES/LABEL`.
fn tree(label: &str, size: usize) -> Result<PathBuf> {
    let tree = Path::new(FILES).join(label);
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    fs::write(tree.join("version"), label).context("write a file")?;
    // Not the same of any two.
    let mut seed = label.bytes().fold(1_u64, |seed, byte| seed.wrapping_mul(257).wrapping_add(byte.into()));
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    });
    fs::write(tree.join("noise"), noise.take(size).collect::<Vec<u8>>()).context("write a large file")?;
    Ok(tree)
}

fn build(label: &str, more: &[&str]) -> Result<String> {
    let (name, version) = label.split_once('@').context("NAME@VERSION")?;
    let (tree, target) = (format!("{FILES}/{label}"), format!("/opt/{name}"));
    let args = ["build", &tree, "--name", name, "--version", version, "--target", &target];
    done(&[&args[..], more].concat())
}

/// A build on the full disk, with a little room and with none; then with room.
fn building(shop: &Container, label: &str, more: &[&str], disk: &Disk) -> Result<String> {
    let (name, version) = label.split_once('@').context("NAME@VERSION")?;
    tree(label, LARGE)?;
    let tree = format!("{FILES}/{label}");
    let args = [&["build", &tree, "--name", name, "--version", version], more].concat();
    let cannot = format!("cannot publish {label}: ");
    let line = disk.while_full(LITTLE, || told(shop, &args, &[&cannot]))?;
    disk.while_full(0, || told(shop, &args, &[&cannot]))?;
    build(label, more)?;
    Ok(line)
}

fn unpacking(shop: &Container) -> Result<String> {
    forget("large@1")?;
    let attach = ["attach", "shop", "large@1"];
    let cannot = ["cannot unpack large@1: "];
    let line = OWN.while_full(LITTLE, || told(shop, &attach, &cannot))?;
    OWN.while_full(0, || told(shop, &attach, &cannot))?;
    done(&attach)?;
    ensure!(shop.sh("read", "cat /opt/large/version")? == "large@1", "its content");
    done(&["detach", "shop", "large"])?;
    Ok(line)
}

fn committing(shop: &Container) -> Result<String> {
    done(&["attach", "shop", "tool@1", "--writable"])?;
    shop.sh("write", "head -c 16777216 /dev/urandom > /opt/tool/mine && sync")?;
    let commit = ["commit", "shop", "tool", "--version", "mine"];
    let cannot = ["cannot publish tool@mine: "];
    let line = CONTAINERDS.while_full(LITTLE, || told(shop, &commit, &cannot))?;
    CONTAINERDS.while_full(0, || told(shop, &commit, &cannot))?;
    OWN.while_full(LITTLE, || told(shop, &commit, &cannot))?;
    done(&commit)?;
    done(&["detach", "shop", "tool", "--drop"])?;
    done(&["attach", "shop", "tool@mine"])?;
    shop.sh("read", "test $(wc -c < /opt/tool/mine) = 16777216")?;
    done(&["detach", "shop", "tool"])?;
    Ok(line)
}

/// The directory would lie in the container's own upper directory.
fn targeting(shop: &Container) -> Result<String> {
    let target = "/made/by/an/attach";
    let attach = ["attach", "shop", "tool@1", "--target", target];
    let refused = || {
        OWN.while_full(0, || {
            let cannot = ["cannot attach tool@1 at /made/by/an/attach in default/shop: "];
            let line = told(shop, &attach, &cannot)?;
            shop.sh("look", "test ! -e /made")?;
            Ok(line)
        })
    };
    // What drains, as what was dropped above, goes some seconds after its last user, and makes room.
    let again = |_| {
        sleep(Duration::from_secs(3));
        done(&["detach", "shop", "tool", "--target", target]).and_then(|_| refused())
    };
    let line = refused().or_else(again).or_else(again)?;
    done(&attach)?;
    done(&["detach", "shop", "tool", "--target", target])?;
    Ok(line)
}

fn upper(shop: &Container) -> Result<String> {
    let cannot = ["tool@1", "default/shop"];
    let (mine, kept) = (
        ["attach", "shop", "tool@1", "--writable"],
        ["attach", "shop", "tool@1", "--persist", "kept", "--size", "8MiB"],
    );
    let line = OWN.while_full(0, || {
        told(shop, &mine, &cannot)?;
        told(shop, &kept, &cannot)
    })?;
    for attach in [&mine[..], &kept] {
        done(attach)?;
        let drop: &[&str] = if attach.contains(&"--writable") { &["--drop"] } else { &[] };
        done(&[&["detach", "shop", "tool"], drop].concat())?;
    }
    done(&["uppers", "rm", "kept"])?;
    Ok(line)
}

fn upgrading(shop: &Container) -> Result<String> {
    for label in ["grows@1", "grows@2"] {
        tree(label, if label == "grows@2" { LARGE } else { 0 })?;
        build(label, &[])?;
    }
    forget("grows@2")?;
    done(&["attach", "shop", "grows@1"])?;
    let upgrade = ["upgrade", "shop", "grows"];
    let line = OWN.while_full(LITTLE, || told(shop, &upgrade, &["grows@2", "shop"]))?;
    OWN.while_full(0, || told(shop, &upgrade, &["grows@2", "shop"]))?;
    done(&upgrade)?;
    ensure!(shop.sh("read", "cat /opt/grows/version")? == "grows@2", "its content");
    // Nothing needs room to go back.
    OWN.while_full(0, || done(&["rollback", "shop", "grows"]))?;
    ensure!(shop.sh("read", "cat /opt/grows/version")? == "grows@1", "what it had");
    done(&["detach", "shop", "grows"])?;
    Ok(line)
}

/// What a new version requires would be attached at a directory that is not there.
fn moving(shop: &Container) -> Result<String> {
    for (label, more) in [("mover@1", &[][..]), ("extra@1", &[]), ("mover@2", &["--require", "extra"])] {
        tree(label, 0)?;
        build(label, more)?;
    }
    done(&["attach", "shop", "mover@1"])?;
    let upgrade = ["upgrade", "shop", "mover"];
    let line = OWN.while_full(0, || {
        let line = told(shop, &upgrade, &["mover", "extra@1 at /opt/extra", "default/shop"])?;
        shop.sh("look", "test ! -e /opt/extra && test $(cat /opt/mover/version) = mover@1")?;
        Ok(line)
    })?;
    done(&upgrade)?;
    done(&["rollback", "shop", "mover"])?;
    done(&["detach", "shop", "mover"])?;
    done(&["detach", "shop", "extra"])?;
    Ok(line)
}

/// A version as a pull without unpacking leaves it.
fn forget(label: &str) -> Result<()> {
    let inspected = json(&["inspect", label])?;
    let layer = &inspected["layers"][0];
    let chain = layer["diff_id"].as_str().or(layer["digest"].as_str()).context("a layer")?;
    let snapshots = || Ok::<_, anyhow::Error>(fs::read_dir("/var/lib/capsule/snapshots")?.count());
    let before = snapshots()?;
    ctr(&["-n", "capsules", "snapshots", "--snapshotter", "capsule", "rm", chain])?.success("ctr rm")?;
    // The snapshotter is told by containerd's garbage collector, in its own time.
    until("its snapshot is gone", || Ok(snapshots()? < before))
}

/// On a disk without room a call is done, or says so and changes nothing.
fn done_or_told(shop: &Container, args: &[&str], words: &[&str]) -> Result<bool> {
    let before = Before::read(shop)?.anew();
    let output = capsulectl(args)?;
    if output.code == 0 {
        return Ok(true);
    }
    let line = output.err.trim();
    ensure!(output.code == 1 && line.lines().count() == 1, "{output:?}");
    ensure!([&[TOLD], words].concat().iter().all(|word| line.contains(word)), "{line}");
    // A store that has failed is opened again, and a version that was moved back is mounted anew.
    let settled =
        until("all as it was", || Ok(Before::read(shop).is_ok_and(|now| before.is_as(&now.anew()))));
    settled.with_context(|| {
        let now = Before::read(shop).map(|now| before.differs(&now.anew()));
        format!("{line}: {}", now.unwrap_or_else(|error| format!("{error:#}")))
    })?;
    Ok(false)
}

/// Records have what the store has grown to, which takes some; then there is none left.
fn recording(shop: &Container) -> Result<String> {
    const MANY: usize = 1000;
    // Long records, so that a few of them do.
    let many = format!("/many/{}", vec!["d".repeat(200); 12].join("/"));
    shop.sh("make", &format!("mkdir -p {many} && cd {many} && mkdir $(seq 1 {MANY})"))?;
    for label in ["moved@1", "moved@2"] {
        tree(label, 0)?;
        build(label, &[])?;
    }
    done(&["attach", "shop", "moved@1"])?;
    let upgrade = ["upgrade", "shop", "moved"];
    let rollback = ["rollback", "shop", "moved"];
    let (mut made, mut refused, mut moves) = (0, 0, [0; 2]);
    OWN.while_full(0, || {
        for n in 1..=MANY {
            let target = format!("{many}/{n}");
            let attach = ["attach", "shop", "tool@1", "--target", &target];
            if done_or_told(shop, &attach, &["cannot attach tool@1 at ", &target, " in default/shop: "])? {
                made = n;
                continue;
            }
            refused = n;
            break;
        }
        ensure!(refused > 0, "a full disk takes {MANY} records");
        // A record takes the place of another here, and so there may be room, for a while.
        for _ in 0..20 {
            if !done_or_told(shop, &upgrade, &["moved@", "/opt/moved", "default/shop"])? {
                break;
            }
            moves[0] += 1;
            if !done_or_told(shop, &rollback, &["moved@", "/opt/moved", "default/shop"])? {
                break;
            }
            moves[1] += 1;
        }
        Ok(())
    })?;
    until("its store is there again", || Ok(json(&["ps"]).is_ok()))?;
    let next = if moves[0] == moves[1] { [&upgrade, &rollback] } else { [&rollback, &upgrade] };
    for call in next {
        done(call)?;
    }
    let version = if moves[0] == moves[1] { "moved@1" } else { "moved@2" };
    ensure!(shop.sh("read", "cat /opt/moved/version")? == version, "its content");
    let target = format!("{many}/{}", made + 1);
    done(&["attach", "shop", "tool@1", "--target", &target])?;
    Ok(format!("after {made} attachments, {} upgrades and {} rollbacks", moves[0], moves[1]))
}

fn coded(shop: &Container) -> Result<String> {
    let mut api = Api::connect()?;
    let header = BuildHeader { name: "coded".to_owned(), version: "1".to_owned(), ..Default::default() };
    let build = |api: &mut Api| api.build(header.clone(), vec![0; 1024]);
    let status = CONTAINERDS.while_full(0, || leaves_nothing(shop, || Ok(build(&mut api))))?;
    let Err(status) = status else { bail!("a full disk takes a version") };
    ensure!(status.code() == tonic::Code::ResourceExhausted, "{status:?}");
    build(&mut api).context("with room")?;
    Ok(status.message().to_owned())
}
