//! Versions that move: what `pull`, `push`, `save`, `load` and `import` send, print and leave behind.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // each test uses a part of it
mod fake;

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use capsule_proto::capsule::v1;

use fake::transfers::ARCHIVE;
use fake::{Asked, Fake, Ran, command};

/// Runs it with `input` on standard input, and no Docker of whoever runs the test.
fn run(fake: &Fake, line: &str, input: &str) -> Ran {
    let args: Vec<_> = line.split(' ').collect();
    let mut command = command(&fake.socket(), &args);
    command.env("DOCKER_CONFIG", "/nonexistent").env_remove("CAPSULE_PASSWORD");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("capsulectl runs");
    // It may end without reading it.
    let _ = child.stdin.take().expect("standard input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its end");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn what_goes_over_the_wire() {
    let fake = Fake::start();
    let pull = |naming: Option<(&str, &str)>, credentials: Vec<v1::Credential>| {
        let naming = naming.map(|(name, version)| v1::As { name: name.into(), version: version.into() });
        Asked::Pull(v1::PullRequest { reference: "h:1/zones:1".into(), r#as: naming, credentials })
    };
    let ci = v1::Credential { host: "h:1".into(), username: "ci".into(), password: "open sesame".into() };
    let push = |version: &str, credentials| {
        let (version, reference) = (version.into(), "h:1/zones".into());
        Asked::Push(v1::PushRequest { name: "tz".into(), version, reference, credentials })
    };
    for (line, input, want) in [
        ("pull h:1/zones:1", "", pull(None, Vec::new())),
        ("pull h:1/zones:1 --as tz", "", pull(Some(("tz", "")), Vec::new())),
        (
            "pull h:1/zones:1 --as tz@2 --user ci",
            "open sesame\r\nmore\n",
            pull(Some(("tz", "2")), vec![ci.clone()]),
        ),
        ("push tz h:1/zones", "", push("", Vec::new())),
        ("push tz@stable h:1/zones --user ci", "open sesame", push("stable", vec![ci])),
        ("load", "bytes", Asked::Load(b"bytes".to_vec())),
        ("load -f -", "", Asked::Load(Vec::new())),
        (
            "import h/box:1 -n moby --as box@1",
            "",
            Asked::Import(v1::ImportRequest {
                image: "h/box:1".into(),
                namespace: "moby".into(),
                r#as: Some(v1::As { name: "box".into(), version: "1".into() }),
            }),
        ),
    ] {
        let ran = run(&fake, line, input);
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        assert_eq!(fake.asked(), [want], "{line}");
    }
}

#[test]
fn progress_is_on_standard_error_and_the_result_on_standard_output() {
    let fake = Fake::start();
    let ran = run(&fake, "pull h:1/zones:1", "");
    assert_eq!(ran.stderr, "downloading layer-sha256:aa (2.0 KiB)\ncomplete layer-sha256:aa (2.0 KiB)\n");
    let digest = fake::version().digest;
    assert_eq!(ran.stdout, format!("tzdata@2026.1  {digest}  (new, from h:1/zones:1)\n"));
    let ran = run(&fake, "pull h:1/zones:1 -o json", "");
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
    assert_eq!(
        (ran.stderr.as_str(), &json["existed"], &json["reference"]),
        ("", &false.into(), &"h:1/zones:1".into())
    );
    let ran = run(&fake, "pull h:1/zones:refused -o json", "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(ran.stderr, "capsulectl: there is no such image\n");
    let ran = run(&fake, "push tz h:1/zones", "");
    assert_eq!(ran.stdout, format!("tzdata@2026.1  {digest}  (pushed to h:1/zones)\n"));
    let ran = run(&fake, "load", "x");
    assert_eq!(ran.stdout.lines().count(), 2);
    assert!(ran.stdout.contains("(already here, from h:1/zones:1)"), "{}", ran.stdout);
}

#[test]
fn an_archive_is_there_whole_or_not_at_all() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let file = dir.path().join("a.tar");
    let name = file.to_str().expect("UTF-8");
    let ran = run(&fake, &format!("save tz@1 ca -f {name}"), "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(fs::read(&file).expect("an archive"), ARCHIVE.concat());
    let saved = |name: &str, version: &str| v1::Saved { name: name.into(), version: version.into() };
    assert_eq!(
        fake.asked(),
        [Asked::Save(v1::SaveRequest { versions: vec![saved("tz", "1"), saved("ca", "")] })]
    );
    // One that breaks off leaves the old one as it was.
    let ran = run(&fake, &format!("save broken -f {name}"), "");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), "capsulectl: it broke off\n"));
    assert_eq!(fs::read(&file).expect("an archive"), ARCHIVE.concat());
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    let ran = run(&fake, "save tz", "");
    assert_eq!(ran.stdout.as_bytes(), ARCHIVE.concat());
    let ran = run(&fake, "save broken", "");
    assert_eq!(ran.code, Some(1));
}

#[test]
fn what_is_wrong_usage() {
    let fake = Fake::start();
    for (line, word) in [
        ("pull h:1/zones:1 --user ci", "it is empty"),
        ("import h/box:1", "--namespace"),
        ("pull", "HOST"),
        ("push tz", "HOST"),
        ("save", "NAME"),
    ] {
        let ran = run(&fake, line, "");
        assert_eq!(ran.code, Some(2), "{line}: {ran:?}");
        assert!(ran.stderr.contains(word), "{line}: {}", ran.stderr);
    }
    let ran = run(&fake, "load -f /nonexistent.tar", "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("/nonexistent.tar"), "{}", ran.stderr);
    assert!(fake.asked().is_empty());
}
