//! The reference: what a snapshotter is, in the fewest words.

use std::collections::BTreeMap;

use capsuled::snapshots::model::Kind;
use proptest::prelude::*;

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub kind: Kind,
    pub parent: String,
    pub label: String,
}

/// Snapshots by key or name.
pub type State = BTreeMap<String, Snapshot>;

/// A change.
#[derive(Clone, Debug)]
pub enum Op {
    Prepare { key: String, parent: String, label: String },
    View { key: String, parent: String, label: String },
    Commit { name: String, key: String, label: String },
    Remove { key: String },
    Update { key: String, label: String },
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    AlreadyExists,
    ParentNotCommitted,
    NotActive,
    HasChildren,
}

/// The reference snapshotter.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub state: State,
}

impl Model {
    /// Applies a change, or says why not and changes nothing.
    pub fn apply(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Prepare { key, parent, label } => self.create(Kind::Active, key, parent, label),
            Op::View { key, parent, label } => self.create(Kind::View, key, parent, label),
            Op::Commit { name, key, label } => self.commit(name, key, label),
            Op::Remove { key } => {
                self.state.get(key).ok_or(Refusal::NotFound)?;
                if self.state.values().any(|snapshot| snapshot.parent == *key) {
                    return Err(Refusal::HasChildren);
                }
                self.state.remove(key);
                Ok(())
            }
            Op::Update { key, label } => {
                self.state.get_mut(key).ok_or(Refusal::NotFound)?.label.clone_from(label);
                Ok(())
            }
        }
    }

    fn create(&mut self, kind: Kind, key: &str, parent: &str, label: &str) -> Result<(), Refusal> {
        if !parent.is_empty() {
            let parent = self.state.get(parent).ok_or(Refusal::NotFound)?;
            if parent.kind != Kind::Committed {
                return Err(Refusal::ParentNotCommitted);
            }
        }
        if self.state.contains_key(key) {
            return Err(Refusal::AlreadyExists);
        }
        let snapshot = Snapshot { kind, parent: parent.to_owned(), label: label.to_owned() };
        self.state.insert(key.to_owned(), snapshot);
        Ok(())
    }

    fn commit(&mut self, name: &str, key: &str, label: &str) -> Result<(), Refusal> {
        let snapshot = self.state.get(key).ok_or(Refusal::NotFound)?.clone();
        if self.state.contains_key(name) {
            return Err(Refusal::AlreadyExists);
        }
        if snapshot.kind != Kind::Active {
            return Err(Refusal::NotActive);
        }
        self.state.remove(key);
        let committed = Snapshot { kind: Kind::Committed, label: label.to_owned(), ..snapshot };
        self.state.insert(name.to_owned(), committed);
        Ok(())
    }
}

/// Few names, so that operations meet: keys and names share one space.
fn name() -> impl Strategy<Value = String> {
    (0..6_u8).prop_map(|n| format!("ns/{n}/name"))
}

fn parent() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 5 => name()]
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("x".to_owned()), Just("y".to_owned())]
}

/// Any operation, those that build weighing more.
pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (name(), parent(), label()).prop_map(|(key, parent, label)| Op::Prepare { key, parent, label }),
        2 => (name(), parent(), label()).prop_map(|(key, parent, label)| Op::View { key, parent, label }),
        5 => (name(), name(), label()).prop_map(|(name, key, label)| Op::Commit { name, key, label }),
        3 => name().prop_map(|key| Op::Remove { key }),
        1 => (name(), label()).prop_map(|(key, label)| Op::Update { key, label }),
    ]
}
