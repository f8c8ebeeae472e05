//! Directories that are gone when the engine starts: their snapshots are refused by name, and can be removed.

use std::{fs, os::unix::fs::symlink};

use capsuled::{
    dirs::Dirs,
    snapshots::{SnapshotError, Snapshots},
    store::Store,
};

use super::{
    in_memory, open,
    ops::{Op, create, observe, perform},
};

/// Two images of one and two layers, and something on each: ids 1 to 7 in this order.
fn fill(engine: &Snapshots) {
    let own = |text: &str| text.to_owned();
    for (key, parent) in [("whole", ""), ("gone", ""), ("top", "Gone")] {
        engine.prepare(&create(key, parent, "")).unwrap();
        let name = key[..1].to_uppercase() + &key[1..];
        perform(engine, &Op::Commit { name, key: own(key), parent: own(""), label: own("") }).unwrap();
    }
    for (key, parent) in [("a", "Whole"), ("b", "Top"), ("c", "Whole"), ("d", "Whole")] {
        engine.prepare(&create(key, parent, "")).unwrap();
    }
}

fn lost<T: std::fmt::Debug>(result: Result<T, SnapshotError>) -> String {
    match result {
        Err(SnapshotError::LostDirectory { key, path }) => format!("{key}: {}", path.display()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_gone_is_refused_by_name_and_can_be_removed() {
    let root = in_memory();
    let dirs = Dirs::new(root.path());
    let store = Store::with_backend(redb::backends::InMemoryBackend::new()).unwrap();
    fill(&open(store.clone(), &dirs));
    fs::remove_dir_all(dirs.upper(2)).unwrap(); // Gone
    fs::remove_dir(dirs.work(6)).unwrap(); // c
    fs::remove_dir(dirs.upper(7)).unwrap(); // d: a link is no directory, wherever it leads
    symlink("/", dirs.upper(7)).unwrap();

    let engine = open(store, &dirs);
    assert_eq!(observe(&engine).len(), 7);
    let gone = dirs.upper(2).display().to_string();
    assert_eq!(lost(engine.mounts("b")), format!("b: {gone}"));
    assert_eq!(lost(engine.prepare(&create("e", "Gone", ""))), format!("Gone: {gone}"));
    assert_eq!(lost(engine.view(&create("e", "Top", ""))), format!("Top: {gone}"));
    assert_eq!(lost(engine.mounts("c")), format!("c: {}", dirs.work(6).display()));
    assert_eq!(lost(engine.mounts("d")), format!("d: {}", dirs.upper(7).display()));
    assert_eq!(lost(engine.usage("d")), format!("d: {}", dirs.upper(7).display()));
    let commit =
        Op::Commit { name: "D".to_owned(), key: "d".to_owned(), parent: String::new(), label: String::new() };
    assert_eq!(lost(perform(&engine, &commit)), format!("d: {}", dirs.upper(7).display()));

    // The others are served, and nothing was made anew.
    engine.mounts("a").unwrap();
    engine.prepare(&create("e", "Whole", "")).unwrap();
    assert!(!dirs.upper(2).exists() && !dirs.work(6).exists());

    for key in ["b", "Top", "Gone", "c", "d", "a", "e", "Whole"] {
        engine.remove(key).unwrap();
    }
    engine.cleanup().unwrap();
    assert_eq!(fs::read_dir(dirs.snapshots()).unwrap().count(), 0);
    assert!(fs::read_dir("/").unwrap().count() > 0);
}
