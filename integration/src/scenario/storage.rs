//! What many versions of one tree take on the disk and in the page cache, here and on containerd's overlayfs.

use std::collections::HashSet;
use std::fs;
use std::io::{IoSliceMut, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::ReadWriteFlags;
use serde::Serialize;
use serde_json::json;

use super::capsulectl::{done, json as answer};
use super::ctr::{Container, OURS, REFERENCE, ctr, run as run_program};
use super::snapshots::Mounted;
use super::world::{World, send_logs};
use crate::event::Reporter;
use crate::images::Image;

/// The benchmark.
pub const FULL: &str = "bench-storage";
/// How many versions.
pub const VERSIONS: usize = 10;
/// One in so many files changes from each version to the next.
const CHANGED: usize = 20;

/// Of the machines that this runs on.
const PAGE: u64 = 4096;

const TREES: &str = "/var/tmp/storage";
const CONTENT: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs";
const OURS_AT: &str = "/var/lib/capsule";
const THEIRS_AT: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];

/// What is stored, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Stored {
    /// Blocks of the unpacked layers.
    pub snapshots: u64,
    /// Blocks of containerd's content store.
    pub content: u64,
    /// Resident pages of the files of the unpacked layers, when all has been read.
    pub cache: u64,
}

impl Stored {
    fn since(self, before: Self) -> Self {
        Self {
            snapshots: self.snapshots.saturating_sub(before.snapshots),
            content: self.content.saturating_sub(before.content),
            cache: self.cache,
        }
    }
}

/// One version and all of them.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Who stores them, and how.
    pub subject: &'static str,
    /// After the first.
    pub one: Stored,
    /// After the last.
    pub all: Stored,
    /// Mean time to publish or unpack one, in milliseconds.
    pub ms: f64,
}

impl Row {
    /// How often one's space all of them take: unpacked, and in the page cache.
    pub fn ratios(&self) -> [f64; 2] {
        let ratio = |all: u64, one: u64| all as f64 / one as f64;
        [ratio(self.all.snapshots, self.one.snapshots), ratio(self.all.cache, self.one.cache)]
    }
}

/// The benchmark: Debian's Python library.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let outcome = bench(reporter);
    if outcome.is_err() {
        send_logs(reporter);
    }
    outcome
}

fn bench(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    let trees = reporter.must("versions of Debian's Python library", || {
        OURS.import()?;
        let (trees, files) = versions(&python()?)?;
        Ok((trees, format!("{files} files, {VERSIONS} versions, 1 file in {CHANGED} changes in each")))
    })?;
    let container = OURS.start("reader", &[], &SLEEP)?;
    let mut rows = Vec::new();
    for (subject, on_base) in
        [("capsuled, whole versions", false), ("capsuled, each on the one before", true)]
    {
        rows.push(reporter.must(subject, || {
            let row = ours(subject, &container, &trees, on_base)?;
            Ok((row.clone(), sentence(&row)))
        })?);
        // On the same layers, before they go.
        let subject = if on_base { "overlayfs, each on the one before" } else { "overlayfs, whole versions" };
        rows.push(reporter.must(subject, || {
            let row = theirs(subject, rows.last().map_or(0, |row: &Row| row.all.content))?;
            Ok((row.clone(), sentence(&row)))
        })?);
        reporter.must(&format!("what {subject} stored is gone"), || Ok(((), gone(&container, 0)?)))?;
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let containerd = run_program("containerd", &["--version"], b"")?.success("containerd --version")?;
    reporter.data("rows", json!(rows));
    reporter.data("machine", json!({"kernel": kernel, "containerd": containerd.trim()}));
    container.remove()?;
    world.stop()
}

fn sentence(row: &Row) -> String {
    let [disk, cache] = row.ratios();
    format!("{disk:.2} times the disk and {cache:.2} times the page cache of one")
}

/// The standard library in the image of Debian's python3, copied out.
fn python() -> Result<PathBuf> {
    REFERENCE.import_image(Image::Python)?;
    let mounted = Mounted::image(REFERENCE.snapshotter, Image::Python)?;
    let libraries = mounted.path().join("usr/lib");
    let found = fs::read_dir(&libraries)
        .with_context(|| format!("read {}", libraries.display()))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("python3.")));
    let library = found.context("the image has no Python library")?.path();
    let to = Path::new(TREES).join("python");
    copy(&library, &to)?;
    mounted.unmount()?;
    ctr(&["image", "rm", "--sync", Image::Python.name()])?.success("remove the image")?;
    Ok(to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a parent")?)?;
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().context("start cp")?;
    ensure!(status.success(), "cp -a {} {}: {status}", from.display(), to.display());
    Ok(())
}

