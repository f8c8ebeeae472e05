//! Merging and comparing, in tables, and beside the kernel's overlayfs.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use overlayfs_utils::{DetachedMount, LayerDir, LayersBy, Lower, OverlayPlan};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::{
    compare::{Pair, Verdict, plan_pair, plan_pairs},
    merge::{Found, Listing, Shown, plan_directory},
    *,
};

fn entry(name: &str, kind: Kind) -> Entry {
    Entry {
        path: name.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        ctime: (0, 0),
        xattrs: Attributes::new(),
        inode: (0, 0),
        sha256: None,
    }
}

/// `f` a file, `d` a directory, `o` an opaque one, `w` a whiteout; all of the name `n`.
fn listing(what: char) -> Listing {
    let found = match what {
        'f' => Found::Entry { entry: entry("n", Kind::File { size: 1 }), opaque: false },
        'd' | 'o' => Found::Entry { entry: entry("n", Kind::Directory), opaque: what == 'o' },
        'w' => Found::Whiteout,
        _ => return Listing::new(),
    };
    BTreeMap::from([(b"n".to_vec(), found)])
}

#[test]
fn the_topmost_decides_and_directories_merge() {
    for (stack, want) in [
        ("f", Some(vec![0])),
        ("-f", Some(vec![1])),
        ("wf", None),
        ("wd", None),
        ("fwd", Some(vec![0])),
        ("dd", Some(vec![0, 1])),
        ("d-d", Some(vec![0, 2])),
        ("od", Some(vec![0])),
        ("dod", Some(vec![0, 1])),
        ("dwd", Some(vec![0])),
        ("dfd", Some(vec![0])),
        ("fdd", Some(vec![0])),
    ] {
        let listings = stack.chars().map(listing).enumerate().collect();
        let shown = plan_directory(listings);
        assert_eq!(shown.get(&b"n"[..]).map(|s| s.layers.clone()), want, "{stack}");
    }
}

#[test]
fn pairs_are_judged_without_reading_where_that_is_enough() {
    let shown = |entry: Entry, layers: &[usize]| Some(Shown { entry, layers: layers.to_vec() });
    let file = |size, inode| Entry { inode: (1, inode), ..entry("n", Kind::File { size }) };
    let directory = |inode| Entry { inode: (1, inode), ..entry("n", Kind::Directory) };
    let other = |entry: Entry| Entry { mode: 0o600, ..entry };
    for (from, to, want) in [
        (shown(file(1, 1), &[0]), None, Verdict::Differs { content: false }),
        (shown(file(1, 1), &[0]), shown(file(1, 1), &[1]), Verdict::Same),
        (shown(file(1, 1), &[0]), shown(file(1, 2), &[1]), Verdict::Read { differs: false }),
        (shown(file(1, 1), &[0]), shown(other(file(1, 2)), &[1]), Verdict::Read { differs: true }),
        (shown(file(1, 1), &[0]), shown(file(2, 2), &[1]), Verdict::Differs { content: true }),
        (shown(directory(1), &[0, 1]), shown(directory(1), &[0, 1]), Verdict::Same),
        (shown(directory(1), &[0, 1]), shown(directory(1), &[0]), Verdict::Inside),
        (shown(directory(1), &[0]), shown(other(directory(2)), &[1]), Verdict::Differs { content: false }),
        (shown(directory(1), &[0]), shown(file(0, 2), &[1]), Verdict::Differs { content: false }),
    ] {
        let pair = Pair { sides: [from, to] };
        assert_eq!(plan_pair(&pair), want, "{pair:?}");
    }
}

#[test]
fn pairs_come_in_the_order_of_names() {
    let side = |names: &[&str]| -> BTreeMap<Vec<u8>, Shown> {
        let shown = |name: &&str| {
            let shown = Shown { entry: entry(name, Kind::Fifo), layers: vec![0] };
            (name.as_bytes().to_vec(), shown)
        };
        names.iter().map(shown).collect()
    };
    let pairs = plan_pairs(side(&["a", "c"]), side(&["a", "b", "d"]));
    let names: Vec<_> = pairs
        .map(|pair| {
            let has = pair.sides.each_ref().map(Option::is_some);
            let path = pair.sides.into_iter().flatten().next().map(|s| s.entry.path);
            (String::from_utf8(path.unwrap()).unwrap(), has)
        })
        .collect();
    let want = [("a", [true, true]), ("b", [false, true]), ("c", [true, false]), ("d", [false, true])];
    assert_eq!(names, want.map(|(name, has)| (name.to_owned(), has)));
}

#[test]
fn reading_ends_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = calls.clone();
    let mut layers =
        Layers::new(false).until(move || counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 3);
    let top = [layers.add(dir.path()).unwrap()];
    let mut seen = 0;
    let ended = read_entries(&layers, &top, true, |_| {
        seen += 1;
        true
    });
    assert!(matches!(ended, Err(TreeError::GivenUp)), "{ended:?}");
    assert_eq!(seen, 1, "the root, and not the file that was being hashed");
}

