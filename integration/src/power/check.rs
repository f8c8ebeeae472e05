//! After a power cut: the image is mounted, so that its journal recovers, capsuled is started on it, and everything
//! is compared with what had been acknowledged.
//!
//! Runs in mount and process namespaces of its own ([`super`] makes them): mounts, loop devices and images (on a
//! tmpfs) end with it, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};

use super::attached::check::After;
use super::client::Client;
use super::cut::{self, Cut, Images};
use super::expect::{Expected, Kind, State};
use super::guest::{start_capsuled, wait_until_serving};
use super::journal::{Call, Labels};
use super::machine::{Filesystem, Work};
use super::record::Record;
use super::tree;
use crate::workspace::{output_of, remove_tree};

/// How long capsuled may take to remove what nobody needs.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many images of failures a worker keeps: the record, which is kept too, has all.
const IMAGES_KEPT: usize = 2;

/// What a worker has to do: every `workers`th cut of a campaign, from its own number on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// What the disk holds.
    pub xfs: bool,
    /// What was done.
    pub work: Work,
    /// The saved record.
    pub record: PathBuf,
    /// An empty folder of the worker's own.
    pub folder: PathBuf,
    /// Where images of failures are kept, unless failures are what is wanted.
    pub failures: Option<PathBuf>,
    /// capsuled is here.
    pub programs: PathBuf,
    /// Cuts of all workers.
    pub cuts: usize,
    /// Of the cuts' choice.
    pub seed: u64,
    /// All workers.
    pub workers: usize,
    /// This worker.
    pub number: usize,
}

/// What one cut showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// Number of the cut in the campaign.
    pub number: usize,
    /// The cut.
    pub cut: Cut,
    /// Calls acknowledged before it.
    pub acknowledged: usize,
    /// Commits among them.
    pub commits: usize,
    /// Calls under way.
    pub under_way: usize,
    /// Writes that no flush had followed.
    pub at_stake: usize,
    /// Those of them that the cut kept whole.
    pub kept: usize,
    /// Trees that were found and compared, file by file: committed snapshots, and what was written to attachments.
    pub compared: usize,
    /// What is wrong.
    pub failure: Option<String>,
}

/// Makes and checks this worker's cuts; one verdict per line on standard output.
pub fn run(task: &Task) -> Result<()> {
    let record = Record::load(&task.record)?;
    let cuts = cut::choose(&record, task.cuts, task.seed)?;
    mount("power", &task.folder, "tmpfs", MountFlags::empty(), None).context("mount a tmpfs")?;
    let mut images = Images::new(&record);
    let mut failures = 0;
    for (number, cut) in cuts.iter().enumerate().skip(task.number).step_by(task.workers) {
        let verdict = one(task, &record, &mut images, number, cut, failures < IMAGES_KEPT)?;
        failures += usize::from(verdict.failure.is_some());
        let line = serde_json::to_string(&verdict).context("encode a verdict")?;
        writeln!(std::io::stdout(), "{line}").context("report a verdict")?;
    }
    Ok(())
}

fn one(
    task: &Task,
    record: &Record,
    images: &mut Images<'_>,
    number: usize,
    cut: &Cut,
    keep: bool,
) -> Result<Verdict> {
    let expected = Expected::after(record.events.get(..cut.at).unwrap_or_default())?;
    let folder = task.folder.join(number.to_string());
    fs::create_dir_all(folder.join("mnt")).context("create a cut's folder")?;
    let image = folder.join("image");
    let (at_stake, kept) = images.make(cut, &image)?;
    // The image as it was cut: a check changes it.
    let pristine = folder.join("pristine");
    output_of(Command::new("cp").arg("--sparse=always").arg(&image).arg(&pristine))?;
    let checked = check(task, &folder, &image, &expected);
    let mut verdict = Verdict {
        number,
        cut: *cut,
        acknowledged: expected.acknowledged,
        commits: expected.commits,
        under_way: expected.under_way.len(),
        at_stake,
        kept,
        compared: 0,
        failure: None,
    };
    match checked {
        Ok(compared) => verdict.compared = compared,
        Err(error) => {
            verdict.failure = Some(format!("{error:#}"));
            if let Some(failures) = task.failures.as_deref().filter(|_| keep) {
                let name = format!("{}-{}-seed-{}-cut-{number}", filesystem(task), task.work, task.seed);
                keep_evidence(&folder, failures, &name)?;
            }
        }
    }
    remove_tree(&folder)?;
    Ok(verdict)
}

/// The image as it was cut, and what capsuled said.
fn keep_evidence(folder: &Path, failures: &Path, name: &str) -> Result<()> {
    for (from, extension) in [("pristine", "img"), ("capsuled.log", "log")] {
        let (from, to) = (folder.join(from), failures.join(format!("{name}.{extension}")));
        if from.exists() {
            output_of(Command::new("cp").arg("--sparse=always").arg(&from).arg(&to))?;
        }
    }
    Ok(())
}

fn filesystem(task: &Task) -> Filesystem {
    if task.xfs { Filesystem::Xfs } else { Filesystem::Ext4 }
}