/// Versions of a tree: in each, other files than in the one before have changed. How many files there are, beside it.
pub fn versions(tree: &Path) -> Result<(Vec<PathBuf>, usize)> {
    let mut trees = vec![tree.to_owned()];
    let mut count = 0;
    for version in 1..VERSIONS {
        let to = tree.with_extension(version.to_string());
        copy(&trees[version - 1], &to)?;
        let mut files = Vec::new();
        visit(&to, &mut |path, found| {
            if found.is_file() {
                files.push(path.to_owned());
            }
        })?;
        files.sort();
        count = files.len();
        for file in files.iter().skip(version).step_by(CHANGED) {
            let changed = fs::File::options().append(true).open(file);
            changed
                .and_then(|mut f| writeln!(f, "# changed in version {version}"))
                .with_context(|| format!("change {}", file.display()))?;
        }
        trees.push(to);
    }
    Ok((trees, count))
}

/// Publishes the versions, attaches each to the container, and reads all of them there.
pub fn ours(subject: &'static str, container: &Container, trees: &[PathBuf], on_base: bool) -> Result<Row> {
    let before = stored(OURS_AT)?;
    let started = Instant::now();
    let mut publishing = Duration::ZERO;
    let mut one = Stored::default();
    for (i, tree) in trees.iter().enumerate() {
        let (version, base) = ((i + 1).to_string(), format!("py@{i}"));
        let tree = tree.to_str().context("a path")?;
        let mut args = vec!["build", tree, "--name", "py", "--version", &version];
        if on_base && i > 0 {
            args.extend(["--base", &base]);
        }
        let began = Instant::now();
        done(&args)?;
        publishing += began.elapsed();
        done(&["attach", &container.id, &format!("py@{version}"), "--target", &format!("/opt/{version}")])?;
        let read = format!("find /opt/{version} -type f -exec cat {{}} + | wc -c");
        let read = container.sh(&format!("read-{i}-{on_base}-{}", started.elapsed().as_nanos()), &read)?;
        ensure!(read.trim().parse::<u64>().is_ok_and(|bytes| bytes > 1000), "read {read:?} bytes");
        if i == 0 {
            one = stored(OURS_AT)?.since(before);
            one.cache = resident(&layers(OURS_AT)?)?;
        }
    }
    let mut all = stored(OURS_AT)?.since(before);
    all.cache = resident(&layers(OURS_AT)?)?;
    Ok(Row { subject, one, all, ms: publishing.as_secs_f64() * 1e3 / trees.len() as f64 })
}

/// Unpacks the versions that are published with containerd's overlayfs, mounts each, and reads all of them. `content`: what
/// they take in the content store, which is known since they were published.
fn theirs(subject: &'static str, content: u64) -> Result<Row> {
    let before = stored(THEIRS_AT)?;
    let (mut one, mut unpacking) = (Stored::default(), Duration::ZERO);
    for i in 1..=VERSIONS {
        let found = answer(&["inspect", &format!("py@{i}")])?;
        let digest = found["version"]["digest"].as_str().context("a digest")?.to_owned();
        let image = found["version"]["image"].as_str().context("an image")?.to_owned();
        let began = Instant::now();
        ctr(&["-n", "capsules", "snapshots", "--snapshotter", "overlayfs", "unpack", &digest])?
            .success("unpack")?;
        unpacking += began.elapsed();
        let at = format!("{TREES}/mounted");
        fs::create_dir_all(&at)?;
        let mount = ["-n", "capsules", "images", "mount", "--snapshotter", "overlayfs", &image, &at];
        ctr(&mount)?.success("mount")?;
        let read = format!("find {at} -type f -exec cat {{}} + | wc -c");
        run_program("/bin/sh", &["-c", &read], b"")?.success("read")?;
        ctr(&["-n", "capsules", "images", "unmount", "--snapshotter", "overlayfs", "--rm", &at])?
            .success("unmount")?;
        if i == 1 {
            one = stored(THEIRS_AT)?.since(before);
            one.cache = resident(&layers(THEIRS_AT)?)?;
        }
    }
    let mut all = stored(THEIRS_AT)?.since(before);
    all.cache = resident(&layers(THEIRS_AT)?)?;
    all.content = content;
    Ok(Row { subject, one, all, ms: unpacking.as_secs_f64() * 1e3 / VERSIONS as f64 })
}

