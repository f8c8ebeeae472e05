//! The engine against a reference model: random operations, and crashes at every point of the storage.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod crash;
mod faulty;
mod model;
mod random;
mod watched;

use capsuled::{
    dirs::Dirs,
    snapshots::{
        Behaviour, Commit, Create, Environment, OverlayOptions, SnapshotError, Snapshots,
        model::{Key, LabelUpdate, Labels},
    },
    store::Store,
};
use model::{Model, Op, Refusal, State};

/// A directory on a tmpfs: Commit syncs the whole file system that it is on, and these tests commit thousands of times.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// Opens the engine on a store.
fn open(store: Store, dirs: &Dirs) -> Snapshots {
    dirs.create().unwrap();
    let (overlay, behaviour) = (OverlayOptions::default(), Behaviour::default());
    Snapshots::open(Environment { store, dirs: dirs.clone(), overlay, behaviour }).unwrap()
}

fn labels(label: &str) -> Labels {
    Labels::parse([("l".to_owned(), label.to_owned())]).unwrap()
}

fn create(key: &str, parent: &str, label: &str) -> Create {
    Create { key: Key::parse(key.to_owned()).unwrap(), parent: parent.to_owned(), labels: labels(label) }
}

/// Performs an operation of the model on the engine.
fn perform(engine: &Snapshots, op: &Op) -> Result<(), SnapshotError> {
    match op {
        Op::Prepare { key, parent, label } => engine.prepare(&create(key, parent, label)).map(drop),
        Op::View { key, parent, label } => engine.view(&create(key, parent, label)).map(drop),
        Op::Commit { name, key, label } => {
            let name = Key::parse(name.clone()).unwrap();
            let (key, parent) = (key.clone(), String::new());
            engine.commit(&Commit { name, key, parent, labels: labels(label) })
        }
        Op::Remove { key } => engine.remove(key),
        Op::Update { key, label } => {
            engine.update(key, &LabelUpdate::parse(labels(label), Vec::new()).unwrap()).map(drop)
        }
    }
}

/// What the engine refused for, in the model's words; `None` for a failure of its storage.
fn refusal(error: &SnapshotError) -> Option<Refusal> {
    match error {
        SnapshotError::NotFound { .. } => Some(Refusal::NotFound),
        SnapshotError::AlreadyExists { .. } => Some(Refusal::AlreadyExists),
        SnapshotError::ParentNotCommitted { .. } => Some(Refusal::ParentNotCommitted),
        SnapshotError::NotActive { .. } => Some(Refusal::NotActive),
        SnapshotError::HasChildren { .. } => Some(Refusal::HasChildren),
        _ => None,
    }
}

/// What the engine holds, in the model's words.
fn observe(engine: &Snapshots) -> State {
    let mut state = State::new();
    engine
        .walk(|info| {
            let label = info.labels.as_map().get("l").cloned().unwrap_or_default();
            state.insert(info.name, model::Snapshot { kind: info.kind, parent: info.parent, label });
            true
        })
        .unwrap();
    state
}

/// The directories on disk are exactly those of the snapshots, and the mounts of each lead to directories that are
/// there.
fn check_directories(engine: &Snapshots, dirs: &Dirs) {
    let mut snapshots = 0;
    let mut mountable = Vec::new();
    engine
        .walk(|info| {
            snapshots += 1;
            if info.kind != capsuled::snapshots::model::Kind::Committed {
                mountable.push(info.name);
            }
            true
        })
        .unwrap();
    assert_eq!(std::fs::read_dir(dirs.snapshots()).unwrap().count(), snapshots);
    for key in mountable {
        for mount in engine.mounts(&key).unwrap() {
            let named = mount.options.iter().filter_map(|option| option.split_once('='));
            let paths =
                named.filter(|(name, _)| name.ends_with("dir")).flat_map(|(_, paths)| paths.split(':'));
            let source = Some(mount.source.as_str()).filter(|_| mount.kind == "bind");
            for path in paths.chain(source) {
                assert!(std::path::Path::new(path).is_dir(), "{key}: {path}");
            }
        }
    }
}