/// Mounts the image, checks it, and unmounts it whatever came out.
fn check(task: &Task, folder: &Path, image: &Path, expected: &Expected) -> Result<usize> {
    let mount_point = folder.join("mnt");
    // Several images of one file system are mounted at once.
    let options = if task.xfs { "loop,nouuid" } else { "loop" };
    let mut command = Command::new("mount");
    command.args(["-t", filesystem(task).name(), "-o", options]).arg(image).arg(&mount_point);
    output_of(&mut command).context("the file system does not recover")?;
    let checked = check_mounted(task, folder, &mount_point.join("capsule"), expected);
    output_of(Command::new("umount").arg(&mount_point)).context("unmount the image")?;
    checked
}

fn check_mounted(task: &Task, folder: &Path, root: &Path, expected: &Expected) -> Result<usize> {
    let mut capsuled = Capsuled(start_capsuled(&task.programs, root, folder, None)?);
    let socket = folder.join("capsule/capsuled.sock");
    wait_until_serving(&mut capsuled.0, &socket).context("capsuled does not start")?;
    let mut client = Client::connect(&socket)?;
    if task.work == Work::Attachments {
        let programs = &task.programs;
        return After { programs, folder, root, socket: &socket }.check(&mut client, expected);
    }
    let found = client.list()?;
    expected.check(&found).context("snapshots")?;
    let snapshots = root.join("snapshots");
    let directories = settled(&snapshots, found.len())?;
    let compared = check_directories(&mut client, &found, expected)?;
    must(&mut client, &Call::Cleanup)?;
    ensure!(
        read_names(&snapshots)? == directories,
        "Cleanup removed directories of snapshots, or something made some"
    );
    go_on(&mut client, &found).context("going on after the cut")?;
    // Remove may leave directories to Cleanup.
    must(&mut client, &Call::Cleanup)?;
    ensure!(client.list()? == found, "work that was undone changed something");
    ensure!(read_names(&snapshots)? == directories, "work that was undone left directories");
    Ok(compared)
}

/// The directories, once there are as many as snapshots: what removed snapshots had is removed after the start.
fn settled(snapshots: &Path, count: usize) -> Result<BTreeSet<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let directories = read_names(snapshots)?;
        if directories.len() == count {
            return Ok(directories);
        }
        ensure!(Instant::now() < deadline, "{count} snapshots and, long after the start, {directories:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Killed when it is dropped: it is to hold the mount no longer.
struct Capsuled(Child);

impl Drop for Capsuled {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    entries
        .map(|entry| Ok(entry.context("read an entry")?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Every snapshot has its directory; every committed one has its content. How many those were.
fn check_directories(client: &mut Client, found: &State, expected: &Expected) -> Result<usize> {
    let mut compared = 0;
    for (key, snapshot) in found {
        match snapshot.kind {
            Kind::Committed => {
                let manifest =
                    expected.manifests.get(key).with_context(|| format!("{key} was never committed"))?;
                check_committed(client, key, manifest)
                    .with_context(|| format!("the committed snapshot {key}"))?;
                compared += 1;
            }
            Kind::Active => {
                check_active(client, key).with_context(|| format!("the active snapshot {key}"))?
            }
            Kind::View => drop(client.mounts(key)?),
        }
    }
    Ok(compared)
}

fn check_committed(client: &mut Client, name: &str, manifest: &[String]) -> Result<()> {
    let key = "check-view".to_owned();
    let (parent, labels) = (name.to_owned(), Labels::new());
    must(client, &Call::Create { key: key.clone(), parent, labels, view: true })?;
    let top = client.mounts(&key)?.top()?;
    tree::check(&top, manifest)?;
    // Names of one file count once.
    let links = manifest
        .iter()
        .filter(|line| line.contains(" link "))
        .map(|line| line.split(" link ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default());
    let groups: BTreeSet<&str> = links.clone().collect();
    let files = i64::try_from(manifest.len() - links.count() + groups.len())?;
    let inodes = client.inodes(name)?;
    ensure!(inodes == files, "its usage says {inodes} files, and it has {files}");
    must(client, &Call::Remove { key })
}

fn check_active(client: &mut Client, key: &str) -> Result<()> {
    let mounted = client.mounts(key)?;
    let upper = mounted.top()?;
    let work = upper.parent().context("a directory's parent")?.join("work");
    for (path, mode) in [(upper, 0o755), (work, 0o711)] {
        let found = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        ensure!(found.is_dir(), "{} is no directory", path.display());
        ensure!(found.mode() & 0o7777 == mode, "{} has mode {:o}", path.display(), found.mode());
    }
    Ok(())
}

/// One more layer on what was found, and all of it removed again.
fn go_on(client: &mut Client, found: &State) -> Result<()> {
    let parent = found.iter().rfind(|(_, snapshot)| snapshot.kind == Kind::Committed);
    let parent = parent.map(|(name, _)| name.clone()).unwrap_or_default();
    let (key, name, labels) = ("check-key".to_owned(), "check-name".to_owned(), Labels::new());
    must(client, &Call::Create { key: key.clone(), parent, labels: labels.clone(), view: false })?;
    let top = client.mounts(&key)?.top()?;
    fs::write(top.join("check"), "written after the cut").context("write into a new snapshot")?;
    let manifest = tree::manifest(&top)?;
    must(client, &Call::Commit { key, name: name.clone(), labels, manifest: vec![] })?;
    check_committed(client, &name, &manifest)?;
    must(client, &Call::Remove { key: name })
}

fn must(client: &mut Client, call: &Call) -> Result<()> {
    match client.call(call)? {
        None => Ok(()),
        Some(refusal) => bail!("{call:?} was refused: {refusal}"),
    }
}
