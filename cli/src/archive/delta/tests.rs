//! Random trees on disk, and what a layer over one makes of it. No root needed.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, XattrFlags, mkfifoat, setxattr};
use sha2::{Digest, Sha256};

use super::*;
use crate::archive::{plan, stream, walk};

const OPTIONS: Options<'static> = Options { keep_owner: false, mtime: 1_700_000_000, declaration: None };

/// What an unpacker makes of layers.
type Tree = BTreeMap<Vec<u8>, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: char,
    content: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    xattrs: Attributes,
}

/// Applies a layer as the OCI image specification says (`layer.md`, "Applying Changesets"), and as strictly as containerd: what
/// lies in a directory comes after it, and a hard link leads to a file of the same layer.
fn apply(below: &Tree, layer: &[u8]) -> Tree {
    let mut tree = below.clone();
    let mut own = Tree::new();
    for entry in tar::Archive::new(layer).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        if at > 0 {
            let above = own.get(&path[..at - 1]).expect("the directory comes before, in the same layer");
            assert_eq!(above.kind, '5');
        }
        if let Some(name) = path[at..].strip_prefix(b".wh.") {
            let gone = [&path[..at], name].concat();
            assert!(tree.contains_key(&gone), "a whiteout of nothing");
            remove(&mut tree, &gone);
            continue;
        }
        let node = match entry.link_name_bytes().filter(|_| entry.header().entry_type().is_hard_link()) {
            Some(first) => own.get(&*first).expect("a link to a file of the same layer").clone(),
            None => read(&mut entry),
        };
        if node.kind != '5' || tree.get(&path).is_some_and(|old| old.kind != '5') {
            remove(&mut tree, &path);
        }
        own.insert(path.clone(), node.clone());
        tree.insert(path, node);
    }
    tree
}

fn remove(tree: &mut Tree, path: &[u8]) {
    let below = [path, b"/"].concat();
    tree.retain(|other, _| other != path && !other.starts_with(&below));
}

fn read(entry: &mut tar::Entry<'_, &[u8]>) -> Node {
    let mut xattrs = Attributes::new();
    for record in entry.pax_extensions().expect("records").into_iter().flatten() {
        let record = record.expect("a record");
        if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
        }
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).expect("content");
    let header = entry.header();
    Node {
        kind: char::from(header.entry_type().as_byte()),
        content,
        link: entry.link_name_bytes().unwrap_or_default().into_owned(),
        mode: header.mode().expect("a mode"),
        owner: (header.uid().expect("a user"), header.gid().expect("a group")),
        mtime: header.mtime().expect("a time"),
        xattrs,
    }
}

fn base_of(tree: &Tree) -> Base {
    let entry = |node: &Node| BaseEntry {
        kind: match node.kind {
            '0' => BaseKind::File {
                size: node.content.len() as u64,
                sha256: Sha256::digest(&node.content).into(),
            },
            '2' => BaseKind::Symlink { target: node.link.clone() },
            '5' => BaseKind::Directory,
            _ => BaseKind::Fifo,
        },
        mode: node.mode,
        uid: u32::try_from(node.owner.0).expect("an id"),
        gid: u32::try_from(node.owner.1).expect("an id"),
        mtime: (i64::try_from(node.mtime).expect("a time"), 0),
        xattrs: node.xattrs.clone(),
    };
    tree.iter().map(|(path, node)| (path.clone(), entry(node))).collect()
}

