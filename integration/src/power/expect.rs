//! What must be there after a power cut: the reference model of the campaign.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::attached::model::{Deed, State as Deeds};
use super::journal::{Call, Labels, Mark, Marks};
use super::record::Event;

/// What stage a snapshot is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read-only.
    View,
    /// Being changed.
    Active,
    /// Immutable.
    Committed,
}

/// A snapshot as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// View, active or committed.
    pub kind: Kind,
    /// A committed one's name, or nothing.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
}

/// All snapshots by key or name.
pub type State = BTreeMap<String, Snapshot>;

/// What was acknowledged at some point, and what was under way.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// What the acknowledged calls made.
    pub state: State,
    /// Each may have had its effect or not, as a whole.
    pub under_way: BTreeMap<usize, Call>,
    /// What is in the directories of committed snapshots, and of those being committed.
    pub manifests: BTreeMap<String, Vec<String>>,
    /// What is attached, kept and published.
    pub deeds: Deeds,
    /// How many calls were acknowledged.
    pub acknowledged: usize,
    /// How many of them were commits.
    pub commits: usize,
}

impl Expected {
    /// From the events before a cut.
    pub fn after(events: &[Event]) -> Result<Self> {
        let (mut marks, mut expected) = (Marks::default(), Self::default());
        for event in events {
            for mark in marks.take(event)? {
                expected.take(mark)?;
            }
        }
        Ok(expected)
    }

    fn take(&mut self, mark: Mark) -> Result<()> {
        match mark {
            Mark::Begin { client, call } => {
                if let Call::Commit { name, manifest, .. } = &call {
                    self.manifests.insert(name.clone(), manifest.clone());
                }
                if let Some(other) = self.under_way.insert(client, call) {
                    bail!("client {client} makes two calls at once: {other:?}");
                }
            }
            Mark::Done { client, refused } => {
                let Some(call) = self.under_way.remove(&client) else {
                    bail!("client {client} got an answer and had asked nothing");
                };
                self.acknowledged += 1;
                if refused.is_none() {
                    let is_commit = matches!(call, Call::Commit { .. } | Call::Deed(Deed::Publish { .. }));
                    self.commits += usize::from(is_commit);
                    if let Call::Deed(deed) = &call {
                        self.deeds.apply(deed);
                    }
                    apply(&call, &mut self.state);
                }
            }
            Mark::End { .. } => {}
            Mark::Failed { reason } => bail!("the workload failed: {reason}"),
        }
        Ok(())
    }

    /// Whether `found` is what the acknowledged calls made, and of the others any; if not, what is nearest.
    ///
    /// Clients change keys of their own only, so that the order of calls under way is of no matter.
    pub fn check(&self, found: &State) -> Result<()> {
        let calls: Vec<&Call> = self.under_way.values().collect();
        let mut nearest: Option<Vec<String>> = None;
        for choice in 0_u32..(1 << calls.len()) {
            let mut state = self.state.clone();
            for (at, call) in calls.iter().enumerate() {
                if choice & (1 << at) != 0 {
                    apply(call, &mut state);
                }
            }
            let differences = differences(&state, found);
            if differences.is_empty() {
                return check_parents(found);
            }
            if nearest.as_ref().is_none_or(|nearest| differences.len() < nearest.len()) {
                nearest = Some(differences);
            }
        }
        bail!("{}; under way: {calls:?}", nearest.unwrap_or_default().join("; "))
    }
}

fn check_parents(found: &State) -> Result<()> {
    for (key, snapshot) in found {
        let parent = found.get(&snapshot.parent);
        if !snapshot.parent.is_empty() && parent.is_none_or(|parent| parent.kind != Kind::Committed) {
            bail!("{key} has the parent {}, which is {parent:?}", snapshot.parent);
        }
    }
    Ok(())
}

