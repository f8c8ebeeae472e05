//! What a node has: as capsuled says, as the kernel says, and as containerd says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::left;
use super::model::{INNER, Node, OUTER, UNION};
use super::others::RUN;
use super::written;
use crate::scenario::capsulectl::json;
use crate::scenario::ctr::{Container, ctr};

/// How long a node may take to settle.
const PATIENCE: Duration = Duration::from_secs(60);

/// What capsuled says.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    published: BTreeMap<String, BTreeSet<u32>>,
    /// (container, capsule) → version, the one before, and the state.
    held: BTreeMap<(String, String), (u32, Option<u32>, String)>,
    /// Names of what was written.
    kept: BTreeSet<String>,
    /// Container, capsule and version.
    draining: BTreeSet<(String, String, u32)>,
    /// Capsule and tag → version.
    tags: BTreeMap<(String, String), u32>,
}

/// Asks capsuled.
pub fn observe() -> Result<Seen> {
    let mut seen = Seen::default();
    for version in array(&json(&["ls"])?, "versions")? {
        ensure!(version["complete"] == true, "{version}");
        let (name, number) = (text(&version, "capsule")?, number(&version["version"])?);
        for tag in array(&version, "tags")? {
            seen.tags.insert((name.clone(), tag.as_str().context("a tag")?.to_owned()), number);
        }
        seen.published.entry(name).or_default().insert(number);
    }
    for a in array(&json(&["ps"])?, "attachments")? {
        if a["state"] == "draining" {
            seen.draining.insert((text(&a, "container")?, text(&a, "capsule")?, number(&a["version"])?));
            continue;
        }
        let previous = Some(&a["previous_version"]).filter(|v| !v.is_null()).map(number).transpose()?;
        let value = (number(&a["version"])?, previous, text(&a, "state")?);
        let twice = seen.held.insert((text(&a, "container")?, text(&a, "capsule")?), value);
        ensure!(twice.is_none(), "twice: {a}");
    }
    for upper in array(&json(&["uppers"])?, "uppers")? {
        let name = text(&upper, "name")?;
        seen.kept.insert(name.strip_suffix(&format!("-{}", *RUN)).context(name.clone())?.to_owned());
    }
    Ok(seen)
}

impl Seen {
    /// Whether this is the node.
    pub fn is(&self, node: &Node) -> bool {
        self.held == held(node)
            && self.published == published(node)
            && self.kept.iter().eq(node.kept.keys())
            && self.draining == draining(node)
            && self.tags == node.tags
    }

    /// The node between `before` and `after` that this is, where only versions were published or removed.
    pub fn between(&self, before: &Node, after: &Node) -> Option<Node> {
        let (one, other) = (published(before), published(after));
        let all: BTreeSet<&String> = one.keys().chain(other.keys()).chain(self.published.keys()).collect();
        let none = BTreeSet::new();
        let is = |name: &&&String| {
            let [one, other, seen] =
                [&one, &other, &self.published].map(|all| all.get(**name).unwrap_or(&none));
            one.intersection(other).all(|v| seen.contains(v))
                && seen.iter().all(|v| one.contains(v) || other.contains(v))
        };
        // A tag goes with its version.
        let mut tags = before.tags.clone();
        tags.retain(|(name, _), version| self.published.get(name).is_some_and(|all| all.contains(version)));
        let fits = self.held == held(before)
            && self.draining == draining(before)
            && self.tags == tags
            && self.kept.iter().eq(before.kept.keys())
            && all.iter().all(|name| is(&name));
        fits.then(|| Node { published: self.published.clone(), tags, ..before.clone() })
    }
}

fn held(node: &Node) -> BTreeMap<(String, String), (u32, Option<u32>, String)> {
    let all = node.vessels.iter().flat_map(|(id, vessel)| vessel.held.iter().map(move |held| (id, held)));
    all.map(|(id, (name, held))| {
        ((id.clone(), name.clone()), (held.version, held.history.last().copied(), "attached".to_owned()))
    })
    .collect()
}

fn draining(node: &Node) -> BTreeSet<(String, String, u32)> {
    let all = node.vessels.iter().flat_map(|(id, vessel)| vessel.draining.iter().map(move |one| (id, one)));
    all.map(|(id, (name, version))| (id.clone(), name.clone(), *version)).collect()
}

fn published(node: &Node) -> BTreeMap<String, BTreeSet<u32>> {
    node.published.clone().into_iter().filter(|(_, all)| !all.is_empty()).collect()
}

/// Where a capsule is attached.
pub fn target(name: &str) -> String {
    if name == INNER { format!("/opt/{OUTER}/sub") } else { format!("/opt/{name}") }
}

