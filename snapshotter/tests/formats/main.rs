//! Stores that earlier releases wrote: this one opens them and finds everything.
//!
//! `format-N.redb.gz` is the file that a capsuled of format N left, written by the ignored test below; once a format
//! has been released its file never changes. A new format gets a file of its own, and this test one more row.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use capsuled::{
    attachments::model::Attachment,
    dirs::Dirs,
    snapshots::{
        Behaviour, Commit, Create, Environment, OverlayOptions, SnapshotError, Snapshots,
        model::{Info, Key, Kind, LabelUpdate, Labels},
    },
    store::{
        FORMAT_VERSION, Store,
        attachments::{Change, Journal, read_all},
    },
};

const STORES: [(u64, &[u8]); 1] = [(1, include_bytes!("format-1.redb.gz"))];

/// Runs gzip(1).
fn gzip(option: &str, input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg(option).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    output.stdout
}

fn key(text: &str) -> Key {
    Key::parse(text.to_owned()).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::parse(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).unwrap()
}

fn create(name: &str, parent: &str, given: &[(&str, &str)]) -> Create {
    Create { key: key(name), parent: parent.to_owned(), labels: labels(given) }
}

/// An engine on `store`; what it needs of directories is made.
fn open(store: Store, dirs: &Dirs) -> Snapshots {
    let (overlay, behaviour) = (OverlayOptions::default(), Behaviour::default());
    Snapshots::open(Environment { store, dirs: dirs.clone(), overlay, behaviour }).unwrap()
}

/// What every fixture holds: ids 1 to 6, of which 5 is removed again.
fn fill(engine: &Snapshots) {
    let commit = |name: &str, from: &str, given: &[(&str, &str)]| {
        let (from, parent, labels) = (from.to_owned(), String::new(), labels(given));
        engine.commit(&Commit { name: key(name), key: from, parent, labels }).unwrap();
    };
    engine.prepare(&create("default/1/extract-1", "", &[("gone", "with the commit")])).unwrap();
    commit(
        "default/2/sha256:bottom",
        "default/1/extract-1",
        &[("containerd.io/snapshot.ref", "sha256:bottom")],
    );
    engine.prepare(&create("default/3/extract-2", "default/2/sha256:bottom", &[])).unwrap();
    commit("default/4/sha256:top", "default/3/extract-2", &[("größe", "9 000"), ("a.b/c", "d")]);
    engine.prepare(&create("default/5/container", "default/4/sha256:top", &[("l", "1")])).unwrap();
    engine.view(&create("k8s.io/6/view", "default/4/sha256:top", &[])).unwrap();
    engine.prepare(&create("default/7/removed", "", &[])).unwrap();
    engine.remove("default/7/removed").unwrap();
    engine.prepare(&create("moby/8/bare", "", &[])).unwrap();
    let given = [("l".to_owned(), "2".to_owned())].into();
    let update = LabelUpdate { given, paths: vec!["labels.l".to_owned()] };
    engine.update("default/5/container", &update).unwrap();
}

/// The attachment record that every fixture holds.
fn attachment() -> Attachment {
    let content = |version: &str, digit: &str| {
        serde_json::json!({
            "version": version,
            "digest": format!("sha256:{}", digit.repeat(64)),
            "layers": ["/var/lib/capsule/snapshots/2/fs", "/var/lib/capsule/snapshots/1/fs"],
            "since": { "secs_since_epoch": 1_790_000_000, "nanos_since_epoch": 5 },
        })
    };
    serde_json::from_value(serde_json::json!({
        "id": "fixture-1",
        "container": { "namespace": "default", "id": "web" },
        "capsule": "tzdata",
        "target": "/usr/share/zoneinfo",
        "mode": "ro",
        "current": content("1.0.0", "a"),
        "history": [content("0.9.0", "b")],
        "phase": { "replacing": { "current": content("1.1.0", "c"), "history": [] } },
    }))
    .unwrap()
}