/// The effect of a call. One under way may be without effect, when what it is about is not there.
fn apply(call: &Call, state: &mut State) {
    match call {
        Call::Create { key, parent, labels, view } => {
            let kind = if *view { Kind::View } else { Kind::Active };
            state.insert(key.clone(), Snapshot { kind, parent: parent.clone(), labels: labels.clone() });
        }
        Call::Commit { key, name, labels, .. } => {
            if let Some(active) = state.remove(key) {
                let (kind, labels) = (Kind::Committed, labels.clone());
                state.insert(name.clone(), Snapshot { kind, labels, ..active });
            }
        }
        Call::Remove { key } => drop(state.remove(key)),
        Call::Update { key, labels } => {
            if let Some(snapshot) = state.get_mut(key) {
                snapshot.labels.clone_from(labels);
            }
        }
        Call::Cleanup | Call::Deed(_) => {}
    }
}

fn differences(expected: &State, found: &State) -> Vec<String> {
    let missing = expected.iter().filter_map(|(key, wanted)| match found.get(key) {
        None => Some(format!("{key} is lost ({:?})", wanted.kind)),
        Some(there) if there != wanted => Some(format!("{key} is {there:?}, should be {wanted:?}")),
        Some(_) => None,
    });
    let extra = found.keys().filter(|key| !expected.contains_key(*key));
    missing.chain(extra.map(|key| format!("{key} is there, and nobody was told so"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(key: &str, parent: &str) -> Call {
        Call::Create { key: key.into(), parent: parent.into(), labels: Labels::new(), view: false }
    }

    fn commit(key: &str, name: &str) -> Call {
        Call::Commit { key: key.into(), name: name.into(), labels: Labels::new(), manifest: vec![] }
    }

    /// Calls that were answered, then calls that were not.
    fn expected(done: &[Call], under_way: &[Call]) -> Result<Expected> {
        let mut expected = Expected::default();
        for call in done {
            expected.take(Mark::Begin { client: 0, call: call.clone() })?;
            expected.take(Mark::Done { client: 0, refused: None })?;
        }
        for (client, call) in under_way.iter().enumerate() {
            expected.take(Mark::Begin { client, call: call.clone() })?;
        }
        Ok(expected)
    }

    fn state(snapshots: &[(&str, Kind, &str)]) -> State {
        let snapshots = snapshots.iter().map(|(key, kind, parent)| {
            let (kind, parent) = (*kind, (*parent).to_owned());
            ((*key).to_owned(), Snapshot { kind, parent, labels: Labels::new() })
        });
        snapshots.collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_and_a_call_under_way_is_whole_or_not_at_all() -> Result<()> {
        use Kind::{Active, Committed};
        let model = expected(&[create("a", ""), commit("a", "n"), create("b", "n")], &[commit("b", "m")])?;
        for (found, good) in [
            (state(&[("n", Committed, ""), ("b", Active, "n")]), true),
            (state(&[("n", Committed, ""), ("m", Committed, "n")]), true),
            (state(&[("n", Committed, ""), ("b", Active, "n"), ("m", Committed, "n")]), false),
            (state(&[("n", Committed, "")]), false),
            (state(&[("b", Active, "n")]), false),
            (state(&[("n", Active, ""), ("b", Active, "n")]), false),
            (state(&[("n", Committed, ""), ("b", Active, "n"), ("x", Active, "")]), false),
        ] {
            assert_eq!(model.check(&found).is_ok(), good, "{found:?}");
        }
        Ok(())
    }

    #[test]
    fn two_calls_under_way_are_independent_but_no_child_is_without_its_parent() -> Result<()> {
        use Kind::{Active, Committed};
        let under_way = [Call::Remove { key: "n".into() }, create("b", "n")];
        let model = expected(&[create("a", ""), commit("a", "n")], &under_way)?;
        for (found, good) in [
            (state(&[]), true),
            (state(&[("n", Committed, ""), ("b", Active, "n")]), true),
            (state(&[("n", Committed, "")]), true),
            (state(&[("b", Active, "n")]), false),
        ] {
            assert_eq!(model.check(&found).is_ok(), good, "{found:?}");
        }
        Ok(())
    }
}