/// Something at a path of a layer.
#[derive(Debug, Clone)]
enum Made {
    File(u8, bool),
    Directory { opaque: bool, mode: u32 },
    Whiteout,
    Symlink,
}

fn layers() -> impl Strategy<Value = Vec<Vec<(String, Made)>>> {
    let path =
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c-"]), 1..4).prop_map(|v| v.join("/"));
    let made = prop_oneof![
        3 => (0..3_u8, any::<bool>()).prop_map(|(content, attribute)| Made::File(content, attribute)),
        4 => (any::<bool>(), prop::sample::select(vec![0o755, 0o700]))
            .prop_map(|(opaque, mode)| Made::Directory { opaque, mode }),
        3 => Just(Made::Whiteout),
        1 => Just(Made::Symlink),
    ];
    prop::collection::vec(prop::collection::vec((path, made), 0..9), 1..5)
}

/// Makes one layer; what does not fit to what is there is left out.
fn make(root: &Path, entries: &[(String, Made)], opaque_root: bool) {
    fs::create_dir(root).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let mark = |path: &Path| {
        setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).expect("this test needs root");
    };
    if opaque_root {
        mark(root);
    }
    for (path, made) in entries {
        let at = root.join(path);
        if fs::create_dir_all(at.parent().unwrap()).is_err() || fs::symlink_metadata(&at).is_ok() {
            continue;
        }
        match made {
            Made::File(content, attribute) => {
                fs::write(&at, [*content]).unwrap();
                if *attribute {
                    setxattr(&at, "user.x", &[*content], XattrFlags::empty()).unwrap();
                }
            }
            Made::Directory { opaque, mode } => {
                fs::create_dir(&at).unwrap();
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
                if *opaque {
                    mark(&at);
                }
            }
            Made::Whiteout => {
                mknodat(CWD, &at, FileType::CharacterDevice, Mode::empty(), 0).expect("this test needs root");
            }
            Made::Symlink => symlink("../a", &at).unwrap(),
        }
    }
}

/// What of an entry does not depend on where it is stored.
fn seen(entry: Entry) -> (Vec<u8>, Entry) {
    (entry.path.clone(), Entry { inode: (0, 0), ctime: (0, 0), ..entry })
}

fn read(layers: &Layers, top: &[usize]) -> Vec<(Vec<u8>, Entry)> {
    let mut all = Vec::new();
    read_entries(layers, top, true, |entry| {
        all.push(seen(entry));
        true
    })
    .unwrap();
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn privileged_what_layers_show_is_what_the_kernel_shows(
        layers in layers(),
        opaque_root in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let at = |i: usize| dir.path().join(i.to_string());
        let mut open = Layers::new(false);
        let mut top = Vec::new();
        for (i, entries) in layers.iter().enumerate() {
            make(&at(i), entries, opaque_root && i == 0);
            top.push(open.add(&at(i)).unwrap());
        }
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let dirs: Vec<_> = (0..layers.len()).map(|i| LayerDir::open(&at(i)).unwrap()).collect();
        let empty = LayerDir::open(&empty).unwrap();
        let plan = OverlayPlan::ro(dirs.iter().map(Lower::Dir).collect(), &empty).unwrap();
        let mount = DetachedMount::overlay(&plan, LayersBy::Path, "test").expect("this test needs root");
        let mounted = open.add_open("overlay".into(), mount.open_root().unwrap().into());
        let (ours, kernels) = (read(&open, &top), read(&open, &[mounted]));
        prop_assert_eq!(&ours, &kernels);

        // What differs from a part of the layers is what differs between the two listings.
        let part = &top[cut.index(top.len())..];
        let (mut changed, below) = (BTreeMap::new(), read(&open, part));
        read_changes(&open, part, &top, |change| {
            let path = change.from.iter().chain(&change.to).map(|e| e.path.clone()).next().unwrap();
            let sides = [change.from.is_some(), change.to.is_some()];
            changed.insert(path, (sides, change.content_differs));
            true
        })
        .unwrap();
        let (below, ours): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (below.into_iter().collect(), ours.into_iter().collect());
        let paths = below.keys().chain(ours.keys());
        let sides = |path: &Vec<u8>| (below.get(path), ours.get(path));
        let want: BTreeMap<_, _> = paths
            .filter(|path| match sides(path) {
                (Some(a), Some(b)) if path.is_empty() => Entry { mtime: b.mtime, ..a.clone() } != *b,
                (a, b) => a != b,
            })
            .map(|path| {
                let (a, b) = sides(path);
                let sum = |e: Option<&Entry>| e.and_then(|e| e.sha256);
                let content = sum(a).is_some() && sum(b).is_some() && sum(a) != sum(b);
                (path.clone(), ([a.is_some(), b.is_some()], content))
            })
            .collect();
        prop_assert_eq!(changed, want);
    }
}
