//! What was done to attachments, and what must be there then. Pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Something that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// A version is published. What that made is told by [`Deed::Published`].
    Publish {
        /// As `NAME@VERSION`.
        label: String,
    },
    /// Nothing is done: a snapshot, and what is in its directory.
    Published {
        /// As capsuled lists it.
        snapshot: String,
        /// See [`plain`].
        manifest: Vec<String>,
    },
    /// A version is attached.
    Attach {
        /// Container and target.
        place: String,
        /// As `NAME@VERSION`.
        label: String,
        /// Where what is written goes to; none for what is read-only.
        writes: Option<Writes>,
    },
    /// Another version is put in its place.
    Upgrade {
        /// Container and target.
        place: String,
        /// As `NAME@VERSION`.
        label: String,
    },
    /// The one before is.
    Rollback {
        /// Container and target.
        place: String,
    },
    /// It is taken away, and what was written is kept under a name, or gone where it has none.
    Detach {
        /// Container and target.
        place: String,
        /// The name.
        keep: Option<String>,
    },
    /// What is kept under a name is removed.
    Throw {
        /// The name.
        name: String,
    },
    /// A file of this number is written, and synced.
    Write {
        /// Container and target.
        place: String,
        /// Of the file.
        number: u32,
    },
}

/// Where what is written goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    /// It goes with the attachment: numbers of files.
    Own(BTreeSet<u32>),
    /// It is kept under this name.
    Named(String),
}

/// What is attached at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// As `NAME@VERSION`.
    pub label: String,
    /// Those before it, the oldest first.
    pub history: Vec<String>,
    /// None for what is read-only.
    pub writes: Option<Writes>,
}

/// What is attached, kept and published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// By container and target.
    pub held: BTreeMap<String, Held>,
    /// Numbers of files, by the name under which they are kept.
    pub kept: BTreeMap<String, BTreeSet<u32>>,
    /// What is in the directories of published versions' snapshots.
    pub published: BTreeMap<String, Vec<String>>,
}

/// What can be seen of it after a start: of what was there before, the last alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Label, the label before it, and where it writes to.
    pub held: BTreeMap<String, (String, Option<String>, Option<Writes>)>,
    /// See [`State::kept`].
    pub kept: BTreeMap<String, BTreeSet<u32>>,
}