#[derive(Debug, Clone)]
enum Made {
    Directory { mode: u32 },
    File { content: u8, mode: u32, attribute: bool },
    HardLink,
    Symlink(&'static str),
    Fifo,
}

fn trees() -> impl Strategy<Value = Vec<(String, Made)>> {
    let name = prop::sample::select(vec!["a", "a-", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let made = prop_oneof![
        3 => prop::sample::select(vec![0o755, 0o700]).prop_map(|mode| Made::Directory { mode }),
        6 => (0..3_u8, prop::sample::select(vec![0o644, 0o600]), prop::bool::weighted(0.2))
            .prop_map(|(content, mode, attribute)| Made::File { content, mode, attribute }),
        2 => Just(Made::HardLink),
        1 => prop::sample::select(vec!["a", "../b"]).prop_map(Made::Symlink),
        1 => Just(Made::Fifo),
    ];
    prop::collection::vec((path, made), 1..14)
}

/// Makes the tree; what does not fit to what is there already is left out. A hard link is one to the file made last.
fn make(root: &Path, entries: &[(String, Made)]) {
    fs::write(root.join("always"), "x").expect("a file");
    let mut last = root.join("always");
    for (path, made) in entries {
        let at = root.join(path);
        let parent = at.parent().expect("a parent");
        if fs::create_dir_all(parent).is_err() || at.symlink_metadata().is_ok() {
            continue;
        }
        let chmod = |mode| fs::set_permissions(&at, Permissions::from_mode(mode)).expect("a mode");
        match made {
            Made::Directory { mode } => {
                fs::create_dir(&at).expect("a directory");
                chmod(*mode);
            }
            Made::File { content, mode, attribute } => {
                fs::write(&at, vec![*content; 700]).expect("a file");
                if *attribute {
                    setxattr(&at, "user.x", &[*content], XattrFlags::empty()).expect("an attribute");
                }
                chmod(*mode);
                last.clone_from(&at);
            }
            Made::HardLink => fs::hard_link(&last, &at).expect("a link"),
            Made::Symlink(target) => symlink(target, &at).expect("a link"),
            Made::Fifo => mkfifoat(CWD, &at, 0o644.into()).expect("a FIFO"),
        }
    }
}

fn archive(dir: &Path, base: Option<&Base>) -> Vec<u8> {
    let mut bytes = Vec::new();
    plan(dir, OPTIONS, base)
        .expect("a plan")
        .stream(|chunk| {
            bytes.extend(chunk);
            true
        })
        .expect("an archive");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_base_and_the_layer_over_it_are_the_tree(old in trees(), new in trees(), again in any::<bool>()) {
        let dir = tempfile::tempdir().expect("a directory");
        let (old_dir, new_dir) = (dir.path().join("old"), dir.path().join("new"));
        for (at, entries) in [(&old_dir, vec![&old]), (&new_dir, if again { vec![&old, &new] } else { vec![&new] })] {
            fs::create_dir(at).expect("a directory");
            entries.into_iter().for_each(|entries| make(at, entries));
        }
        let below = apply(&Tree::new(), &archive(&old_dir, None));
        let whole = apply(&Tree::new(), &archive(&new_dir, None));
        let base = base_of(&below);
        let layer = archive(&new_dir, Some(&base));
        prop_assert_eq!(&apply(&below, &layer), &whole);

        // Nothing that could have been left out but directories, and the same whatever the order of entries on disk.
        let root = walk::open_root(&new_dir).expect("the root");
        let exclude = crate::archive::read_exclude(&root, &new_dir, None).expect("no patterns");
        let mut found = walk::read_tree(&root, &new_dir, &exclude).expect("the tree");
        let sum = |found: &Found, stamp| Ok::<_, Infallible>(
            stream::hash(&root, &new_dir, &found.path, stamp).expect("a sum")
        );
        let planned = plan_delta(found.clone(), &base, OPTIONS, sum).expect("a plan").members;
        found.reverse();
        prop_assert_eq!(&plan_delta(found, &base, OPTIONS, sum).expect("a plan").members, &planned);
        for member in planned.iter().filter(|m| !matches!(m.entry, Entry::Directory | Entry::Whiteout)) {
            prop_assert_ne!(below.get(member.path()), whole.get(member.path()), "{:?}", member);
        }
    }
}

fn found(path: &str, kind: Kind) -> Found {
    Found { path: path.into(), kind, mode: 0o644, uid: 7, gid: 8, xattrs: Attributes::new() }
}

fn of_base(path: &str, kind: BaseKind) -> (Vec<u8>, BaseEntry) {
    let mtime = (1_700_000_000, 0);
    (path.into(), BaseEntry { kind, mode: 0o644, uid: 7, gid: 8, mtime, xattrs: Attributes::new() })
}

fn names(found: Vec<Found>, base: Base, options: Options<'_>) -> Vec<String> {
    let planned = plan_delta(found, &base, options, |_, _| Err::<_, &str>("nothing is to be read"));
    let planned = planned.expect("a plan");
    planned.members.iter().map(|m| String::from_utf8_lossy(&m.name).into_owned()).collect()
}

#[test]
fn owners_and_times_count_as_they_would_be_published() {
    let fifo = || (vec![found("f", Kind::Fifo)], Base::from([of_base("f", BaseKind::Fifo)]));
    let keep_owner = Options { keep_owner: true, ..OPTIONS };
    let (tree, base) = fifo();
    assert_eq!(names(tree, base, keep_owner), [""; 0]);
    let (tree, base) = fifo();
    assert_eq!(names(tree, base, OPTIONS), ["f"]);
    let (tree, base) = fifo();
    assert_eq!(names(tree, base, Options { mtime: 0, ..keep_owner }), ["f"]);
}

#[test]
fn what_is_gone_is_told_once_and_devices_are_told_apart() {
    let keep_owner = Options { keep_owner: true, ..OPTIONS };
    let device = |minor| Kind::Device { block: true, major: 1, minor };
    let in_base = |minor| BaseKind::Device { block: true, major: 1, minor };
    let base = [
        of_base("d", BaseKind::Directory),
        of_base("d/e", BaseKind::Directory),
        of_base("d/e/f", BaseKind::Fifo),
        of_base("gone", BaseKind::Directory),
        of_base("gone/in", BaseKind::Fifo),
        of_base("same", in_base(1)),
        of_base("other", in_base(1)),
        of_base("replaced", BaseKind::Directory),
        of_base("replaced/in", BaseKind::Fifo),
        of_base("socket", BaseKind::Fifo),
    ];
    let tree = vec![
        found("d", Kind::Directory),
        found("same", device(1)),
        found("other", device(2)),
        found("replaced", Kind::Fifo),
        found("socket", Kind::Socket),
    ];
    let want = [".wh.gone", ".wh.socket", "d/", "d/.wh.e", "other", "replaced"];
    assert_eq!(names(tree, base.into(), keep_owner), want);
}

#[test]
fn what_no_version_can_hold_is_refused_also_where_the_base_has_it() {
    let planned =
        plan_delta(vec![found(".wh.x", Kind::Fifo)], &Base::new(), OPTIONS, |_, _| Err::<_, ()>(()));
    assert!(matches!(planned, Err(Stuck::Refused(Refusal::WhiteoutName { .. }))));
}
