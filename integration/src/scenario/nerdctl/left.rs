//! What containers leave on a node: nothing, when they are gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::until;
use crate::scenario::capsulectl::json;
use crate::scenario::ctr::ctr;

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "capsule"];
/// Folders with one entry for each container, of containerd's, ours, runc's and nerdctl's.
const FOLDERS: [&str; 5] = [
    "/run/containerd/io.containerd.runtime.v2.task/default",
    "/run/containerd/runc/default",
    "/run/capsule/tasks/default",
    "/run/capsule/kept/default",
    "/run/netns",
];
/// The same below `/var/lib/nerdctl/HASH`.
const OF_NERDCTL: [&str; 3] = ["containers/default", "names/default", "etchosts/default"];

/// What a node has that goes with containers.
#[derive(Debug, PartialEq, Eq)]
pub struct Node(BTreeSet<String>);

impl Node {
    /// What there is now.
    pub fn now() -> Result<Self> {
        let mut all = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        all.extend(mounts.lines().filter_map(|l| Some(format!("the mount {}", l.split(' ').nth(4)?))));
        all.extend(shims()?);
        for (what, args) in [
            ("container", &["containers", "ls", "-q"][..]),
            ("task", &["tasks", "ls", "-q"]),
            ("lease", &["leases", "ls", "-q"]),
            ("lease of the capsules", &["-n", "capsules", "leases", "ls", "-q"]),
        ] {
            let list = ctr(args)?.success(what)?;
            all.extend(list.lines().map(|line| format!("the {what} {line}")));
        }
        for snapshotter in SNAPSHOTTERS {
            let list =
                ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?.success("ctr snapshots ls")?;
            let keys = list.lines().skip(1).filter_map(|line| line.split_whitespace().next());
            all.extend(keys.map(|key| format!("the snapshot {key} of {snapshotter}")));
        }
        let attachments = json(&["ps"])?;
        let attachments = attachments["attachments"].as_array().context("no attachments")?;
        all.extend(attachments.iter().map(|one| format!("the attachment {one}")));
        for folder in FOLDERS {
            all.extend(entries(Path::new(folder)));
        }
        for hash in fs::read_dir("/var/lib/nerdctl").into_iter().flatten().flatten() {
            for folder in OF_NERDCTL {
                all.extend(entries(&hash.path().join(folder)));
            }
        }
        Ok(Self(all))
    }

    /// That there is nothing now that was not there then, and nothing is gone. Some of it goes by itself: that is waited for. A
    /// snapshot may be gone: of a container that was removed before, containerd collects it in its own time.
    pub fn is_the_same(&self) -> Result<()> {
        let differences = || -> Result<Vec<String>> {
            let now = Self::now()?;
            let more = now.0.difference(&self.0).map(|one| format!("+ {one}"));
            let less = self.0.difference(&now.0).filter(|one| !one.starts_with("the snapshot "));
            let less = less.map(|one| format!("- {one}"));
            Ok(more.chain(less).collect())
        };
        until("the node as it was before", || Ok(differences()?.is_empty()))
            .with_context(|| format!("{:#?}", differences()))
    }
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
