//! Plans and lock files, against a capsuled that answers the same to everybody.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1;

use crate::fake::{Asked, Fake};

const PLAN: &str = "\
CAPSULE   VERSION   DIGEST         TARGET      MODE   WHY
lib       1.5       0123456789ab   /opt/lib    ro     attached already, required by app, tool
tool      1.5       0123456789ab   /opt/tool   ro     required by app
app       1.5       0123456789ab   /opt/app    ro     asked for
";

fn spec(capsule: &str, version: &str) -> v1::AttachmentSpec {
    v1::AttachmentSpec { capsule: capsule.into(), version: version.into(), ..Default::default() }
}

fn container(id: &str) -> Option<v1::ContainerRef> {
    Some(v1::ContainerRef { id: id.into(), namespace: String::new() })
}

#[test]
fn a_plan_is_shown_and_asked_for_once() {
    let fake = Fake::start();
    for (line, container) in [
        ("resolve app lib@1", None),
        ("resolve app lib@1 --container web", container("web")),
        ("attach web app lib@1 --dry-run", container("web")),
    ] {
        let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), PLAN, ""), "{line}");
        let specs = vec![spec("app", ""), spec("lib", "1")];
        assert_eq!(fake.asked(), [Asked::Resolve(v1::ResolveRequest { container, specs })], "{line}");
    }
    let ran = fake.run(&["-o", "json", "resolve", "app"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["planned"][1]["required_by"], serde_json::json!(["app"]));
    assert_eq!(json["planned"][0]["present"], true);
}

#[test]
fn what_was_locked_is_what_is_attached() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("app.lock");
    let lock = path.to_str().expect("a path");
    let ran = fake.run(&["resolve", "app", "--lock", lock, "--dry-run"]);
    assert!(ran.code == Some(0) && !path.exists(), "{ran:?}");
    assert_eq!(fake.run(&["resolve", "app", "--lock", lock]).code, Some(0));
    fake.asked();
    assert_eq!(fake.run(&["attach", "web", "--locked", lock]).code, Some(0));
    let exact = |capsule| v1::AttachmentSpec {
        digest: fake::version().digest,
        unless_present: true,
        ..spec(capsule, "1.5")
    };
    let specs = ["lib", "tool", "app"].map(exact).to_vec();
    assert_eq!(
        fake.asked(),
        [Asked::Attach(v1::AttachRequest { container: container("web"), specs, ..Default::default() })]
    );
}

#[test]
fn a_lock_file_that_is_none_is_named() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("app.lock");
    let lock = path.to_str().expect("a path");
    let attach = || fake.run(&["attach", "web", "--locked", lock]);
    for (text, words) in [
        (None, "cannot read"),
        (Some("version = 1\nunknown = 2\n"), "line 2: unknown field `unknown`"),
        (Some("version = 7\n"), "form 7 is not known"),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).expect("write");
        }
        let ran = attach();
        assert!(ran.stderr.contains(words) && ran.stderr.contains("app.lock"), "{ran:?}");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    }
    assert!(fake.asked().is_empty());
    let nowhere = fake.run(&["resolve", "app", "--lock", "/nowhere/app.lock"]);
    assert!(nowhere.stderr.contains("cannot write the lock file /nowhere/app.lock"), "{nowhere:?}");
    assert_eq!(nowhere.stdout, "");
}

#[test]
fn an_upgrade_shows_its_plan_and_what_came_along() {
    let fake = Fake::start();
    let ran = fake.run(&["upgrade", "web", "app", "tool", "--dry-run"]);
    let plan = "\
CAPSULE   VERSION         DIGEST         TARGET      MODE   WHY
tool      2024.2 -> 1.5   0123456789ab   /opt/tool   ro     required by app
lib       1.5             0123456789ab   /opt/lib    ro     required by app
app       1.4 -> 1.5      0123456789ab   /opt/app    ro     asked for
";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), plan, ""));
    let ran = fake.run(&["upgrade", "web", "app"]);
    let moved = "\
default/web: tzdata 2024.2 -> 2026.1 at /usr/share/zoneinfo
default/web: extra 2026.1 is new, at /usr/share/zoneinfo
";
    assert_eq!(ran.stdout, moved);
    let ran = fake.run(&["upgrade", "web", "app", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["attachments"][0]["from_version"], "2024.2");
    assert_eq!(json["attachments"][1]["from_version"], serde_json::Value::Null);
}