/// Writes `format-N.redb.gz` for the present format into the directory that `CAPSULE_FIXTURES` names.
#[tokio::test]
#[ignore = "writes the fixture of a new format: CAPSULE_FIXTURES=DIRECTORY cargo test --test formats -- --ignored"]
async fn write_fixture() {
    let directory = env::var_os("CAPSULE_FIXTURES").expect("CAPSULE_FIXTURES names no directory");
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    fill(&open(store.clone(), &dirs));
    let journal = Journal::start(store).unwrap();
    journal.write(vec![Change::Put(Box::new(attachment()))]).await.unwrap();
    drop(journal);
    // Its thread lets go of the store a moment later. What is compacted holds no pages of earlier transactions.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut database = loop {
        match redb::Database::open(dirs.metadata()) {
            Ok(database) => break database,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    database.compact().unwrap();
    drop(database);
    let file = gzip("-9n", &fs::read(dirs.metadata()).unwrap());
    fs::write(Path::new(&directory).join(format!("format-{FORMAT_VERSION}.redb.gz")), file).unwrap();
}

/// The snapshots of an engine, by key: kind, parent and labels.
fn observe(engine: &Snapshots) -> BTreeMap<String, (Kind, String, Labels)> {
    let mut found = BTreeMap::new();
    let mut add = |info: Info| {
        assert!(info.created > std::time::UNIX_EPOCH && info.updated >= info.created, "{info:?}");
        found.insert(info.name, (info.kind, info.parent, info.labels)).is_none()
    };
    engine.walk(&mut add).unwrap();
    found
}

#[tokio::test]
async fn every_format_since_the_first_opens_and_holds_everything() {
    let expected = [
        (
            "default/2/sha256:bottom",
            Kind::Committed,
            "",
            &[("containerd.io/snapshot.ref", "sha256:bottom")][..],
        ),
        (
            "default/4/sha256:top",
            Kind::Committed,
            "default/2/sha256:bottom",
            &[("größe", "9 000"), ("a.b/c", "d")],
        ),
        ("default/5/container", Kind::Active, "default/4/sha256:top", &[("l", "2")]),
        ("k8s.io/6/view", Kind::View, "default/4/sha256:top", &[]),
        ("moby/8/bare", Kind::Active, "", &[]),
    ];
    let expected: BTreeMap<_, _> = expected
        .map(|(name, kind, parent, given)| (name.to_owned(), (kind, parent.to_owned(), labels(given))))
        .into();
    let formats: Vec<u64> = STORES.iter().map(|(format, _)| *format).collect();
    assert!(formats.iter().copied().eq(1..=FORMAT_VERSION), "a format without its fixture: {formats:?}");
    for (format, file) in STORES {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path());
        dirs.create().unwrap();
        fs::write(dirs.metadata(), gzip("-d", file)).unwrap();
        // The snapshots' directories, and one that none has any more.
        for id in 1..=6 {
            fs::create_dir_all(dirs.upper(id)).unwrap();
        }
        let store = Store::open(&dirs.metadata()).unwrap_or_else(|error| panic!("format {format}: {error}"));
        let recorded: Vec<Attachment> = read_all(&store).unwrap().into_values().collect();
        assert_eq!(recorded, [attachment()], "format {format}");
        let engine = open(store, &dirs);
        assert_eq!(observe(&engine), expected, "format {format}");
        check_use(&engine, &dirs);
    }
}

/// What was found can be used: chains, usage, mounts, links and ids are whole.
fn check_use(engine: &Snapshots, dirs: &Dirs) {
    let chain = [dirs.upper(2), dirs.upper(1)];
    assert_eq!(engine.layers("default", "sha256:top").unwrap(), chain);
    assert_eq!(engine.usage("default/4/sha256:top").unwrap().inodes, 1);
    let lower = format!("lowerdir={}:{}", chain[0].display(), chain[1].display());
    assert_eq!(engine.mounts("k8s.io/6/view").unwrap()[0].options, [lower]);
    let refused = engine.remove("default/2/sha256:bottom");
    assert!(matches!(refused, Err(SnapshotError::HasChildren { .. })), "{refused:?}");
    // An id that was ever given is not given again, that of a removed snapshot neither.
    let mounts = engine.prepare(&create("new", "", &[])).unwrap();
    assert_eq!(Path::new(&mounts[0].source), dirs.upper(7));
}
