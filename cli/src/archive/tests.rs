//! Real trees in temporary directories, and plans of imagined ones. No root needed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::encode::encode_header;
use super::plan::{Content, Entry, Member, Planned, Refusal, plan_members};
use super::walk::{Attributes, Found, Kind, Stamp};
use super::*;

mod random;

use self::random::{parse_records, read_back};

const OPTIONS: Options<'static> = Options { keep_owner: false, mtime: 1_700_000_000, declaration: None };

fn archive_of(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let plan = plan(dir, OPTIONS, None).expect("a plan");
    plan.stream(|chunk| {
        assert!(!chunk.is_empty() && chunk.len() <= stream::CHUNK);
        bytes.extend(chunk);
        true
    })
    .expect("an archive");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn order_and_owner_do_not_matter(order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(), owner in any::<u32>()) {
        let found = |i: &usize, uid| Found {
            path: vec![b"ab-/xy"[*i]; 1 + i % 3], uid, gid: uid,
            kind: Kind::File { stamp: stamp(i / 2), has_links: true },
            mode: 0o644, xattrs: Attributes::new(),
        };
        let bytes = |found: Vec<Found>| -> Vec<u8> {
            plan_members(found, OPTIONS).expect("a plan").members.iter().flat_map(encode_header).collect()
        };
        let one = (0..6).map(|i| found(&i, 0)).collect();
        let two = order.iter().map(|i| found(i, owner)).collect();
        prop_assert_eq!(bytes(one), bytes(two));
    }
}

fn stamp(inode: usize) -> Stamp {
    Stamp { device: 1, inode: inode as u64, size: 10, mtime: (0, 0) }
}

fn entry(path: &[u8], kind: Kind) -> Found {
    Found { path: path.to_vec(), kind, mode: 0o644, uid: 7, gid: 8, xattrs: Attributes::new() }
}

#[test]
fn a_parent_comes_before_what_it_holds() {
    let dir = |path: &[u8]| entry(path, Kind::Directory);
    let planned = plan_members(vec![dir(b"a/b"), dir(b"a-b"), dir(b"a"), dir(b"a/b/c")], OPTIONS);
    let names: Vec<_> = planned.expect("a plan").members.into_iter().map(|m| m.name).collect();
    assert_eq!(names, [&b"a/"[..], b"a-b/", b"a/b/", b"a/b/c/"]);
}

#[test]
fn special_files() {
    let device = |block, major, minor| Kind::Device { block, major, minor };
    for (kind, want) in [
        (Kind::Fifo, Ok(Some(Entry::Fifo))),
        (device(false, 1, 3), Ok(Some(Entry::Device { block: false, major: 1, minor: 3 }))),
        (device(true, 0, 0), Ok(Some(Entry::Device { block: true, major: 0, minor: 0 }))),
        (device(false, 0, 0), Err(Refusal::WhiteoutDevice { path: b"x".to_vec() })),
        (Kind::Socket, Ok(None)),
    ] {
        let got = plan_members(vec![entry(b"x", kind.clone())], OPTIONS);
        assert_eq!(got.map(|p| p.members.first().map(|m| m.entry.clone())), want, "{kind:?}");
    }
}

#[test]
fn a_socket_is_named() {
    let Planned { members, left_out } =
        plan_members(vec![entry(b"s", Kind::Socket)], OPTIONS).expect("a plan");
    assert!(members.is_empty());
    assert_eq!(left_out, [b"s"]);
}

#[test]
fn whiteout_names_are_refused_anywhere() {
    for (path, refused) in [
        (&b".wh.a"[..], true),
        (b"d/.wh.a", true),
        (b"d/.wh..wh..opq", true),
        (b".wh", false),
        (b"a.wh.", false),
        (b".what", false),
    ] {
        let got = plan_members(vec![entry(path, Kind::Fifo)], OPTIONS);
        assert_eq!(got.is_err(), refused, "{path:?}");
    }
}

#[test]
fn owners_are_kept_when_asked_for() {
    let keep = Options { keep_owner: true, ..OPTIONS };
    let planned = plan_members(vec![entry(b"x", Kind::Fifo)], keep).expect("a plan");
    assert_eq!((planned.members[0].uid, planned.members[0].gid), (7, 8));
}

#[test]
fn attributes_that_no_image_can_hold() {
    for (name, ok) in [
        (&b"user.a"[..], true),
        (b"user.overlay.opaque", false),
        (b"user.overlays", true),
        (b"user.a=b", false),
        (b"user.\xff", false),
    ] {
        let mut found = entry(b"x", Kind::Directory);
        found.xattrs.insert(name.to_vec(), b"v".to_vec());
        assert_eq!(plan_members(vec![found], OPTIONS).is_ok(), ok, "{name:?}");
    }
}