impl State {
    /// The effect of a deed. One that is about what is not there has none.
    pub fn apply(&mut self, deed: &Deed) {
        match deed {
            Deed::Publish { .. } => {}
            Deed::Published { snapshot, manifest } => {
                self.published.insert(snapshot.clone(), manifest.clone());
            }
            Deed::Attach { place, label, writes } => {
                if let Some(Writes::Named(name)) = writes {
                    self.kept.entry(name.clone()).or_default();
                }
                let (label, writes) = (label.clone(), writes.clone());
                self.held.insert(place.clone(), Held { label, history: Vec::new(), writes });
            }
            Deed::Upgrade { place, label } => {
                if let Some(held) = self.held.get_mut(place) {
                    let before = std::mem::replace(&mut held.label, label.clone());
                    held.history.push(before);
                }
            }
            Deed::Rollback { place } => {
                if let Some(held) = self.held.get_mut(place)
                    && let Some(before) = held.history.pop()
                {
                    held.label = before;
                }
            }
            Deed::Detach { place, keep } => {
                let writes = self.held.remove(place).and_then(|held| held.writes);
                if let (Some(Writes::Own(files)), Some(name)) = (writes, keep) {
                    self.kept.insert(name.clone(), files);
                }
            }
            Deed::Throw { name } => drop(self.kept.remove(name)),
            Deed::Write { place, number } => {
                match self.held.get_mut(place).and_then(|held| held.writes.as_mut()) {
                    Some(Writes::Own(files)) => drop(files.insert(*number)),
                    Some(Writes::Named(name)) => {
                        let name = name.clone();
                        self.kept.entry(name).or_default().insert(*number);
                    }
                    None => {}
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let held = self.held.iter().map(|(place, held)| {
            (place.clone(), (held.label.clone(), held.history.last().cloned(), held.writes.clone()))
        });
        Seen { held: held.collect(), kept: self.kept.clone() }
    }

    /// Whether `found` is this, and of the deeds under way any; if not, what is nearest.
    ///
    /// Those under way are about different places and names, so that their order is of no matter.
    pub fn check(&self, under_way: &[&Deed], found: &Seen) -> Result<()> {
        let mut nearest: Option<Vec<String>> = None;
        for choice in 0_u32..(1 << under_way.len()) {
            let mut state = self.clone();
            for (at, deed) in under_way.iter().enumerate() {
                if choice & (1 << at) != 0 {
                    state.apply(deed);
                }
            }
            let mut expected = vec![state.seen()];
            // A name may be there before the attachment that asked for it is.
            for deed in under_way {
                if let Deed::Attach { writes: Some(Writes::Named(name)), .. } = deed {
                    let mut with = expected.clone();
                    with.iter_mut().for_each(|seen| _ = seen.kept.entry(name.clone()).or_default());
                    expected.extend(with);
                }
            }
            for expected in expected {
                let differences = differences(&expected, found);
                if differences.is_empty() {
                    return Ok(());
                }
                if nearest.as_ref().is_none_or(|nearest| differences.len() < nearest.len()) {
                    nearest = Some(differences);
                }
            }
        }
        bail!("{}; under way: {under_way:?}", nearest.unwrap_or_default().join("; "))
    }
}

fn differences(expected: &Seen, found: &Seen) -> Vec<String> {
    let mut all = Vec::new();
    compare("", &expected.held, &found.held, &mut all);
    compare("what is kept as ", &expected.kept, &found.kept, &mut all);
    all
}

fn compare<T: std::fmt::Debug + PartialEq>(
    what: &str,
    expected: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
    differences: &mut Vec<String>,
) {
    for (key, wanted) in expected {
        match found.get(key) {
            None => differences.push(format!("{what}{key} is lost ({wanted:?})")),
            Some(there) if there != wanted => {
                differences.push(format!("{what}{key} is {there:?}, should be {wanted:?}"));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|key| !expected.contains_key(*key));
    differences.extend(extra.map(|key| format!("{what}{key} is there, and nobody was told so")));
}

/// A manifest without the names that a file has elsewhere: each version that shares it adds one.
pub fn plain(manifest: Vec<String>) -> Vec<String> {
    let cut = |line: String| line.split(" link ").next().unwrap_or_default().to_owned();
    manifest.into_iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(place: &str, label: &str, writes: Option<Writes>) -> Deed {
        Deed::Attach { place: place.into(), label: label.into(), writes }
    }

    fn after(deeds: &[Deed]) -> State {
        let mut state = State::default();
        deeds.iter().for_each(|deed| state.apply(deed));
        state
    }

    #[test]
    fn what_was_acknowledged_is_there_and_a_deed_under_way_is_whole_or_not_at_all() {
        let own = || Some(Writes::Own(BTreeSet::new()));
        let mut deeds = vec![attach("v0 t0", "c@1", None), attach("v0 t1", "c@1", own())];
        deeds.push(Deed::Upgrade { place: "v0 t0".into(), label: "c@2".into() });
        deeds.push(Deed::Write { place: "v0 t1".into(), number: 7 });
        let state = after(&deeds);
        let detach = Deed::Detach { place: "v0 t1".into(), keep: Some("n".into()) };
        let before = state.seen();
        let done = after(&[deeds.clone(), vec![detach.clone()]].concat()).seen();
        assert_eq!(done.kept["n"], BTreeSet::from([7]));
        let mut half = done.clone();
        half.kept.clear();
        let mut old = before.clone();
        old.held.insert("v0 t0".into(), ("c@1".into(), None, None));
        for (found, good) in [(&before, true), (&done, true), (&half, false), (&old, false)] {
            assert_eq!(state.check(&[&detach], found).is_ok(), good, "{found:?}");
        }
        assert!(state.check(&[], &done).is_err());
    }

    #[test]
    fn a_name_may_be_there_before_what_asked_for_it_and_nothing_else_may() {
        let state = State::default();
        let deed = attach("v0 t0", "c@1", Some(Writes::Named("n".into())));
        let mut found = Seen::default();
        assert!(state.check(&[&deed], &found).is_ok());
        found.kept.insert("n".into(), BTreeSet::new());
        assert!(state.check(&[&deed], &found).is_ok());
        assert!(state.check(&[], &found).is_err());
        found.kept.insert("n".into(), BTreeSet::from([1]));
        assert!(state.check(&[&deed], &found).is_err());
    }
}
