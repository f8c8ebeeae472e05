//! What a node should have, by what it was asked to do. Pure.
//!
//! Capsules are `a`, `b`, `c`, and `app`, of which each version requires the version of `lib` with its number. `u` is attached over
//! what the container has itself, and `in` inside of `out`. Each is attached at its own target, so that a container has it once at
//! most. What is written to, and what becomes of it: [`written`]. Tags, archives, a registry and what drains: [`others`].

use std::collections::{BTreeMap, BTreeSet};

use super::others::{self, DRAINS, Other};
use super::written::{self, Use};
use crate::power::random::Random;

/// Capsules that require nothing.
pub const PLAIN: [&str; 4] = ["a", "b", "c", UNION];
/// The one that is attached as a union.
pub const UNION: &str = "u";
/// The one that has a place for [`INNER`].
pub const OUTER: &str = "out";
/// The one that is attached inside of [`OUTER`], or where that would be.
pub const INNER: &str = "in";
/// How far a rollback goes.
const HISTORY: usize = 16;

/// One capsule in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its version.
    pub version: u32,
    /// Those before it, the oldest first.
    pub history: Vec<u32>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vessel {
    /// It has a task that runs.
    pub runs: bool,
    /// By capsule.
    pub held: BTreeMap<String, Held>,
    /// What it writes to, where it has that.
    pub writes: Option<written::Place>,
    /// What processes use that is detached.
    pub draining: BTreeSet<(String, u32)>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Versions of each capsule.
    pub published: BTreeMap<String, BTreeSet<u32>>,
    /// By id.
    pub vessels: BTreeMap<String, Vessel>,
    /// What was written under each name.
    pub kept: BTreeMap<String, BTreeSet<u32>>,
    /// Those of the names that have no size.
    pub unbounded: BTreeSet<String>,
    /// The version of each capsule and tag.
    pub tags: BTreeMap<(String, String), u32>,
    /// What the archive holds.
    pub saved: Option<(String, u32)>,
    /// What the registry has for sure.
    pub pushed: Option<(String, u32)>,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Publishes a version; of `app`, that of `lib` before it.
    Publish(String, u32),
    /// Removes a version.
    Remove(String, u32),
    /// Removes what nobody needs, but the newest so many.
    Prune(usize),
    /// Attaches a set, each at a version or the newest.
    Attach(String, Vec<(String, Option<u32>)>),
    /// Moves a set.
    Upgrade(String, Vec<(String, Option<u32>)>),
    /// Moves one back.
    Rollback(String, String),
    /// Takes one away.
    Detach(String, String),
    /// Ends the task, and starts another.
    Restart(String),
    /// Removes the container, and makes one of the same name.
    Renew(String),
    /// Something with what is written to.
    Written(Use),
    /// Something else with versions, or with what drains.
    Other(Other),
}

impl Op {
    /// The container that it is about.
    pub fn vessel(&self) -> Option<&str> {
        match self {
            Self::Publish(..) | Self::Remove(..) | Self::Prune(_) => None,
            Self::Attach(id, _) | Self::Upgrade(id, _) | Self::Rollback(id, _) | Self::Detach(id, _) => {
                Some(id)
            }
            Self::Restart(id) | Self::Renew(id) => Some(id),
            Self::Written(what) => what.vessel(),
            Self::Other(what) => what.vessel(),
        }
    }

    /// The words for `capsulectl`; none for what is done otherwise.
    pub fn words(&self) -> Option<Vec<String>> {
        let set = |command: &str, id: &str, specs: &[(String, Option<u32>)]| {
            let label = |(name, version): &(String, Option<u32>)| match version {
                Some(version) => format!("{name}@{version}"),
                None => name.clone(),
            };
            let mut words = vec![command.to_owned(), id.to_owned()];
            words.extend(specs.iter().map(label));
            words
        };
        let plain = |words: [&str; 3]| words.map(str::to_owned).to_vec();
        Some(match self {
            Self::Publish(..) | Self::Restart(_) | Self::Renew(_) => return None,
            Self::Remove(name, version) => vec!["rm".to_owned(), format!("{name}@{version}")],
            Self::Prune(keep) => plain(["prune", "--keep-last", &keep.to_string()]),
            Self::Attach(id, specs) => set("attach", id, specs),
            Self::Upgrade(id, specs) => set("upgrade", id, specs),
            Self::Rollback(id, name) => plain(["rollback", id, name]),
            Self::Detach(id, name) => plain(["detach", id, name]),
            Self::Written(what) => return what.words(),
            Self::Other(what) => return what.words(),
        })
    }
}

