//! Directories and records that do not fit: those that a power cut took, since it can come after a snapshot's record
//! reached the disk and before the directory did; and those that an older copy of the store does not know.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::PathBuf,
};

use capsuled::{
    dirs::Dirs,
    snapshots::{SnapshotError, Snapshots},
    store::Store,
};

use crate::{
    check_directories, environment, in_memory, open,
    ops::{Op, create, observe, perform},
};

fn mode_and_owner(path: PathBuf) -> (u32, u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid())
}

#[test]
fn directories_that_a_power_cut_took_are_made_anew() {
    let root = in_memory();
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    let engine = open(store.clone(), &dirs);
    engine.prepare(&create("base", "", "")).unwrap();
    chown(dirs.upper(1), Some(7), Some(8)).unwrap();
    let (name, key, label) = ("layer".to_owned(), "base".to_owned(), "x".to_owned());
    perform(&engine, &Op::Commit { name, key, parent: String::new(), label }).unwrap();
    for key in ["kept", "taken"] {
        engine.prepare(&create(key, "layer", "")).unwrap();
    }
    engine.view(&create("seen", "layer", "")).unwrap();
    engine.prepare(&create("first", "", "")).unwrap();
    fs::write(dirs.upper(2).join("file"), "kept").unwrap();
    let before = observe(&engine);
    drop(engine);
    for id in [3, 4, 5] {
        fs::remove_dir_all(dirs.upper(id).parent().unwrap()).unwrap();
    }
    let engine = open(store, &dirs);
    assert_eq!(observe(&engine), before);
    check_directories(&engine, &dirs);
    assert_eq!(fs::read(dirs.upper(2).join("file")).unwrap(), b"kept");
    assert_eq!(mode_and_owner(dirs.upper(3)), (0o755, 7, 8));
    assert_eq!(mode_and_owner(dirs.work(3)), (0o711, 0, 0));
    assert_eq!(mode_and_owner(dirs.upper(4)), (0o755, 7, 8));
    assert!(!dirs.work(4).exists(), "a view has no work directory");
    assert_eq!(mode_and_owner(dirs.upper(5)), (0o755, 0, 0));
}

#[test]
fn an_older_copy_of_the_store_removes_nothing() {
    let root = in_memory();
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    let engine = open(store, &dirs);
    engine.prepare(&create("old", "", "")).unwrap();
    drop(engine);
    let copy = root.path().join("copy");
    fs::copy(dirs.metadata(), &copy).unwrap();
    let engine = open(Store::open(&dirs.metadata()).unwrap(), &dirs);
    for number in 0..70 {
        engine.prepare(&create(&format!("new-{number}"), "", "")).unwrap();
    }
    drop(engine);
    fs::rename(&copy, dirs.metadata()).unwrap();
    let count = || fs::read_dir(dirs.snapshots()).unwrap().count();
    let store = Store::open(&dirs.metadata()).unwrap();
    let error = Snapshots::open(environment(store.clone(), &dirs, false)).unwrap_err();
    let told = matches!(error, SnapshotError::NewerDirectories { newest: 71, next: 2, .. });
    assert!(told && count() == 71, "{error}");
    // One less can be what a crash left: a commit takes up to 64 of them with it.
    for id in 65..=71 {
        fs::remove_dir_all(dirs.upper(id).parent().unwrap()).unwrap();
    }
    Snapshots::open(environment(store.clone(), &dirs, false)).map(drop).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(count(), 1);
}

#[test]
fn what_was_removed_goes_after_the_start() {
    let root = in_memory();
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    let engine = Snapshots::open(environment(store.clone(), &dirs, true)).unwrap();
    engine.prepare(&create("gone", "", "")).unwrap();
    engine.remove("gone").unwrap();
    drop(engine);
    fs::create_dir(dirs.snapshots().join("new-0")).unwrap();
    let engine = Snapshots::open(environment(store, &dirs, true)).unwrap();
    assert!(dirs.upper(1).exists() && !dirs.snapshots().join("new-0").exists());
    let (removing, leftovers) = engine.leftovers().unwrap();
    engine.prepare(&create("made", "", "")).unwrap();
    removing.remove_leftovers(&leftovers);
    assert_eq!(fs::read_dir(dirs.snapshots()).unwrap().count(), 1);
    check_directories(&engine, &dirs);
}
