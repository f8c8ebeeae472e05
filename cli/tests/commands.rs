//! Each command of the real binary against a server of the tests: what goes over the wire, what is printed, and
//! how it ends. No root needed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

mod fake;

use std::fs;
use std::path::Path;

use capsule_proto::capsule::v1::{self, Mode};

use fake::{Asked, Fake, INSTANT, REFUSAL, TAKEN, capsulectl};

fn container(namespace: &str, id: &str) -> Option<v1::ContainerRef> {
    Some(v1::ContainerRef { id: id.into(), namespace: namespace.into() })
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("one JSON document")
}

fn spec(capsule: &str, version: &str, target: &str, mode: Mode) -> v1::AttachmentSpec {
    let (capsule, version, target) = (capsule.into(), version.into(), target.into());
    v1::AttachmentSpec { capsule, version, target, mode: mode.into(), ..v1::AttachmentSpec::default() }
}

const ZONE: &str = "/usr/share/zoneinfo";

fn reading_calls() -> Vec<(&'static str, Asked)> {
    vec![
        ("ls", Asked::Ls(v1::ListCapsulesRequest { name: String::new() })),
        ("ls tzdata", Asked::Ls(v1::ListCapsulesRequest { name: "tzdata".into() })),
        (
            "inspect tzdata@2026.1",
            Asked::Inspect(v1::InspectCapsuleRequest { name: "tzdata".into(), version: "2026.1".into() }),
        ),
        ("ps", Asked::Ps(v1::ListAttachmentsRequest { container: None })),
        ("ps web", Asked::Ps(v1::ListAttachmentsRequest { container: container("", "web") })),
    ]
}

fn changing_calls() -> Vec<(&'static str, Asked)> {
    vec![
        (
            "attach web tzdata ca@3 -n k8s.io",
            Asked::Attach(v1::AttachRequest {
                container: container("k8s.io", "web"),
                specs: vec![
                    spec("tzdata", "", "", Mode::Unspecified),
                    spec("ca", "3", "", Mode::Unspecified),
                ],
                ..Default::default()
            }),
        ),
        (
            "attach moby/web tools --mode union --target /",
            Asked::Attach(v1::AttachRequest {
                container: container("moby", "web"),
                specs: vec![spec("tools", "", "/", Mode::Union)],
                ..Default::default()
            }),
        ),
        (
            "upgrade web tzdata@2026.2 --target /usr/share/zoneinfo",
            Asked::Upgrade(v1::UpgradeRequest {
                container: container("", "web"),
                specs: vec![moved("tzdata", "2026.2", ZONE)],
                ..Default::default()
            }),
        ),
        (
            "upgrade web app lib@2 --wait-healthy /check --health-timeout 1m",
            Asked::Upgrade(v1::UpgradeRequest {
                container: container("", "web"),
                specs: vec![moved("app", "", ""), moved("lib", "2", "")],
                health: Some(v1::HealthCheck {
                    args: vec!["/check".into()],
                    timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
                }),
                dry_run: false,
            }),
        ),
        (
            "rollback web tzdata",
            Asked::Rollback(v1::RollbackRequest {
                container: container("", "web"),
                specs: vec![moved("tzdata", "", "")],
            }),
        ),
        (
            "detach web tzdata --lazy --target /usr/share/zoneinfo",
            Asked::Detach(v1::DetachRequest {
                container: container("", "web"),
                capsule: "tzdata".into(),
                target: ZONE.into(),
                lazy: true,
                ..v1::DetachRequest::default()
            }),
        ),
    ]
}

fn naming_calls() -> Vec<(&'static str, Asked)> {
    vec![
        (
            "tag tzdata@2026.1 stable next",
            Asked::Tag(v1::TagRequest {
                name: "tzdata".into(),
                version: "2026.1".into(),
                tags: vec!["stable".into(), "next".into()],
            }),
        ),
        (
            "untag tzdata@stable",
            Asked::Untag(v1::UntagRequest { name: "tzdata".into(), tag: "stable".into() }),
        ),
    ]
}

fn moved(capsule: &str, version: &str, target: &str) -> v1::MoveSpec {
    v1::MoveSpec { capsule: capsule.into(), version: version.into(), target: target.into() }
}

#[test]
fn what_goes_over_the_wire() {
    let fake = Fake::start();
    for (line, want) in reading_calls().into_iter().chain(changing_calls()).chain(naming_calls()) {
        let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
        assert_eq!(fake.asked(), [want], "{line}");
    }
}

