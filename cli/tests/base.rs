//! `build --base` and `build --image` of the real binary against a fake capsuled. No root needed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use capsule_proto::capsule::v1;
use fake::{Asked, Fake, version};

fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("entries");
    entries.map(|e| e.expect("an entry").path().expect("a path").display().to_string()).collect()
}

#[test]
fn only_what_differs_from_the_base_is_sent() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in [("kept", "same\n"), ("other", "diff\n"), ("new", "")] {
        fs::write(dir.path().join(name), content).expect("a file");
        fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o644)).expect("a mode");
    }
    let path = dir.path().to_str().expect("UTF-8");
    let words = ["build", path, "--name", "tzdata", "--version", "2026.2", "--base", "tzdata"];
    let ran = fake.run(&words);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("(2 files, 5 B,"), "{}", ran.stdout);
    let asked = fake.asked();
    let [Asked::ListTree(list), Asked::Build { header, tar, whole: true, .. }] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(list.with_digests);
    let wanted = v1::VersionRef { capsule: "tzdata".into(), ..v1::VersionRef::default() };
    assert_eq!(list.version, Some(wanted));
    let base = v1::BuildBase { capsule: "tzdata".into(), version: "2026.1".into(), digest: version().digest };
    assert_eq!(header.base, Some(base));
    assert_eq!(names(tar), [".wh.gone", "new", "other"]);
}

#[test]
fn an_image_is_named_and_no_tar_follows() {
    let fake = Fake::start();
    let words = ["build", "--image", "registry.example/debian:13", "--name", "debian", "--version", "13"];
    for namespace in [None, Some("default")] {
        let more: &[&str] = if namespace.is_some() { &["--image-namespace", "default"] } else { &[] };
        let ran = fake.run(&[&words[..], more].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        let [Asked::Build { header, tar, whole: true, .. }] = &fake.asked()[..] else { panic!("one build") };
        let image = v1::BuildImage {
            reference: "registry.example/debian:13".into(),
            namespace: namespace.unwrap_or_default().into(),
        };
        assert_eq!((header.image.as_ref(), header.base.as_ref()), (Some(&image), None));
        assert!(tar.is_empty());
    }
}

#[test]
fn what_does_not_go_together() {
    let fake = Fake::start();
    let named = ["--name", "n", "--version", "1"];
    for (words, want) in [
        (&["build", "--tar", "x.tar", "--base", "n@0"][..], "--base"),
        (&["build", "--image", "x", "--base", "n@0"], "--base"),
        (&["build", "--image", "x", "--keep-owner"], "--keep-owner"),
        (&["build", "--image", "x", "--source-date-epoch", "1"], "times they have"),
        (&["build", "--image", "x", "--tar", "y"], "--tar"),
        (&["build", "d", "--image", "x"], "--image"),
        (&["build", "d", "--image-namespace", "x"], "--image-namespace"),
    ] {
        let ran = fake.run(&[words, &named].concat());
        assert_eq!(ran.code, Some(2), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(want), "{words:?}: {}", ran.stderr);
    }
    assert_eq!(fake.asked(), []);
}