impl Node {
    /// Something to do: mostly what can be done, sometimes what cannot.
    pub fn choose(&self, random: &mut Random, ids: &[&str]) -> Op {
        let id = (*random.pick(ids).unwrap_or(&"")).to_owned();
        let name = |random: &mut Random| match random.below(PLAIN.len() + 1) {
            index if index < PLAIN.len() => PLAIN[index].to_owned(),
            _ => "app".to_owned(),
        };
        let version = |random: &mut Random, name: &str| {
            let all: Vec<u32> = self.published.get(name).into_iter().flatten().copied().collect();
            if random.percent(60) { random.pick(&all).copied() } else { None }
        };
        let set = |random: &mut Random| {
            let mut names = BTreeSet::from([name(random)]);
            if random.percent(40) {
                names.insert(name(random));
            }
            names
                .into_iter()
                .map(|name| {
                    let v = version(random, &name);
                    (name, v)
                })
                .collect::<Vec<_>>()
        };
        match random.below(176) {
            0..12 => {
                let name = name(random);
                let newest = self.published.get(&name).and_then(|all| all.last()).copied().unwrap_or(0);
                Op::Publish(name, newest + 1)
            }
            12..20 => {
                let name = if random.percent(25) { "lib".to_owned() } else { name(random) };
                let all: Vec<u32> = self.published.get(&name).into_iter().flatten().copied().collect();
                Op::Remove(name, random.pick(&all).copied().unwrap_or(1))
            }
            20..23 => Op::Prune(1 + random.below(3)),
            23..48 => Op::Attach(id, set(random)),
            48..66 => Op::Upgrade(id, set(random)),
            66..76 => Op::Rollback(id, name(random)),
            76..90 => {
                // A process may use what is to drain.
                let held = self.vessels[&id].held.keys().filter(|name| *name != DRAINS);
                let held: Vec<String> = held.cloned().collect();
                Op::Detach(id, random.pick(&held).cloned().unwrap_or_else(|| "a".to_owned()))
            }
            90..97 => Op::Restart(id),
            97..100 => Op::Renew(id),
            100..130 => Op::Written(Use::choose(self, random, id)),
            130..140 => {
                let name = *random.pick(&[OUTER, INNER, DRAINS]).unwrap_or(&OUTER);
                match self.vessels[&id].held.get(OUTER).map(|held| held.version) {
                    // There are two.
                    Some(version) if random.percent(40) => {
                        Op::Upgrade(id, vec![(OUTER.to_owned(), Some(3 - version))])
                    }
                    _ => Op::Attach(id, vec![(name.to_owned(), None)]),
                }
            }
            _ => Op::Other(Other::choose(self, random, id)),
        }
    }

    /// The node after it; `None` where it is refused.
    pub fn after(&self, op: &Op) -> Option<Self> {
        let mut node = self.clone();
        match op {
            Op::Publish(name, version) => node.publish(name, *version),
            Op::Remove(name, version) => node.remove(name, *version)?,
            Op::Prune(keep) => node.prune(*keep),
            Op::Attach(id, specs) => node.attach(id, specs)?,
            Op::Upgrade(id, specs) => node.upgrade(id, specs)?,
            Op::Rollback(id, name) => node.rollback(id, name)?,
            Op::Detach(id, name) => node.detach(id, name)?,
            Op::Restart(id) => node.vessel(id)?.draining.clear(),
            Op::Renew(id) => {
                let vessel = node.vessel(id)?;
                *vessel = Vessel { runs: true, ..Vessel::default() };
            }
            Op::Written(what) => written::after(&mut node, what)?,
            Op::Other(what) => others::after(&mut node, what)?,
        }
        Some(node)
    }

    pub(super) fn vessel(&mut self, id: &str) -> Option<&mut Vessel> {
        self.vessels.get_mut(id)
    }

    fn publish(&mut self, name: &str, version: u32) {
        if name == "app" {
            self.published.entry("lib".to_owned()).or_default().insert(version);
        }
        self.published.entry(name.to_owned()).or_default().insert(version);
    }

    fn newest(&self, name: &str) -> Option<u32> {
        self.published.get(name)?.last().copied()
    }

    pub(super) fn has(&self, name: &str, version: u32) -> bool {
        self.published.get(name).is_some_and(|all| all.contains(&version))
    }

    /// The newest version of `app` from `least` on whose `lib` is there, in the container or published.
    fn newest_app(&self, id: &str, least: u32) -> Option<u32> {
        let lib = self.vessels[id].held.get("lib").map(|lib| lib.version);
        let fits =
            |version: &&u32| **version >= least && (self.has("lib", **version) || lib == Some(**version));
        self.published.get("app")?.iter().rev().find(fits).copied()
    }