#[test]
fn what_people_read() {
    let fake = Fake::start();
    for (line, want) in [
        (
            "ls",
            "\
CAPSULE   VERSION   TAGS          DIGEST         SIZE      CREATED   TARGET                MODE   IN USE   STATUS
tzdata    2026.1    next,stable   0123456789ab   1.5 MiB   3d ago    /usr/share/zoneinfo   ro     1        ready
tzdata    2024.2    -             0123456789ab   10 B      -         -                     -      0        incomplete
",
        ),
        (
            "tag tzdata@2026.1 stable next",
            "tzdata@stable is tzdata@2026.1\ntzdata@next is tzdata@2026.1\n",
        ),
        ("untag tzdata@stable", "tzdata@stable is no tag any more, was tzdata@2026.1\n"),
        ("untag tzdata@lost", "tzdata@lost is no tag any more\n"),
        ("attach web tzdata", "default/web: tzdata@2026.1 attached at /usr/share/zoneinfo (ro)\n"),
        ("upgrade web tzdata", "default/web: tzdata 2024.2 -> 2026.1 at /usr/share/zoneinfo\n"),
        ("upgrade web tzdata@2026.1", "default/web: tzdata is at 2026.1 already, at /usr/share/zoneinfo\n"),
        ("rollback web tzdata", "default/web: tzdata 2026.2 -> 2026.1 at /usr/share/zoneinfo\n"),
        ("detach web tzdata", "default/web: tzdata@2026.1 detached from /usr/share/zoneinfo\n"),
        (
            "detach web tzdata --lazy",
            "default/web: tzdata@2026.1 hidden at /usr/share/zoneinfo, draining: in use by cat (pid 41), fd 3 \
             /usr/share/zoneinfo/\\x1b[2JUTC and 1 more\n",
        ),
        (
            "ps",
            "\
NAMESPACE   CONTAINER           CAPSULE   VERSION   DIGEST         TARGET                MODE   STATE      SINCE    PREVIOUS   USERS   DEVICES
default     web                 tzdata    2026.1    0123456789ab   /usr/share/zoneinfo   ro     attached   5d ago   2024.2     -       -
k8s.io      pod/shop/cart/app   tzdata    2026.1    0123456789ab   /usr/share/zoneinfo   ro     attached   5d ago   2024.2     -       -
default     web                 tzdata    2026.1    0123456789ab   /usr/share/zoneinfo   ro     draining   4d ago   -          2       -
",
        ),
        (
            "ps --users -n default",
            "\
NAMESPACE   CONTAINER   CAPSULE   VERSION   DIGEST         TARGET                MODE   STATE      SINCE    PREVIOUS   USERS   DEVICES
default     web         tzdata    2026.1    0123456789ab   /usr/share/zoneinfo   ro     attached   5d ago   2024.2     -       -
default     web         tzdata    2026.1    0123456789ab   /usr/share/zoneinfo   ro     draining   4d ago   -          2       -

PID   COMMAND   HOW    PATH                             CAPSULE         CONTAINER
41    cat       fd 3   /usr/share/zoneinfo/\\x1b[2JUTC   tzdata@2026.1   default/web
42    cat       cwd    /usr/share/zoneinfo/\\x1b[2JUTC   tzdata@2026.1   default/web
",
        ),
    ] {
        let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.stdout, want, "{line}");
    }
}

#[test]
fn inspect_shows_all_of_a_version() {
    let ran = Fake::start().run(&["inspect", "tzdata"]);
    for part in [
        "Tags        next, stable",
        "Digest      sha256:0123456789abcdef0123",
        "Image       capsule.local/tzdata:2026.1 (containerd namespace capsules)",
        "Status      ready",
        "Requires    ca-bundle >=2026",
        "Variable    TZDIR=/usr/share/zoneinfo",
        "Resource    memory.max=16M",
        "Device      example.com/clock=rtc",
        "Seccomp     baseline",
        "Denies      socket",
        "Annotation  team=time",
        "sha256:aa   2.0 KiB   application/vnd.oci.image.layer.v1.tar",
        "draining",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
}

#[test]
fn what_programs_read() {
    let fake = Fake::start();
    let attachment = serde_json::json!({
        "id": "a1", "container": "web", "namespace": "default", "capsule": "tzdata", "version": "2026.1",
        "digest": fake::version().digest, "target": "/usr/share/zoneinfo", "mode": "ro", "state": "attached",
        "since": "2023-11-14T22:13:20Z", "previous_version": "2024.2", "users": [],
        "required_by": [], "writable": null, "devices": [], "resources": null, "pod": null, "pod_container": null,
        "container_name": null,
    });
    assert_eq!(INSTANT, 1_700_000_000, "the instant above");
    let ran = fake.run(&["attach", "web", "tzdata", "--output", "json"]);
    assert_eq!(json(&ran.stdout), serde_json::json!({ "attachments": [attachment] }));

    let mut moved = attachment;
    moved["from_version"] = "2024.2".into();
    let ran = fake.run(&["-o", "json", "upgrade", "web", "tzdata"]);
    assert_eq!(json(&ran.stdout), serde_json::json!({ "attachments": [moved] }));

    let ran = fake.run(&["ls", "-o", "json"]);
    assert_eq!(json(&ran.stdout)["versions"][1]["incomplete"], "layer sha256:11 is missing");
    let ran = fake.run(&["inspect", "tzdata", "-o", "json"]);
    let inspected = json(&ran.stdout);
    assert_eq!(inspected["annotations"]["team"], "time");
    assert_eq!(inspected["version"]["requires"], serde_json::json!(["ca-bundle >=2026"]));
    assert_eq!(inspected["version"]["environment"]["TZDIR"], ZONE);
    assert_eq!(inspected["version"]["resources"]["memory.max"], "16M");
    assert_eq!(inspected["version"]["caps"]["pids.max"], "9");
    assert_eq!(
        inspected["version"]["seccomp"],
        serde_json::json!({ "level": "baseline", "deny": ["socket"] })
    );
    assert_eq!(inspected["version"]["devices"], serde_json::json!(["example.com/clock=rtc"]));
    let ran = fake.run(&["ps", "-o", "json"]);
    assert_eq!(json(&ran.stdout)["attachments"][2]["users"][0]["pid"], 41);
}

fn tree(dir: &Path) -> String {
    fs::create_dir(dir.join("Europe")).expect("a directory");
    fs::write(dir.join("Europe/Berlin"), vec![b'B'; 3 << 20]).expect("a file");
    fs::write(dir.join("UTC"), "UTC").expect("a file");
    dir.to_str().expect("UTF-8").to_owned()
}

#[test]
fn build_sends_a_header_and_a_whole_archive() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let tree = tree(dir.path());
    let line = ["build", &tree, "--name", "tzdata", "--version", "2026.1", "--target", "/usr/share/zoneinfo"];
    let ran = fake.run(&[&line[..], &["--mode", "union", "--annotation", "team=time"]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let start = format!("tzdata@2026.1  {}  (2 files, 3.0 MiB, ", fake::version().digest);
    assert!(ran.stdout.starts_with(&start) && ran.stdout.ends_with(" ms)\n"), "{}", ran.stdout);

    let asked = fake.asked();
    let [Asked::Build { header, tar, chunks, whole }] = &asked[..] else { panic!("{} calls", asked.len()) };
    assert!(whole);
    assert_eq!(*chunks, 4, "3 MiB and headers in chunks of 1 MiB");
    assert_eq!((header.name.as_str(), header.version.as_str()), ("tzdata", "2026.1"));
    assert_eq!(header.default_target, "/usr/share/zoneinfo");
    assert_eq!(header.default_mode(), Mode::Union);
    assert_eq!(header.annotations, [("team".to_owned(), "time".to_owned())].into());
    let names: Vec<_> = tar::Archive::new(&tar[..])
        .entries()
        .expect("entries")
        .map(|e| e.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    assert_eq!(names, ["Europe/", "Europe/Berlin", "UTC"]);

    let ran = fake.run(&[&line[..], &["--annotation", "again=1", "--output", "json"]].concat());
    let built = json(&ran.stdout);
    assert_eq!(
        (&built["existed"], &built["files"], &built["bytes"]),
        (&true.into(), &2.into(), &3_145_731.into())
    );
    assert_eq!(built["version"]["digest"], fake::version().digest);
}

#[test]
fn a_refused_build_ends_at_once() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let tree = tree(dir.path());
    let ran = fake.run(&["build", &tree, "--name", "tzdata", "--version", TAKEN]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stderr, "capsulectl: tzdata@9.9.9 exists with another digest; publish a new version\n");
    assert_eq!(ran.stdout, "");
}

/// A file that somebody writes to leaves the archive unfinished: capsuled must see the call broken off, not ended.
#[test]
fn a_build_that_fails_midway_never_looks_whole() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let tree = tree(dir.path());
    // The last member by its name, so that megabytes are on their way when it turns out to have changed.
    let log = fs::File::create(dir.path().join("log")).expect("a file");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                log.set_modified(std::time::SystemTime::now()).expect("a time");
            }
        }
    });
    let build = || {
        fake.asked();
        fake.run(&["build", &tree, "--name", "tzdata", "--version", "1.0.0"])
    };
    // On a busy machine the writer may not get its turn in time.
    let ran = (0..50).map(|_| build()).find(|ran| ran.code != Some(0)).expect("no build saw the writer");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("the writer");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("changed while it was read"), "{}", ran.stderr);
    assert!(fake.asked().iter().all(|a| !matches!(a, Asked::Build { whole: true, .. })));
}

