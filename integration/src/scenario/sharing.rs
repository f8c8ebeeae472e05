//! Files that are equal between versions are one file, whatever happens while they become it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{done, json, refused};
use super::ctr::{OURS, ctr};
use super::storage;
use super::versions::{diff, publish, same};
use super::world::{World, path, until};

const FILES: &str = "/var/tmp/sharing";
const SNAPSHOTS: &str = "/var/lib/capsule/snapshots";
const POOL: &str = "/var/lib/capsule/pool";
const CONFIG: &str = "/etc/capsule/config.toml";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// As much as ten versions may take of what one takes.
const LIMIT: f64 = 1.6;
/// How often capsuled is killed.
const KILLS: u64 = 12;

/// A tree of small and larger files.
fn tree(name: &str) -> Result<PathBuf> {
    let root = Path::new(FILES).join(name);
    for i in 0..400_usize {
        let file = root.join(format!("{}/{i}", i % 12));
        fs::create_dir_all(file.parent().context("a parent")?)?;
        fs::write(&file, format!("{name} {i}\n").repeat(i * 7 + 1)).context("write a file")?;
    }
    Ok(root)
}

/// Ten versions, published one after the other, are at most [`LIMIT`] times one, and go without a trace.
pub fn ten_versions() -> Result<String> {
    let (trees, _) = storage::versions(&tree("ten")?)?;
    let container = OURS.start("ten", &[], &SLEEP)?;
    let before = storage::pooled()?;
    let row = storage::ours("capsuled", &container, &trees, false)?;
    let [disk, cache] = row.ratios();
    ensure!(disk <= LIMIT && cache <= LIMIT, "{row:?}");
    // The first in the order of paths never changes, the second does in the second version.
    for (file, wanted) in [("0/0", 1), ("0/108", 2)] {
        let mut found = inodes(file)?;
        found.sort_unstable();
        let names = found.len();
        found.dedup();
        ensure!(names == storage::VERSIONS && found.len() == wanted, "{file}: {names} names of {found:?}");
    }
    storage::gone(&container, before)?;
    container.remove()?;
    Ok(format!("{disk:.2} times the disk, {cache:.2} times the page cache"))
}

/// Inodes of a file in all unpacked layers that have it.
fn inodes(file: &str) -> Result<Vec<u64>> {
    let layers = fs::read_dir(SNAPSHOTS).context("read the snapshots")?.filter_map(Result::ok);
    let found = layers.filter_map(|layer| fs::metadata(layer.path().join("fs").join(file)).ok());
    Ok(found.map(|found| found.ino()).collect())
}

/// Capsules share between each other and with images that are capsules, containers' root file systems with nobody.
pub fn only_capsules() -> Result<String> {
    let tree = tree("only")?;
    publish(&tree, "one", "1", &[])?;
    publish(&tree, "other", "1", &["--annotation", "a=b"])?;
    let more = Path::new(FILES).join("more");
    let copied = Command::new("cp").arg("-a").args([&tree, &more]).status().context("cp")?;
    ensure!(copied.success(), "cp: {copied}");
    fs::write(more.join("new"), "new")?;
    publish(&more, "more", "1", &[])?;
    same("one@1", "other@1")?;
    ensure!(diff("one@1", "more@1")? == ["A new".to_owned()].into(), "{:?}", diff("one@1", "more@1")?);
    let names = |file: &str| -> Result<Vec<u64>> {
        let layers = fs::read_dir(SNAPSHOTS).context("read the snapshots")?.filter_map(Result::ok);
        let found = layers.filter_map(|layer| fs::metadata(layer.path().join("fs").join(file)).ok());
        let mut links: Vec<u64> = found.map(|found| found.nlink()).collect();
        links.sort_unstable();
        Ok(links)
    };
    // Of two layers and the pool; `one` and `other` have one layer.
    ensure!(names("11/11")? == [3, 3], "{:?}", names("11/11")?);
    // Of the image for containers, and of the version that is made from it.
    let links = names("bin/busybox")?;
    ensure!(links.first() == Some(&1) && links.last().is_some_and(|n| *n > 1), "bin/busybox: {links:?}");
    Ok(format!("names of a file of three capsules: {:?}", names("11/11")?))
}

