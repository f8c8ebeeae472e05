//! What is written to attachments, against a capsuled that keeps what it was asked.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1::commit_request::Of;
use capsule_proto::capsule::v1::{AttachmentRef, CommitRequest, ContainerRef, RemoveUpperRequest, Writable};

use crate::fake::{Asked, Fake};

fn run(fake: &Fake, line: &str) -> (Option<i32>, String, String) {
    let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
    (ran.code, ran.stdout, ran.stderr)
}

#[test]
fn what_can_be_written_to_is_asked_for() {
    for (words, persist, size) in [
        ("--writable", "", 0),
        ("--writable --size 64MiB", "", 64 << 20),
        ("--persist notes", "notes", 0),
        ("--persist notes --size 2GiB", "notes", 2 << 30),
    ] {
        let fake = Fake::start();
        assert_eq!(run(&fake, &format!("attach web tzdata {words}")).0, Some(0), "{words}");
        let Some(Asked::Attach(request)) = fake.asked().pop() else { panic!("not asked: {words}") };
        assert_eq!(request.specs[0].writable, Some(Writable { persist: persist.into(), size }), "{words}");
    }
    for words in [
        "tzdata --size 1GiB",
        "tzdata ca --writable",
        "tzdata --writable --size 0",
        "tzdata --writable --persist x",
    ] {
        let fake = Fake::start();
        assert_eq!(run(&fake, &format!("attach web {words}")).0, Some(2), "{words}");
        assert_eq!(fake.asked(), []);
    }
}

#[test]
fn what_becomes_of_it_is_said() {
    for (words, drop, keep) in [("", false, ""), (" --drop", true, ""), (" --keep notes", false, "notes")] {
        let fake = Fake::start();
        assert_eq!(run(&fake, &format!("detach web tzdata{words}")).0, Some(0), "{words}");
        let Some(Asked::Detach(request)) = fake.asked().pop() else { panic!("not asked: {words}") };
        assert_eq!((request.drop, request.keep.as_str()), (drop, keep), "{words}");
    }
    assert_eq!(run(&Fake::start(), "detach web tzdata --drop --keep notes").0, Some(2));
}

#[test]
fn it_becomes_a_version() {
    let fake = Fake::start();
    let ran = run(&fake, "commit k8s.io/web tzdata --version 2026.1 --target /t --tag stable");
    let text = format!("tzdata@2026.1 published, over tzdata@2025.9: {}\n", fake::version().digest);
    assert_eq!(ran, (Some(0), text, String::new()));
    let container = Some(ContainerRef { id: "web".into(), namespace: "k8s.io".into() });
    let of = AttachmentRef { container, capsule: "tzdata".into(), target: "/t".into() };
    let asked =
        CommitRequest { version: "2026.1".into(), tags: vec!["stable".into()], of: Some(Of::Attachment(of)) };
    assert_eq!(fake.asked(), [Asked::Commit(asked)]);
    let fake = Fake::start();
    assert_eq!(run(&fake, "commit --upper notes --version 2").0, Some(0));
    let of = Some(Of::Upper("notes".into()));
    assert_eq!(fake.asked(), [Asked::Commit(CommitRequest { version: "2".into(), tags: Vec::new(), of })]);
    for words in ["web --version 1", "--version 1", "web tzdata", "web tzdata --upper x --version 1"] {
        assert_eq!(run(&Fake::start(), &format!("commit {words}")).0, Some(2), "{words}");
    }
}

#[test]
fn what_is_kept_is_listed_and_removed() {
    let fake = Fake::start();
    for words in ["uppers", "uppers ls"] {
        let (code, text, _) = run(&fake, words);
        assert_eq!(code, Some(0));
        let line = text.lines().nth(1).expect("a row").split_whitespace().collect::<Vec<_>>();
        assert_eq!(
            (&line[..5], line.last()),
            (&["notes", "tzdata", "2026.1", "1.0", "GiB"][..], Some(&"a1"))
        );
    }
    let (code, text, _) = run(&fake, "-o json uppers");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["uppers"][0]["size"]), (Some(0), &serde_json::json!(1 << 30)));
    assert_eq!(run(&fake, "uppers rm notes").1, "notes is removed, written over tzdata@2026.1\n");
    assert_eq!(fake.asked(), [Asked::RemoveUpper(RemoveUpperRequest { name: "notes".into() })]);
}
