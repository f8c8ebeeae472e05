//! What an operator can choose in `[snapshots]`, at the engine.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use capsuled::{
    dirs::Dirs,
    snapshots::{
        Behaviour, Commit, Create, Environment, MountOption, OverlayOptions, Snapshots,
        model::{Key, LabelUpdate, Labels},
    },
    store::Store,
};

const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

fn engine(root: &Path, behaviour: Behaviour, options: &[&str]) -> (Snapshots, Dirs) {
    let dirs = Dirs::new(root);
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    let configured = options.iter().map(|option| MountOption::parse(option).unwrap()).collect();
    let overlay = OverlayOptions { configured, ..OverlayOptions::default() };
    (Snapshots::open(Environment { store, dirs: dirs.clone(), overlay, behaviour }).unwrap(), dirs)
}

fn create(key: &str, parent: &str, labels: &[(&str, &str)]) -> Create {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let (key, labels) = (Key::parse(key.to_owned()).unwrap(), Labels::parse(labels).unwrap());
    Create { key, parent: parent.to_owned(), labels }
}

fn commit(engine: &Snapshots, name: &str, key: &str) {
    let (name, key, parent) = (Key::parse(name.to_owned()).unwrap(), key.to_owned(), String::new());
    engine.commit(&Commit { name, key, parent, labels: Labels::default() }).unwrap();
}

#[test]
fn directories_stay_until_cleanup_where_removal_is_asynchronous() {
    for async_remove in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let (engine, dirs) = engine(root.path(), Behaviour { async_remove, ..Behaviour::default() }, &[]);
        engine.prepare(&create("kept", "", &[])).unwrap();
        engine.prepare(&create("removed", "", &[])).unwrap();
        engine.remove("removed").unwrap();
        assert!(engine.stat("removed").is_err());
        assert_eq!(dirs.upper(2).exists(), async_remove);
        // The key is free at once, and the directory of its new snapshot is another one.
        let again = engine.prepare(&create("removed", "", &[])).unwrap();
        assert_eq!(Path::new(&again[0].source), dirs.upper(3));
        engine.cleanup().unwrap();
        let left = [1, 2, 3].map(|id| dirs.upper(id).exists());
        assert_eq!(left, [true, false, true]);
    }
}

#[test]
fn the_upper_directory_is_told_and_never_stored() {
    let root = tempfile::tempdir().unwrap();
    let told = Behaviour { upperdir_label: true, ..Behaviour::default() };
    let (first, dirs) = engine(root.path(), told, &[]);
    first.prepare(&create("a", "", &[("l", "1")])).unwrap();
    commit(&first, "A", "a");
    first.prepare(&create("b", "A", &[])).unwrap();
    let upper = |id| dirs.upper(id).display().to_string();
    let label = |labels: &Labels| labels.as_map().get(UPPERDIR).cloned();
    assert_eq!(label(&first.stat("A").unwrap().labels), Some(upper(1)));
    let update = LabelUpdate { given: BTreeMap::new(), paths: Vec::new() };
    assert_eq!(label(&first.update("b", &update).unwrap().labels), Some(upper(2)));
    let mut listed = Vec::new();
    first
        .walk(|info| {
            listed.push(label(&info.labels));
            true
        })
        .unwrap();
    assert_eq!(listed, [Some(upper(1)), Some(upper(2))]);
    drop(first);
    let (second, _) = engine(root.path(), Behaviour::default(), &[]);
    assert_eq!(label(&second.stat("A").unwrap().labels), None);
}

#[test]
fn privileged_ids_are_remapped_where_containerd_can_mount_them() {
    let mapped = [
        ("containerd.io/snapshot/uidmapping", "0:5000:10"),
        ("containerd.io/snapshot/gidmapping", "0:6000:10"),
    ];
    for remap_ids in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let behaviour = Behaviour { remap_ids, ..Behaviour::default() };
        let (engine, dirs) = engine(root.path(), behaviour, &["volatile"]);
        engine.prepare(&create("a", "", &[])).unwrap();
        commit(&engine, "A", "a");
        let mounts = engine.prepare(&create("b", "A", &mapped)).unwrap();
        assert_eq!(mounts, engine.mounts("b").unwrap());
        let asked = mounts[0].options.iter().filter(|option| option.contains("map=")).count();
        assert_eq!(asked, if remap_ids { 2 } else { 0 });
        assert!(mounts[0].options.contains(&"volatile".to_owned()));
        let owner = fs::metadata(dirs.upper(2)).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (5000, 6000), "changing owners needs root");
        assert_eq!(engine.prepare(&create("c", "", &[])).unwrap()[0].options, ["rw", "rbind"]);
    }
}
