//! What else is done to versions: tags, archives, a registry, signatures, what is written, what drains. Pure but for names.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::SystemTime;

use super::model::{Node, PLAIN};
use super::written::{self, Place};
use crate::power::random::Random;

/// The capsule that is detached while it is in use; it has one version.
pub const DRAINS: &str = "d";
/// The capsule whose versions are images of another namespace.
pub const BOX: &str = "box";
/// Where files of this scenario are.
pub const FILES: &str = "/tmp/life";
/// Where the registry is.
pub const REGISTRY: &str = "127.0.0.1:5020";
const TAGS: [&str; 2] = ["stable", "next"];

/// In names of what is written, so that loop devices of this machine are told from those of others on the same kernel.
pub static RUN: LazyLock<String> = LazyLock::new(|| {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", since.as_nanos())
});

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Other {
    /// Lets a tag stand for a version.
    Tag(String, u32, &'static str),
    /// Takes it away.
    Untag(String, &'static str),
    /// Publishes what a container has written.
    Commit(String, u32),
    /// Upgrades to a version with which the container is not well.
    Ill(String, String, u32),
    /// Writes a version to the archive.
    Save(String, u32),
    /// Reads the archive.
    Load,
    /// Sends a version to the registry.
    Push(String, u32),
    /// Fetches what was sent.
    Pull(String, u32),
    /// Makes a version of another namespace's image.
    Import(u32),
    /// Signs a version.
    Sign(String, u32),
    /// Detaches what a process uses.
    Drain(String),
    /// Ends the processes that use what was detached.
    Release(String),
}

impl Other {
    /// Something to do.
    pub fn choose(node: &Node, random: &mut Random, id: String) -> Self {
        let name = (*random.pick(&PLAIN).unwrap_or(&"a")).to_owned();
        let all: Vec<u32> = node.published.get(&name).into_iter().flatten().copied().collect();
        let version = random.pick(&all).copied().unwrap_or(1);
        let tag = *random.pick(&TAGS).unwrap_or(&"stable");
        let next = |name: &str, below: u32| {
            let all = node.published.get(name).into_iter().flatten();
            all.filter(|version| **version < below).max().copied().unwrap_or(0) + 1
        };
        let held = node.vessels.get(&id).and_then(|vessel| vessel.held.get(&name));
        let is_another = held.is_some_and(|held| held.version != version) && node.has(&name, version);
        match (random.below(27), &node.pushed) {
            (0..4, _) => Self::Tag(name, version, tag),
            (4..6, _) => Self::Untag(name, tag),
            (6..10, _) => Self::Commit(id, next(written::CAPSULE, written::BASE)),
            (10..12, _) if is_another => Self::Ill(id, name, version),
            (12..14, _) => Self::Save(name, version),
            (14..16, _) if node.saved.is_some() => Self::Load,
            (18..20, Some((name, version))) => Self::Pull(name.clone(), *version),
            (16..20, _) => Self::Push(name, version),
            (20 | 26, _) => Self::Import(next(BOX, u32::MAX)),
            (23..25, _) => Self::Drain(id),
            (25, _) => Self::Release(id),
            _ => Self::Sign(name, version),
        }
    }

    /// The container that it is about.
    pub fn vessel(&self) -> Option<&str> {
        match self {
            Self::Commit(id, _) | Self::Ill(id, ..) | Self::Drain(id) | Self::Release(id) => Some(id),
            _ => None,
        }
    }

    /// Whether containerd has to reach the snapshotter for it.
    pub fn unpacks(&self) -> bool {
        matches!(self, Self::Commit(..) | Self::Load | Self::Pull(..) | Self::Import(_))
    }

    /// The words for `capsulectl`; none for what the container does.
    pub fn words(&self) -> Option<Vec<String>> {
        let line = match self {
            Self::Tag(name, version, tag) => format!("tag {name}@{version} {tag}"),
            Self::Untag(name, tag) => format!("untag {name}@{tag}"),
            Self::Commit(id, version) => format!("commit {id} {} --version {version}", written::CAPSULE),
            Self::Ill(id, name, version) => {
                format!("upgrade {id} {name}@{version} --wait-healthy /bin/false --health-timeout 1s")
            }
            Self::Save(name, version) => format!("save {name}@{version} -f {FILES}/saved.tar"),
            Self::Load => format!("load -f {FILES}/saved.tar"),
            Self::Push(name, version) => format!("push {name}@{version} {REGISTRY}/life/{name}"),
            Self::Pull(name, version) => format!("pull {REGISTRY}/life/{name}:{version}"),
            Self::Import(version) => {
                format!("--namespace default import localhost/busybox:latest --as {BOX}@{version}")
            }
            Self::Sign(name, version) => format!("sign {name}@{version} --key {FILES}/life.key"),
            Self::Drain(id) => format!("detach {id} {DRAINS} --lazy"),
            Self::Release(_) => return None,
        };
        Some(line.split(' ').map(str::to_owned).collect())
    }
}

/// Does it to the node; `None` where it is refused.
pub fn after(node: &mut Node, what: &Other) -> Option<()> {
    match what {
        Other::Tag(name, version, tag) => {
            node.has(name, *version).then_some(())?;
            node.tags.insert((name.clone(), (*tag).to_owned()), *version);
        }
        Other::Untag(name, tag) => {
            node.tags.remove(&(name.clone(), (*tag).to_owned()))?;
        }
        Other::Commit(id, version) => {
            let files = written::seen_in(node, id)?;
            (!files.is_empty()).then_some(())?;
            node.published.entry(written::CAPSULE.to_owned()).or_default().insert(*version);
        }
        Other::Save(name, version) => {
            node.has(name, *version).then_some(())?;
            node.saved = Some((name.clone(), *version));
        }
        Other::Load => {
            let (name, version) = node.saved.clone()?;
            node.published.entry(name).or_default().insert(version);
        }
        Other::Push(name, version) => {
            node.has(name, *version).then_some(())?;
            node.pushed = Some((name.clone(), *version));
        }
        Other::Pull(name, version) => {
            node.published.entry(name.clone()).or_default().insert(*version);
        }
        Other::Import(version) => {
            node.published.entry(BOX.to_owned()).or_default().insert(*version);
        }
        Other::Sign(name, version) => node.has(name, *version).then_some(())?,
        Other::Ill(..) => return None,
        Other::Drain(id) => {
            let vessel = node.vessel(id)?;
            let held = vessel.held.remove(DRAINS)?;
            vessel.draining.insert((DRAINS.to_owned(), held.version));
        }
        Other::Release(id) => node.vessel(id)?.draining.clear(),
    }
    Some(())
}

/// The names that containers write to, of those that have a size.
pub fn bounded(node: &Node) -> BTreeSet<&String> {
    let places = node.vessels.values().filter_map(|vessel| vessel.writes.as_ref());
    let names = places.filter_map(|place| if let Place::Named(name) = place { Some(name) } else { None });
    names.filter(|name| !node.unbounded.contains(*name)).collect()
}