/// A version is taken away and published again while containerd collects what was taken away: each time it is whole.
pub fn published_again() -> Result<String> {
    const ROUNDS: usize = 20;
    let tree = Path::new(FILES).join("again");
    fs::create_dir_all(&tree).context("create a tree")?;
    fs::write(tree.join("file"), "again").context("write a file")?;
    for round in 0..ROUNDS {
        publish(&tree, "again", "1", &[])?;
        ctr(&["-n", "capsules", "image", "rm", "localhost/capsules/again:1"])?.success("remove")?;
        let collector = std::thread::spawn(storage::collect);
        publish(&tree, "again", "1", &[])?;
        collector.join().map_err(|_| anyhow::anyhow!("the collector's thread has panicked"))??;
        storage::collect()?;
        let content = ctr(&["-n", "capsules", "content", "ls", "-q"])?.success("list the content")?;
        let inspected = json(&["inspect", "again@1"])?;
        for digest in [&inspected["version"]["digest"], &inspected["layers"][0]["digest"]] {
            let digest = digest.as_str().context("a digest")?;
            ensure!(content.contains(digest), "round {round}: {digest} is gone");
        }
    }
    Ok(format!("{ROUNDS} times"))
}

/// Layers that are discarded once they are unpacked: such a version is attached as any other, also by daemons that have started
/// anew, and what needs the layers is refused by name.
pub fn discarded(world: &mut World) -> Result<String> {
    configure(world, "discard_unpacked_layers = false", "discard_unpacked_layers = true")?;
    let tree = tree("slim")?;
    publish(&tree, "slim", "1", &[])?;
    let layer = json(&["inspect", "slim@1"])?["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    let content = || ctr(&["-n", "capsules", "content", "ls", "-q"])?.success("list the content");
    storage::collect()?;
    ensure!(!content()?.contains(&layer), "{layer} is still there");
    world.restart_containerd()?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    ensure!(json(&["inspect", "slim@1"])?["version"]["complete"] == true, "incomplete");
    let container = OURS.start("slim", &[], &SLEEP)?;
    done(&["attach", "slim", "slim"])?;
    let read = container.sh("read", "cat /opt/t/11/11")?;
    ensure!(read == "slim 11\n".repeat(11 * 7 + 1), "{read:?}");
    container.remove()?;
    let path = tree.to_str().context("a path")?;
    let build = ["build", path, "--name", "slim", "--version", "2", "--base", "slim@1"];
    let line = refused(&build, &["slim@1", &layer, "publish or pull it again"])?;
    let again = publish(&tree, "slim", "1", &[])?;
    ensure!(again["existed"] == true, "{again}");
    configure(world, "discard_unpacked_layers = true", "discard_unpacked_layers = false")?;
    // Published again without it, it has its layer back.
    publish(&tree, "slim", "1", &[])?;
    storage::collect()?;
    ensure!(content()?.contains(&layer), "{layer} is gone");
    done(&build)?;
    same("slim@1", "slim@2")?;
    Ok(line)
}

/// Changes a line of capsuled's configuration, and starts it anew.
fn configure(world: &mut World, line: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(CONFIG).with_context(|| format!("read {CONFIG}"))?;
    ensure!(text.lines().any(|other| other == line), "{CONFIG} has no line {line:?}");
    fs::write(CONFIG, text.replace(line, to)).with_context(|| format!("write {CONFIG}"))?;
    world.kill_capsuled()?;
    world.restart_capsuled()
}

/// capsuled is killed while it publishes, at all moments: afterwards it publishes, what it publishes is whole, and nothing
/// half-made stays.
pub fn killed(world: &mut World) -> Result<String> {
    let tree = tree("killed")?;
    publish(&tree, "kill", "0", &[])?;
    let mut ended = 0;
    for round in 1..=KILLS {
        fs::write(tree.join("round"), round.to_string())?;
        let version = round.to_string();
        let text = tree.to_str().context("a path")?;
        let mut build = Command::new("capsulectl")
            .args(["build", text, "--name", "kill", "--version", &version])
            .env("PATH", path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start capsulectl")?;
        std::thread::sleep(Duration::from_millis(10 + 30 * round));
        world.kill_capsuled()?;
        if build.wait().context("wait for capsulectl")?.success() {
            ended += 1;
        }
        world.restart_capsuled()?;
        done(&["build", text, "--name", "kill", "--version", &version])?;
        let found = diff("kill@0", &format!("kill@{version}"))?;
        ensure!(found == ["A round".to_owned()].into(), "round {round}: {found:?}");
    }
    ensure!(ended < KILLS, "no publish was interrupted");
    // Nothing of the half-made is left once capsuled has started anew and the collector has been through.
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    until("nothing half-made is in the pool", || {
        storage::collect()?;
        std::thread::sleep(Duration::from_secs(1));
        for entry in fs::read_dir(POOL).context("read the pool")? {
            let entry = entry.context("read the pool")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let links = entry.metadata().map(|file| file.nlink()).unwrap_or_default();
            if links < 2 || name.len() != 64 {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let versions = json(&["ls", "kill"])?["versions"].as_array().map_or(0, Vec::len);
    ensure!(versions as u64 == KILLS + 1, "{versions} versions");
    Ok(format!("{ended} of {KILLS} ended before they were killed"))
}
