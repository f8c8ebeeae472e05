//! The disk dies at every point of a workload: what was acknowledged is there, what was under way is there whole or
//! not at all, and the directories fit.

use std::fs;

use capsuled::{dirs::Dirs, store::Store};

use super::{Model, Op, check_directories, faulty::Faulty, in_memory, observe, open, perform, refusal};

/// Every kind of change, with the refusals between.
fn workload() -> Vec<Op> {
    let own = |text: &str| text.to_owned();
    let prepare = |key, parent| Op::Prepare { key: own(key), parent: own(parent), label: own("x") };
    let view = |key, parent| Op::View { key: own(key), parent: own(parent), label: own("") };
    let commit = |name, key| Op::Commit { name: own(name), key: own(key), label: own("y") };
    let remove = |key| Op::Remove { key: own(key) };
    vec![
        prepare("a", ""),
        commit("A", "a"),
        prepare("b", "A"),
        view("v", "A"),
        remove("A"),
        Op::Update { key: own("b"), label: own("z") },
        commit("B", "b"),
        commit("B", "v"),
        prepare("c", "B"),
        remove("v"),
        prepare("d", "B"),
        commit("D", "d"),
        remove("c"),
        Op::Update { key: own("B"), label: own("") },
        remove("D"),
        remove("B"),
        prepare("a", "A"),
    ]
}

/// Runs the workload on a disk that dies; gives the model of all that was acknowledged and the operation under way.
fn run_until_death(disk: &Faulty, dirs: &Dirs) -> (Model, Option<Op>) {
    let mut model = Model::default();
    let Ok(store) = Store::with_backend(disk.clone()) else { return (model, None) };
    let environment = capsuled::snapshots::Environment {
        store,
        dirs: dirs.clone(),
        overlay: capsuled::snapshots::OverlayOptions::default(),
        behaviour: capsuled::snapshots::Behaviour::default(),
    };
    let Ok(engine) = capsuled::snapshots::Snapshots::open(environment) else { return (model, None) };
    for op in workload() {
        match perform(&engine, &op) {
            Ok(()) => model.apply(&op).unwrap(),
            Err(error) => match refusal(&error) {
                Some(refusal) => assert_eq!(model.apply(&op), Err(refusal)),
                None => return (model, Some(op)),
            },
        }
    }
    (model, None)
}

fn fresh_dirs(root: &tempfile::TempDir) -> Dirs {
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    dirs
}

/// A death of the process leaves directories that no record names; here they are planted.
fn plant_leftovers(dirs: &Dirs) {
    for name in ["new-0", "new-7", "98/fs", "99"] {
        fs::create_dir_all(dirs.snapshots().join(name)).unwrap();
    }
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    // An empty store that is whole: a new one is made under another name (`Store::open`).
    let empty = Faulty::new(Vec::new(), u64::MAX);
    drop(Store::with_backend(empty.clone()).unwrap());
    let empty = empty.after_power_cut(0);

    let whole = Faulty::new(empty.clone(), u64::MAX);
    let root = in_memory();
    let (_, unfinished) = run_until_death(&whole, &fresh_dirs(&root));
    assert!(unfinished.is_none());
    let points = whole.done();
    assert!(points > 100, "the workload makes {points} changes");

    for budget in 0..points {
        for choice in 0..8 {
            let root = in_memory();
            let dirs = fresh_dirs(&root);
            let disk = Faulty::new(empty.clone(), budget);
            let (model, under_way) = run_until_death(&disk, &dirs);
            plant_leftovers(&dirs);
            let image = Faulty::new(disk.after_power_cut(choice), u64::MAX);
            let case = format!("death after {budget} of {points}, choice {choice}, during {under_way:?}");
            let store = Store::with_backend(image).unwrap_or_else(|error| panic!("{case}: {error}"));
            let engine = open_dirs_checked(store, &dirs);
            let found = observe(&engine);
            let mut done = model.clone();
            if let Some(op) = &under_way {
                done.apply(op).unwrap();
            }
            assert!(found == model.state || found == done.state, "{case}: {found:?}");
        }
    }
}

fn open_dirs_checked(store: Store, dirs: &Dirs) -> capsuled::snapshots::Snapshots {
    let engine = open(store, dirs);
    check_directories(&engine, dirs);
    engine
}
