//! Removing versions, against a capsuled that keeps one and removes the other.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1::{PruneRequest, RemoveRequest};

use crate::fake::{Asked, Fake, TAKEN};

#[test]
fn what_is_pruned_is_told() {
    let fake = Fake::start();
    let words = "prune tzdata --keep-last 0 --keep-tagged --older-than 30d --dry-run";
    let ran = fake.run(&words.split(' ').collect::<Vec<_>>());
    let text = "\
CAPSULE   VERSION   DIGEST         SIZE      VERDICT
tzdata    1         0123456789ab   2.0 KiB   would be removed
tzdata    2         0123456789ab   2.0 KiB   kept: in use: somebody

1 would be removed, 2.0 KiB of layers
";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), text, ""));
    let asked = PruneRequest {
        names: vec!["tzdata".into()],
        keep_last: Some(0),
        keep_tagged: true,
        older_than: Some(prost_types::Duration { seconds: 30 * 24 * 3600, nanos: 0 }),
        dry_run: true,
    };
    assert_eq!(fake.asked(), [Asked::Prune(asked)]);
    let ran = fake.run(&["prune", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&json["dry_run"], &json["bytes"]), (&false.into(), &2048.into()));
    assert_eq!(json["removed"][0]["version"], "1");
    assert_eq!(json["kept"][0]["reason"], "in use: somebody");
    assert_eq!(fake.asked(), [Asked::Prune(PruneRequest::default())]);
}

#[test]
fn versions_are_removed_by_name() {
    let fake = Fake::start();
    let ran = fake.run(&["rm", "tzdata@1", "tzdata@stable"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.ends_with("\n2 removed, 4.0 KiB of layers\n"), "{}", ran.stdout);
    let asked =
        |version: &str| Asked::Remove(RemoveRequest { name: "tzdata".into(), version: version.into() });
    assert_eq!(fake.asked(), [asked("1"), asked("stable")]);
    let ran = fake.run(&["rm", &format!("tzdata@{TAKEN}")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(ran.stderr, "capsulectl: tzdata@9.9.9 cannot be removed: in use: somebody\n");
    fake.asked();
    assert_eq!(fake.run(&["rm", "tzdata@1", "tzdata"]).code, Some(2));
    assert!(fake.asked().is_empty());
}