#[test]
fn what_ustar_cannot_hold_is_in_records() {
    let size = 0o100_000_000_000; // one more than eleven digits hold
    let member = Member {
        name: b"big".to_vec(),
        entry: Entry::File,
        mode: 0o644,
        uid: u32::MAX,
        gid: 0o1000_0000,
        mtime: MAX_MTIME,
        xattrs: Attributes::from([(b"security.capability".to_vec(), vec![1, 0, 0, 2, b'\n', 0])]),
        content: Some(Content { path: b"big".to_vec(), size, stamp: stamp(1) }),
    };
    let blocks = encode_header(&member);
    let mut archive = tar::Archive::new(&blocks[..]);
    let mut entries = archive.entries().expect("entries").raw(true);
    let mut extended = Vec::new();
    entries.next().expect("one").expect("an entry").read_to_end(&mut extended).expect("records");
    let want = [
        ("SCHILY.xattr.security.capability", vec![1, 0, 0, 2, b'\n', 0]),
        ("gid", b"2097152".to_vec()),
        ("size", b"8589934592".to_vec()),
        ("uid", b"4294967295".to_vec()),
    ];
    assert_eq!(parse_records(&extended), want.map(|(key, value)| (key.to_owned(), value)).into());
    let header = entries.next().expect("two").expect("an entry").header().clone();
    assert_eq!(header.mtime().expect("a time"), MAX_MTIME);
    assert_eq!(header.uid().expect("a uid"), 0);
}

#[test]
fn links_are_not_followed() {
    let (outside, dir) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::write(outside.path().join("secret"), "s").expect("a file");
    std::os::unix::fs::symlink(outside.path(), dir.path().join("way-out")).expect("a link");
    let (tree, files, _) = read_back(&archive_of(dir.path()));
    assert_eq!(tree.into_keys().collect::<Vec<_>>(), [b"way-out"]);
    assert!(files.is_empty());
}

#[test]
fn a_directory_swapped_for_a_link_is_noticed() {
    let (outside, dir) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::write(outside.path().join("f"), "secret").expect("a file");
    fs::create_dir(dir.path().join("d")).expect("a directory");
    fs::write(dir.path().join("d/f"), "public").expect("a file");
    let plan = plan(dir.path(), OPTIONS, None).expect("a plan");
    fs::rename(dir.path().join("d"), dir.path().join("old")).expect("renamed");
    std::os::unix::fs::symlink(outside.path(), dir.path().join("d")).expect("a link");
    let error = plan.stream(|_| true).expect_err("a link on the way");
    assert!(matches!(error, Error::Read { errno: Errno::LOOP, .. }), "{error}");
}

#[test]
fn a_tree_that_changes_is_an_error() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("from 6 to 9 bytes", |f| fs::write(f, "different").expect("a file")),
        ("from 6 to 3 bytes", |f| fs::write(f, "abc").expect("a file")),
        ("it was replaced", |f| {
            fs::write(f.with_extension("new"), "abcdef").expect("a file");
            fs::rename(f.with_extension("new"), f).expect("renamed");
        }),
        ("it was written to", |f| {
            File::options()
                .write(true)
                .open(f)
                .and_then(|f| f.set_modified(SystemTime::UNIX_EPOCH))
                .expect("a time");
        }),
        ("No such file", |f| fs::remove_file(f).expect("removed")),
    ];
    for (want, change) in changes {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("f");
        fs::write(&file, "abcdef").expect("a file");
        let plan = plan(dir.path(), OPTIONS, None).expect("a plan");
        change(&file);
        let error = plan.stream(|_| true).expect_err(want).to_string();
        assert!(error.contains(want) && error.contains(file.to_str().expect("UTF-8")), "{want}: {error}");
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("f");
    fs::write(&file, vec![1; 3 * stream::CHUNK]).expect("a file");
    let plan = plan(dir.path(), OPTIONS, None).expect("a plan");
    let mut chunks = 0;
    let outcome = plan.stream(|_| {
        chunks += 1;
        if chunks == 2 {
            File::options().append(true).open(&file).and_then(|f| f.set_len(4 << 20)).expect("grown");
        }
        true
    });
    assert!(matches!(outcome, Err(Error::Changed { .. })), "{outcome:?}");
}

#[test]
fn streaming_stops_when_nobody_listens() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("f"), vec![1; 3 * stream::CHUNK]).expect("a file");
    let mut calls = 0;
    let outcome = plan(dir.path(), OPTIONS, None).expect("a plan").stream(|_| {
        calls += 1;
        false
    });
    assert!(outcome.is_ok());
    assert_eq!(calls, 1);
}

#[test]
fn trees_that_are_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let message = |path: &Path| plan(path, OPTIONS, None).expect_err("refused").to_string();
    assert!(message(dir.path()).contains("nothing to publish"));
    assert!(message(&dir.path().join("absent")).contains("No such file"));
    fs::write(dir.path().join(".wh.f"), "").expect("a file");
    assert!(message(dir.path()).contains(".wh.f"));
    assert!(message(&dir.path().join(".wh.f")).contains("Not a directory"));
}

#[test]
fn sockets_and_fifos_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("a socket");
    let fifo = dir.path().join("p");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).expect("a FIFO");
    let plan = plan(dir.path(), OPTIONS, None).expect("a plan, without waiting for the FIFO's writer");
    assert_eq!(plan.left_out, [dir.path().join("s")]);
    assert_eq!(plan.summary(), Summary { files: Some(1), bytes: 0 });
}

#[test]
fn deep_trees_need_few_descriptors() {
    let dir = tempfile::tempdir().expect("a directory");
    let deep: OsString = OsString::from_vec(b"d/".repeat(1500));
    fs::create_dir_all(dir.path().join(&deep)).expect("directories");
    let (tree, _, _) = read_back(&archive_of(dir.path()));
    assert_eq!(tree.len(), 1500);
    let depths: BTreeSet<_> = tree.keys().map(Vec::len).collect();
    assert_eq!(depths.len(), 1500);
}