    fn attach(&mut self, id: &str, specs: &[(String, Option<u32>)]) -> Option<()> {
        let mut new = Vec::new();
        for (name, version) in specs {
            let lib = self.vessels[id].held.get("lib").map(|lib| lib.version);
            let version = match (version, name.as_str(), lib) {
                (Some(version), _, _) => *version,
                // What the container has is the only one.
                (None, "app", Some(lib)) => lib,
                (None, "app", None) => self.newest_app(id, 0)?,
                (None, _, _) => self.newest(name)?,
            };
            let is_covered = name == OUTER && self.vessels[id].held.contains_key(INNER);
            if !self.has(name, version) || self.vessels[id].held.contains_key(name) || is_covered {
                return None;
            }
            new.push((name.clone(), version));
            if name == "app" {
                match lib {
                    Some(lib) if lib == version => {}
                    Some(_) => return None,
                    None if self.has("lib", version) => new.push(("lib".to_owned(), version)),
                    None => return None,
                }
            }
        }
        let vessel = self.vessel(id)?;
        vessel
            .held
            .extend(new.into_iter().map(|(name, version)| (name, Held { version, history: Vec::new() })));
        Some(())
    }

    fn upgrade(&mut self, id: &str, specs: &[(String, Option<u32>)]) -> Option<()> {
        let (mut moves, mut behind) = (Vec::new(), false);
        for (name, version) in specs {
            let held = self.vessels[id].held.get(name)?.version;
            let newest = self.newest(name)?;
            let to = match (version, name.as_str()) {
                (Some(version), _) => *version,
                (None, "app") => self.newest_app(id, held)?,
                (None, _) => newest,
            };
            if !self.has(name, to) || (name == "app" && to != held && !self.has("lib", to)) {
                return None;
            }
            behind |= version.is_none() && to != newest;
            if to != held && name == OUTER && self.vessels[id].held.contains_key(INNER) {
                return None;
            }
            if to != held {
                moves.push((name.clone(), to));
                if name == "app" {
                    moves.push(("lib".to_owned(), to));
                }
            }
        }
        if moves.is_empty() && behind {
            return None;
        }
        let vessel = self.vessel(id)?;
        for (name, to) in moves {
            let held = vessel.held.get_mut(&name)?;
            held.history.push(held.version);
            let surplus = held.history.len().saturating_sub(HISTORY);
            held.history.drain(..surplus);
            held.version = to;
        }
        Some(())
    }

    fn rollback(&mut self, id: &str, name: &str) -> Option<()> {
        let to = *self.vessels[id].held.get(name)?.history.last()?;
        let mut back = vec![name];
        if name == "app" {
            let lib = self.vessels[id].held.get("lib")?;
            if lib.version != to {
                if lib.history.last() != Some(&to) {
                    return self.rollback_over(id, to);
                }
                back.push("lib");
            }
        }
        let vessel = self.vessel(id)?;
        for name in back {
            let held = vessel.held.get_mut(name)?;
            held.version = held.history.pop()?;
        }
        Some(())
    }

    /// `lib` did not come from where `app` goes back to: it is upgraded to that.
    fn rollback_over(&mut self, id: &str, to: u32) -> Option<()> {
        if !self.has("lib", to) {
            return None;
        }
        let vessel = self.vessel(id)?;
        let lib = vessel.held.get_mut("lib")?;
        lib.history.push(lib.version);
        lib.version = to;
        let app = vessel.held.get_mut("app")?;
        app.version = app.history.pop()?;
        Some(())
    }

    fn detach(&mut self, id: &str, name: &str) -> Option<()> {
        if name == written::CAPSULE {
            return written::after(self, &Use::Return(id.to_owned(), written::Fate::Stay));
        }
        let held = self.vessels[id].held.get(name)?;
        let required = self.vessels[id]
            .held
            .get("app")
            .is_some_and(|app| name == "lib" && app.version == held.version && self.has("app", app.version));
        if required || (name == OUTER && self.vessels[id].held.contains_key(INNER)) {
            return None;
        }
        self.vessel(id)?.held.remove(name).map(drop)
    }

    fn uses(&self, name: &str, version: u32) -> bool {
        let drains = |vessel: &Vessel| vessel.draining.contains(&(name.to_owned(), version));
        if self.vessels.values().any(drains) {
            return true;
        }
        let mut held = self.vessels.values().filter_map(|vessel| vessel.held.get(name));
        held.any(|held| held.version == version || held.history.contains(&version))
    }

    fn needs(&self, name: &str, version: u32) -> bool {
        self.uses(name, version) || (name == "lib" && self.has("app", version) && self.uses("app", version))
    }

    fn remove(&mut self, name: &str, version: u32) -> Option<()> {
        if !self.has(name, version) || self.needs(name, version) {
            return None;
        }
        self.published.get_mut(name)?.remove(&version);
        self.tags.retain(|(of, _), stands_for| (of.as_str(), *stands_for) != (name, version));
        Some(())
    }

    fn prune(&mut self, keep: usize) {
        let mut gone = Vec::new();
        for (name, all) in &self.published {
            for version in all.iter().rev().skip(keep).filter(|v| !self.needs(name, **v)) {
                gone.push((name.clone(), *version));
            }
        }
        for (name, version) in gone {
            if let Some(all) = self.published.get_mut(&name) {
                all.remove(&version);
            }
            self.tags.retain(|(of, _), stands_for| (of, *stands_for) != (&name, version));
        }
    }
}
