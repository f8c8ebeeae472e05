//! What containers write to attachments: what should be there, by what was asked for. Pure.

use std::collections::BTreeSet;

use super::model::{Held, Node};
use super::others::RUN;
use crate::power::random::Random;

/// The one capsule that is written to, at its version [`BASE`]. What is published of what was written has lower ones.
pub const CAPSULE: &str = "w";
/// The newest version always.
pub const BASE: u32 = 1_000_000;
const NAMES: [&str; 3] = ["n0", "n1", "n2"];

/// Where a container writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To what goes with the attachment: this.
    Own(BTreeSet<u32>),
    /// To what has this name.
    Named(String),
}

/// Whether something was kept under a name when it was chosen.
pub type Kept = bool;

/// What becomes of it at a detach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nobody says.
    Stay,
    /// It goes.
    Drop,
    /// It gets this name.
    Keep(String),
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// Attaches it, to be written to under a name or without. What is kept under the name already has its size, or none.
    Borrow(String, Option<(String, Kept)>),
    /// Writes a file of this number.
    Write(String, u32),
    /// Detaches it.
    Return(String, Fate),
    /// Removes what has a name.
    Throw(String),
}

impl Use {
    /// Something to do.
    pub fn choose(node: &Node, random: &mut Random, id: String) -> Self {
        let name = |random: &mut Random| (*random.pick(&NAMES).unwrap_or(&"n0")).to_owned();
        match random.below(30) {
            0..9 => {
                let named = random.percent(60).then(|| name(random));
                let is_kept = |name: &String| node.kept.contains_key(name);
                Self::Borrow(id, named.map(|name| (name.clone(), is_kept(&name))))
            }
            9..19 => Self::Write(id, u32::try_from(random.below(1_000_000)).unwrap_or_default()),
            19..22 => Self::Return(id, Fate::Stay),
            22..24 => Self::Return(id, Fate::Drop),
            24..28 => Self::Return(id, Fate::Keep(name(random))),
            _ => Self::Throw(name(random)),
        }
    }

    /// The container that it is about.
    pub fn vessel(&self) -> Option<&str> {
        match self {
            Self::Borrow(id, _) | Self::Write(id, _) | Self::Return(id, _) => Some(id),
            Self::Throw(_) => None,
        }
    }

    /// The words for `capsulectl`; none for what the container does.
    pub fn words(&self) -> Option<Vec<String>> {
        let line = match self {
            Self::Borrow(id, None) => format!("attach {id} {CAPSULE} --writable"),
            Self::Borrow(id, Some((name, kept))) => {
                let size = if *kept { "" } else { " --size 4MiB" };
                format!("attach {id} {CAPSULE} --persist {}{size}", on_disk(name))
            }
            Self::Write(..) => return None,
            Self::Return(id, Fate::Stay) => format!("detach {id} {CAPSULE}"),
            Self::Return(id, Fate::Drop) => format!("detach {id} {CAPSULE} --drop"),
            Self::Return(id, Fate::Keep(name)) => format!("detach {id} {CAPSULE} --keep {}", on_disk(name)),
            Self::Throw(name) => format!("uppers rm {}", on_disk(name)),
        };
        Some(line.split(' ').map(str::to_owned).collect())
    }
}

/// A name as capsuled is told it.
pub fn on_disk(name: &str) -> String {
    format!("{name}-{}", *RUN)
}

/// Does it to the node; `None` where it is refused.
pub fn after(node: &mut Node, what: &Use) -> Option<()> {
    match what {
        Use::Borrow(id, name) => borrow(node, id, name.as_ref().map(|(name, _)| name.as_str())),
        Use::Write(id, number) => match node.vessel(id)?.writes.as_mut()? {
            Place::Own(written) => {
                written.insert(*number);
                Some(())
            }
            Place::Named(name) => {
                let name = name.clone();
                node.kept.get_mut(&name)?.insert(*number);
                Some(())
            }
        },
        Use::Return(id, fate) => {
            let vessel = node.vessel(id)?;
            match (vessel.writes.clone()?, fate) {
                (Place::Own(_), Fate::Drop) | (Place::Named(_), Fate::Stay) => {}
                (Place::Own(written), Fate::Keep(name)) if !node.kept.contains_key(name) => {
                    node.kept.insert(name.clone(), written);
                    node.unbounded.insert(name.clone());
                }
                _ => return None,
            }
            let vessel = node.vessel(id)?;
            vessel.writes = None;
            vessel.held.remove(CAPSULE).map(drop)
        }
        Use::Throw(name) => {
            if is_used(node, name) {
                return None;
            }
            node.unbounded.remove(name);
            node.kept.remove(name).map(drop)
        }
    }
}

fn borrow(node: &mut Node, id: &str, name: Option<&str>) -> Option<()> {
    if name.is_some_and(|name| is_used(node, name)) || node.vessel(id)?.writes.is_some() {
        return None;
    }
    let vessel = node.vessel(id)?;
    vessel.held.insert(CAPSULE.to_owned(), Held { version: BASE, history: Vec::new() });
    vessel.writes =
        Some(name.map_or_else(|| Place::Own(BTreeSet::new()), |name| Place::Named(name.to_owned())));
    if let Some(name) = name {
        node.kept.entry(name.to_owned()).or_default();
    }
    Some(())
}

fn is_used(node: &Node, name: &str) -> bool {
    let mut places = node.vessels.values().filter_map(|vessel| vessel.writes.as_ref());
    places.any(|place| matches!(place, Place::Named(other) if other == name))
}

/// The node in which the name of an attach that was broken off is there: it was made before the attach was written down.
pub fn made_in_vain(node: &Node, what: &Use) -> Option<Node> {
    let Use::Borrow(_, Some((name, _))) = what else { return None };
    let mut node = node.clone();
    node.kept.entry(name.clone()).or_default();
    Some(node)
}

/// The numbers of the files that a container should see.
pub fn seen_in(node: &Node, id: &str) -> Option<BTreeSet<u32>> {
    match node.vessels.get(id)?.writes.as_ref()? {
        Place::Own(written) => Some(written.clone()),
        Place::Named(name) => node.kept.get(name).cloned(),
    }
}