#[test]
fn a_tree_that_is_refused_is_not_sent() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let tree = tree(dir.path());
    fs::write(dir.path().join("Europe/.wh.Paris"), "").expect("a file");
    let ran = fake.run(&["build", &tree, "--name", "tzdata", "--version", "1.0.0"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("Europe/.wh.Paris") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    assert!(fake.asked().is_empty());
}

#[test]
fn refusals_are_one_line_on_stderr() {
    let ran = Fake::start().run(&["attach", "refused", "tzdata", "-o", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(ran.stderr, format!("capsulectl: {REFUSAL}\n"));
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    let ran = capsulectl(&socket, &["ps"]);
    assert_eq!(ran.code, Some(1));
    let want = format!(
        "capsulectl: cannot reach capsuled at {}: No such file or directory (os error 2); is it running? See \
         `systemctl status capsuled`\n",
        socket.display()
    );
    assert_eq!(ran.stderr, want);
}

/// What a capsuled that is killed during a call looks like from here.
#[test]
fn it_hangs_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rude.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    let ran = capsulectl(&socket, &["ps"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("systemctl status capsuled"), "{}", ran.stderr);
}

#[test]
fn wrong_usage_is_two() {
    let fake = Fake::start();
    for line in [
        "attach web",
        "attach web a b --target /x",
        "upgrade web a b --target /x",
        "upgrade web a --health-timeout 1s",
        "upgrade web a --wait-healthy '",
        "rollback web",
        "attach k8s.io/web a -n moby",
        "rollback web tzdata@1",
        "tag tzdata@1",
        "untag tzdata",
        "frobnicate",
        "build . --name a --version 1 --annotation k=1 --annotation k=2",
        "build . --name a",
        "build --name a --version 1",
        "build . --tar x.tar --name a --version 1",
        "build --tar x.tar --name a --version 1 --keep-owner",
        "build --tar x.tar --name a --version 1 --source-date-epoch 1",
    ] {
        let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "{line}: {ran:?}");
        assert_eq!(ran.stdout, "", "{line}");
    }
    assert!(fake.asked().is_empty());
}

/// All that there are, as `--help` lists them.
const COMMANDS: [&str; 30] = [
    "build",
    "ls",
    "inspect",
    "tag",
    "untag",
    "pull",
    "push",
    "save",
    "load",
    "import",
    "keygen",
    "sign",
    "verify",
    "diff",
    "resolve",
    "attach",
    "upgrade",
    "rollback",
    "detach",
    "commit",
    "uppers",
    "ps",
    "events",
    "devices",
    "budget",
    "top",
    "metrics",
    "prune",
    "rm",
    "completion",
];

#[test]
fn completion_scripts_name_the_commands() {
    let nobody = Path::new("/nonexistent");
    for shell in ["bash", "zsh", "fish"] {
        let ran = capsulectl(nobody, &["completion", shell]);
        assert_eq!(ran.code, Some(0), "{shell}");
        for command in COMMANDS {
            assert!(ran.stdout.contains(command), "{shell} does not complete {command}");
        }
        for option in
            ["wait-healthy", "keep-tagged", "locked", "persist", "writable", "device", "grant", "cap"]
        {
            assert!(ran.stdout.contains(option), "{shell} does not complete --{option}");
        }
    }
}
