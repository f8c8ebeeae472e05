//! Directories that a power cut took: it can come after a snapshot's record reached the disk and before the directory
//! did, since the store waits for the former only.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::PathBuf,
};

use capsuled::{dirs::Dirs, store::Store};

use crate::{
    check_directories, in_memory, open,
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
