//! The engine against a reference model: random operations, and crashes at every point of the storage.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod crash;
mod faulty;
mod lost;
mod missing;
mod ops;
mod random;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../rig/mod.rs"]
mod rig;
mod watched;

use capsuled::{
    dirs::Dirs,
    snapshots::{Behaviour, Environment, OverlayOptions, Snapshots},
    store::Store,
};

/// A directory on a tmpfs: Commit syncs the whole file system that it is on, and these tests commit thousands of times.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// What an engine is opened with.
fn environment(store: Store, dirs: &Dirs, async_remove: bool) -> Environment {
    let behaviour = Behaviour { async_remove, ..Behaviour::default() };
    Environment { store, dirs: dirs.clone(), overlay: OverlayOptions::default(), behaviour }
}

/// Opens the engine on a store, and removes what has no snapshot, as the daemon does.
fn open(store: Store, dirs: &Dirs) -> Snapshots {
    dirs.create().unwrap();
    let engine = Snapshots::open(environment(store, dirs, false)).unwrap();
    engine.cleanup().unwrap();
    engine
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
