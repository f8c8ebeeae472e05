//! What containers leave on a node: nothing, when they are gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::capsulectl::json;
use super::ctr::ctr;
use super::world::within;

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "capsule"];
/// Folders with one entry for each container, below which are those of a containerd namespace: containerd's, runc's and ours.
const FOLDERS: [&str; 4] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/containerd/runc",
    "/run/capsule/tasks",
    "/run/capsule/kept",
];
/// containerd's collection, and what waits for it, take their time.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a client has its containers.
#[derive(Debug)]
pub struct Places {
    /// containerd's namespace.
    pub namespace: &'static str,
    /// Folders with one entry for each container; `*` is any name.
    pub folders: &'static [&'static str],
}

/// What a node has that goes with a client's containers.
#[derive(Debug)]
pub struct Node {
    places: &'static Places,
    all: BTreeSet<String>,
}

impl Node {
    /// What there is now.
    pub fn now(places: &'static Places) -> Result<Self> {
        let mut all = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        all.extend(mounts.lines().filter_map(|l| Some(format!("the mount {}", l.split(' ').nth(4)?))));
        all.extend(shims()?);
        let of_client = ["-n", places.namespace];
        for (what, args) in [
            ("container", &["containers", "ls", "-q"][..]),
            ("task", &["tasks", "ls", "-q"]),
            ("lease", &["leases", "ls", "-q"]),
        ] {
            let list = ctr(&[&of_client, args].concat())?.success(what)?;
            all.extend(list.lines().map(|line| format!("the {what} {line}")));
        }
        let list = ctr(&["-n", "capsules", "leases", "ls", "-q"])?.success("leases of the capsules")?;
        all.extend(list.lines().map(|line| format!("the lease of the capsules {line}")));
        for snapshotter in SNAPSHOTTERS {
            let list = [&of_client[..], &["snapshots", "--snapshotter", snapshotter, "ls"]].concat();
            let list = ctr(&list)?.success("ctr snapshots ls")?;
            let keys = list.lines().skip(1).filter_map(|line| line.split_whitespace().next());
            all.extend(keys.map(|key| format!("the snapshot {key} of {snapshotter}")));
        }
        let attachments = json(&["ps"])?;
        let attachments = attachments["attachments"].as_array().context("no attachments")?;
        all.extend(attachments.iter().map(|one| format!("the attachment {one}")));
        for folder in FOLDERS {
            all.extend(entries(&Path::new(folder).join(places.namespace)));
        }
        for folder in places.folders {
            all.extend(matching(folder).iter().flat_map(|folder| entries(folder)));
        }
        Ok(Self { places, all })
    }

    /// That there is nothing now that was not there then, and nothing is gone. Some of it goes by itself: that is waited for. A
    /// snapshot may be gone: of a container that was removed before, containerd collects it in its own time.
    pub fn is_the_same(&self) -> Result<()> {
        let differences = || -> Result<Vec<String>> {
            let now = Self::now(self.places)?;
            let more = now.all.difference(&self.all).map(|one| format!("+ {one}"));
            let less = self.all.difference(&now.all).filter(|one| !one.starts_with("the snapshot "));
            let less = less.map(|one| format!("- {one}"));
            Ok(more.chain(less).collect())
        };
        within(PATIENCE, "the node as it was before", || Ok(differences()?.is_empty()))
            .with_context(|| format!("{:#?}", differences()))
    }
}

/// The folders that a path with `*` for one of its names means.
fn matching(path: &str) -> Vec<PathBuf> {
    let Some((above, below)) = path.split_once("/*/") else { return vec![PathBuf::from(path)] };
    let all = fs::read_dir(above).into_iter().flatten().flatten();
    all.map(|one| one.path().join(below)).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).filter(|path| !path.ends_with(".lock")).collect()
}

/// Processes that containerd's, and our, runtimes are.
fn shims() -> Result<Vec<String>> {
    let processes = fs::read_dir("/proc").context("processes")?.flatten();
    let named = processes.filter_map(|process| {
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        name.starts_with("containerd-shim").then(|| format!("the shim {}", process.file_name().display()))
    });
    Ok(named.collect())
}
