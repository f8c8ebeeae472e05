//! `diff`, beside a fake capsuled: what is asked, and what is printed of the answer.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1;
use fake::{Asked, Fake};

fn reference(capsule: &str, version: &str) -> Option<v1::VersionRef> {
    Some(v1::VersionRef { capsule: capsule.into(), version: version.into(), digest: String::new() })
}

#[test]
fn differences_are_lines_and_a_sum() {
    let fake = Fake::start();
    let ran = fake.run(&["diff", "tzdata@2026.1", "tzdata"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let want = "D a\nA b\\x1b[2J (0 B)\nM d/ (mode 755→700)\nM d/f (content 12→14 bytes)\n\
                tzdata@2026.1 → tzdata@2026.2: 1 added, 1 removed, 2 modified\n";
    assert_eq!(ran.stdout, want);
    let asked = v1::DiffTreesRequest { from: reference("tzdata", "2026.1"), to: reference("tzdata", "") };
    assert_eq!(fake.asked(), [Asked::Diff(asked)]);
}

#[test]
fn differences_are_one_document() {
    let fake = Fake::start();
    let ran = fake.run(&["diff", "tzdata@2026.1", "tzdata@2026.2", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let paths: Vec<_> = json["changes"].as_array().expect("changes").iter().map(|c| &c["path"]).collect();
    assert_eq!(paths, ["a", "b\x1b[2J", "d", "d/f"]);
    assert_eq!(json["to"]["version"], "2026.2");
    let content = &json["changes"][3];
    assert_eq!(content["what"], serde_json::json!(["content"]));
    assert_eq!((&content["from"]["size"], &content["to"]["size"]), (&12.into(), &14.into()));
    assert_eq!(json["changes"][0]["to"], serde_json::Value::Null);
}
