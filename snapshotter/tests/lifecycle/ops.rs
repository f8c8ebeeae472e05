//! Changes, made at random or by a plan, to the engine and to the reference model alike.

use std::collections::BTreeMap;

use capsuled::snapshots::{
    Commit, Create, SnapshotError, Snapshots,
    model::{Key, Kind as EngineKind, LabelUpdate, Labels},
};
use proptest::prelude::*;

use super::reference::{Kind, Reference, Refusal};

/// A change. `label` is the value of the one label that a snapshot has.
#[derive(Clone, Debug)]
pub enum Op {
    Prepare { key: String, parent: String, label: String },
    View { key: String, parent: String, label: String },
    Commit { name: String, key: String, parent: String, label: String },
    Remove { key: String },
    Update { key: String, label: String },
    Cleanup,
}

/// Kind, parent and label of snapshots by key or name.
pub type State = BTreeMap<String, (Kind, String, String)>;

fn engine_labels(label: &str) -> Labels {
    Labels::parse([("l".to_owned(), label.to_owned())]).unwrap()
}

fn key_of(text: &str) -> Key {
    Key::parse(text.to_owned()).unwrap()
}

pub fn create(key: &str, parent: &str, label: &str) -> Create {
    Create { key: key_of(key), parent: parent.to_owned(), labels: engine_labels(label) }
}

/// Performs a change on the engine.
pub fn perform(engine: &Snapshots, op: &Op) -> Result<(), SnapshotError> {
    match op {
        Op::Prepare { key, parent, label } => engine.prepare(&create(key, parent, label)).map(drop),
        Op::View { key, parent, label } => engine.view(&create(key, parent, label)).map(drop),
        Op::Commit { name, key, parent, label } => {
            let (name, key, parent) = (key_of(name), key.clone(), parent.clone());
            engine.commit(&Commit { name, key, parent, labels: engine_labels(label) })
        }
        Op::Remove { key } => engine.remove(key),
        Op::Update { key, label } => {
            let given = engine_labels(label).into_map();
            engine.update(key, &LabelUpdate { given, paths: Vec::new() }).map(drop)
        }
        Op::Cleanup => engine.cleanup(),
    }
}

/// Applies a change to the model, or says why not and changes nothing.
pub fn apply(model: &mut Reference, op: &Op) -> Result<(), Refusal> {
    let labels = |label: &str| [("l".to_owned(), label.to_owned())].into();
    match op {
        Op::Prepare { key, parent, label } => model.create(Kind::Active, key, parent, labels(label)),
        Op::View { key, parent, label } => model.create(Kind::View, key, parent, labels(label)),
        Op::Commit { name, key, parent, label } => model.commit(name, key, parent, labels(label)),
        Op::Remove { key } => model.remove(key),
        Op::Update { key, label } => model.update(key, labels(label), &[]).map(drop),
        Op::Cleanup => Ok(()),
    }
}

/// What the engine refused for, in the model's words; `None` for a failure of its storage.
pub fn refusal(error: &SnapshotError) -> Option<Refusal> {
    match error {
        SnapshotError::NotFound { .. } => Some(Refusal::NotFound),
        SnapshotError::AlreadyExists { .. } => Some(Refusal::AlreadyExists),
        SnapshotError::ParentNotCommitted { .. } | SnapshotError::OtherParent { .. } => {
            Some(Refusal::InvalidArgument)
        }
        SnapshotError::NotActive { .. }
        | SnapshotError::HasChildren { .. }
        | SnapshotError::RebaseOnUncommitted { .. } => Some(Refusal::FailedPrecondition),
        _ => None,
    }
}

/// What the engine holds.
pub fn observe(engine: &Snapshots) -> State {
    let mut state = State::new();
    engine
        .walk(|info| {
            let kind = match info.kind {
                EngineKind::Active => Kind::Active,
                EngineKind::View => Kind::View,
                EngineKind::Committed => Kind::Committed,
            };
            let label = info.labels.as_map().get("l").cloned().unwrap_or_default();
            state.insert(info.name, (kind, info.parent, label));
            true
        })
        .unwrap();
    state
}

/// What the model holds.
pub fn held(model: &Reference) -> State {
    let label = |labels: &BTreeMap<String, String>| labels.get("l").cloned().unwrap_or_default();
    let snapshots = model.snapshots.iter();
    snapshots.map(|(key, s)| (key.clone(), (s.kind, s.parent.clone(), label(&s.labels)))).collect()
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
    let rebase = prop_oneof![3 => Just(String::new()), 1 => name()];
    prop_oneof![
        8 => (name(), parent(), label()).prop_map(|(key, parent, label)| Op::Prepare { key, parent, label }),
        4 => (name(), parent(), label()).prop_map(|(key, parent, label)| Op::View { key, parent, label }),
        10 => (name(), name(), rebase, label())
            .prop_map(|(name, key, parent, label)| Op::Commit { name, key, parent, label }),
        6 => name().prop_map(|key| Op::Remove { key }),
        2 => (name(), label()).prop_map(|(key, label)| Op::Update { key, label }),
        1 => Just(Op::Cleanup),
    ]
}