/// Each container has mounted what it should have, and nothing else.
pub fn mounts(node: &Node, containers: &BTreeMap<String, Container>) -> Result<()> {
    for (id, vessel) in &node.vessels {
        let container = containers.get(id).context("a container")?;
        let root = format!("/proc/{}/root", container.pid()?);
        for (name, held) in &vessel.held {
            let path = format!("{root}{}/version", target(name));
            let found = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            ensure!(found == held.version.to_string(), "{id}: {path} holds {found:?}, not {}", held.version);
        }
        if let Some(expected) = written::seen_in(node, id) {
            let files =
                fs::read_dir(format!("{root}/opt/{}", written::CAPSULE)).context("what is written")?;
            let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
            let found: BTreeSet<u32> =
                names.filter_map(|name| name.strip_prefix('t')?.parse().ok()).collect();
            ensure!(found == expected, "{id} has written {found:?}, and should have {expected:?}");
        }
        let table = container.mounts()?;
        let own = fs::read_to_string(format!("{root}{}/own", target(UNION)));
        ensure!(own.as_ref().is_ok_and(|own| own == "own"), "{id} lacks what it has itself: {own:?}");
        let points = table.iter().filter_map(|line| line.split(' ').nth(4));
        let targets: BTreeSet<String> =
            points.filter(|at| at.starts_with("/opt/")).map(str::to_owned).collect();
        let wanted: BTreeSet<String> = vessel.held.keys().map(|name| target(name)).collect();
        ensure!(targets == wanted, "{id} has mounts at {targets:?}, and should at {wanted:?}: {table:?}");
        let count = table.iter().filter(|line| line.contains(" /opt/")).count();
        ensure!(count == wanted.len(), "{id} has {count} mounts at {wanted:?}");
    }
    Ok(())
}

/// As containerd's filters have it.
const OUR_LEASES: &str = "labels.\"resourcecapsules.io/lease\"";

/// No lease, pipe, mark or directory is there that nothing needs.
pub fn nothing_left(node: &Node) -> Result<()> {
    let marked = |id: &String| fs::exists(format!("/run/capsule/kept/default/{id}")).unwrap_or_default();
    for (id, vessel) in &node.vessels {
        ensure!(marked(id) != vessel.held.is_empty(), "{id} is marked: {}", marked(id));
    }
    let pipes = fs::read_dir("/run/capsule/checks").map(Iterator::count).unwrap_or_default();
    ensure!(pipes == 0, "{pipes} pipes are left");
    let own = node.vessels.values().filter(|v| matches!(v.writes, Some(written::Place::Own(_)))).count();
    let count = |folder: &str| fs::read_dir(format!("/var/lib/capsule/{folder}")).map(Iterator::count);
    let mut last = String::new();
    let gone = until(|| {
        let counts = (count("attachments")?, count("uppers")?);
        last = format!("{counts:?} directories of what is written, not ({own}, {})", node.kept.len());
        Ok((counts == (own, node.kept.len())).then_some(()))
    })?;
    ensure!(gone.is_some(), "{last}");
    let settled = until(|| {
        let list = |args: &[&str]| ctr(args)?.success("ctr");
        // A containerd that is killed while it exports leaves one of its own, which expires after a day.
        let leases = list(&["-n", "capsules", "leases", "ls", "-q", OUR_LEASES])?;
        let mut snapshots = 0;
        for namespace in ["default", "capsules"] {
            let all = list(&["-n", namespace, "snapshots", "--snapshotter", "capsule", "ls"])?;
            snapshots += all.lines().count().saturating_sub(1);
        }
        let directories = fs::read_dir("/var/lib/capsule/snapshots").context("read the snapshots")?.count();
        let left = left::on_the_node(node)?;
        last = format!("leases: {leases:?}; {snapshots} snapshots, {directories} directories; {left:?}");
        let is = leases.trim().is_empty() && snapshots == directories && left.is_empty();
        if !is {
            // What a crash left is garbage: it goes with the next collection, which this makes.
            list(&["-n", "capsules", "leases", "create", "--id", "collect"])?;
            list(&["-n", "capsules", "leases", "rm", "--sync", "collect"])?;
        }
        Ok(is.then_some(()))
    })?;
    ensure!(settled.is_some(), "{last}");
    Ok(())
}

/// What `look` gives, looked for until the node has had time to settle.
pub fn until<T>(mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = Instant::now() > deadline;
        match look() {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) if last => return Ok(None),
            Err(error) if last => return Err(error),
            _ => sleep(Duration::from_millis(40)),
        }
    }
}

fn array(value: &Value, field: &str) -> Result<Vec<Value>> {
    Ok(value[field].as_array().with_context(|| format!("no {field}"))?.clone())
}

fn text(value: &Value, field: &str) -> Result<String> {
    Ok(value[field].as_str().with_context(|| format!("no {field} in {value}"))?.to_owned())
}

fn number(value: &Value) -> Result<u32> {
    value.as_str().context("a version")?.parse().context("a number")
}