/// Lets containerd collect what nobody refers to, and waits until it has: the end of a lease does. (`ctr content prune
/// references` would take references to layers away first.)
pub fn collect() -> Result<()> {
    ctr(&["-n", "capsules", "leases", "create", "--id", "collect"])?.success("create a lease")?;
    ctr(&["-n", "capsules", "leases", "delete", "--sync", "collect"])?.success("delete the lease").map(drop)
}

/// How many files there are in the pool of shared files.
pub fn pooled() -> Result<usize> {
    Ok(fs::read_dir(Path::new(OURS_AT).join("pool")).context("read the pool")?.count())
}

/// Takes all versions away, and waits until the pool of shared files has no more than `before`.
pub fn gone(container: &Container, before: usize) -> Result<String> {
    for attached in answer(&["ps", &container.id])?["attachments"].as_array().context("attachments")? {
        let (capsule, target) = (attached["capsule"].as_str(), attached["target"].as_str());
        let (capsule, target) = (capsule.context("a capsule")?, target.context("a target")?);
        done(&["detach", &container.id, capsule, "--target", target])?;
    }
    for version in answer(&["ls", "py"])?["versions"].as_array().context("versions")? {
        let image = version["image"].as_str().context("an image")?;
        ctr(&["-n", "capsules", "image", "rm", "--sync", image])?.success("remove a version")?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left = pooled()?;
        if left <= before {
            return Ok(format!("{left} files are left in the pool"));
        }
        ensure!(
            Instant::now() < deadline,
            "{left} files are left in the pool, and {before} were there before"
        );
        std::thread::sleep(Duration::from_millis(100));
        collect()?; // what the last removal left to it
    }
}

/// Calls `each` with everything below a directory, and with itself. No link is followed.
fn visit(at: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) -> Result<()> {
    let found = match fs::symlink_metadata(at) {
        Ok(found) => found,
        // The collector removes what this walks over.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("stat {}", at.display())),
    };
    each(at, &found);
    if found.is_dir() {
        for entry in fs::read_dir(at).with_context(|| format!("read {}", at.display()))? {
            visit(&entry.context("read a directory")?.path(), each)?;
        }
    }
    Ok(())
}

/// Blocks of everything below a directory, in bytes; a file of several names counts once.
fn blocks(at: &str) -> Result<u64> {
    let (mut seen, mut sum) = (HashSet::new(), 0);
    visit(Path::new(at), &mut |_, found| {
        if seen.insert((found.dev(), found.ino())) {
            sum += found.blocks() * 512;
        }
    })?;
    Ok(sum)
}

fn stored(snapshots: &str) -> Result<Stored> {
    Ok(Stored { snapshots: blocks(snapshots)?, content: blocks(CONTENT)?, cache: 0 })
}

/// The files of unpacked layers that are Python's or text: not those of the container that reads them.
fn layers(at: &str) -> Result<Vec<PathBuf>> {
    let (mut seen, mut files) = (HashSet::new(), Vec::new());
    let at = Path::new(at);
    let at = if at.join("snapshots").exists() { at.join("snapshots") } else { at.to_owned() };
    visit(&at, &mut |path, found| {
        if found.is_file() && found.size() > 0 && seen.insert((found.dev(), found.ino())) {
            files.push(path.to_owned());
        }
    })?;
    files.retain(|path| !path.components().any(|part| part.as_os_str() == "bin"));
    Ok(files)
}

/// Resident pages of files, in bytes: those that can be read without waiting for a disk (preadv2(2), `RWF_NOWAIT`).
fn resident(files: &[PathBuf]) -> Result<u64> {
    let (mut sum, mut byte) = (0, [0]);
    for path in files {
        let file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        let size = file.metadata()?.size();
        for offset in (0..size).step_by(PAGE as usize) {
            let mut into = [IoSliceMut::new(&mut byte)];
            if rustix::io::preadv2(&file, &mut into, offset, ReadWriteFlags::NOWAIT).is_ok() {
                sum += PAGE;
            }
        }
    }
    Ok(sum)
}
