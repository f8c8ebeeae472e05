//! `keygen`, `sign` and `verify`: what is written, sent and believed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // each test uses a part of it
mod fake;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use capsule_signatures::{PublicKey, Subject};
use fake::{Asked, Fake};

#[test]
fn a_key_signs_and_its_other_half_checks() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    for pair in ["release", "other"] {
        let ran = fake.run(&["keygen", &at(pair)]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let mode = fs::metadata(at("release.key")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // One that is there is not written over.
    let again = fake.run(&["keygen", &at("release")]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("release.key") && again.stderr.contains("exists"), "{}", again.stderr);

    let unsigned = fake.run(&["verify", "tzdata", "--key", &at("release.pub")]);
    assert_eq!(unsigned.code, Some(1));
    assert!(unsigned.stderr.contains("tzdata@2026.1 has no good signature"), "{}", unsigned.stderr);
    let ran = fake.run(&["sign", "tzdata@stable", "--key", &at("release.key")]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let good = fake.run(&["verify", "tzdata", "--key", &at("release.pub")]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains("(good signatures: 1 of 1)"), "{}", good.stdout);
    for other in [&["verify", "tzdata", "--key", &at("other.pub")][..], &["verify", "tzdata"]] {
        assert_eq!(fake.run(other).code, Some(1), "{other:?}");
    }

    let key = PublicKey::from_pem(&fs::read_to_string(at("release.pub")).expect("a key")).expect("a key");
    let asked = fake.asked();
    let request =
        asked.iter().find_map(|a| if let Asked::Sign(r) = a { Some(r) } else { None }).expect("a sign");
    let signature = request.signature.as_ref().expect("a signature");
    assert!(key.verifies(&signature.payload, &signature.signature));
    let subject = Subject::parse(&signature.payload).expect("a payload");
    assert_eq!(subject.digest, fake::version().digest);
    assert_eq!((subject.name.as_deref(), subject.version.as_deref()), (Some("tzdata"), Some("2026.1")));
    assert_eq!((request.name.as_str(), request.version.as_str()), ("tzdata", "2026.1"));
}

#[test]
fn what_is_no_key_is_named() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("none.key");
    fs::write(&path, "no key").expect("a file");
    let path = path.to_str().expect("UTF-8");
    for (args, word) in [
        (["sign", "tzdata", "--key", path], "no private key"),
        (["verify", "tzdata", "--key", path], "no public key"),
        (["sign", "tzdata", "--key", "/nonexistent.key"], "No such file"),
    ] {
        let ran = fake.run(&args);
        assert_eq!(ran.code, Some(1));
        assert!(ran.stderr.contains(word) && ran.stderr.contains(args[3]), "{}", ran.stderr);
    }
    assert!(fake.asked().is_empty());
}
