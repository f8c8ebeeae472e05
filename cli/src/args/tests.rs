//! Command lines, as tables.

use std::path::Path;

use super::*;

mod examples;

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn capsule_refs() {
    let full = |name: &str, version: Option<&str>| {
        Some(CapsuleRef { name: name.into(), version: version.map(Into::into) })
    };
    for (text, want) in [
        ("tzdata", full("tzdata", None)),
        ("tzdata@2026.1", full("tzdata", Some("2026.1"))),
        ("tzdata@", None),
        ("@1", None),
        ("", None),
        ("a@1@2", None),
    ] {
        assert_eq!(text.parse::<CapsuleRef>().ok(), want, "{text:?}");
    }
}

#[test]
fn a_version_has_no_place_in_a_name() {
    assert_eq!("tzdata".parse(), Ok(CapsuleName("tzdata".into())));
    assert!("tzdata@1".parse::<CapsuleName>().is_err());
}

#[test]
fn containers() {
    let full = |id: &str, namespace: Option<&str>| {
        Some(ContainerArg { id: id.into(), namespace: namespace.map(Into::into) })
    };
    for (text, want) in [
        ("web", full("web", None)),
        ("k8s.io/3f2a", full("3f2a", Some("k8s.io"))),
        ("", None),
        ("/web", None),
        ("k8s.io/", None),
        ("a/b/c", None),
        ("pod/c1", full("c1", Some("pod"))),
        ("pod/shop/web", full("pod/shop/web", None)),
        ("pod/shop/web/app", full("pod/shop/web/app", None)),
    ] {
        assert_eq!(text.parse::<ContainerArg>().ok(), want, "{text:?}");
    }
}

#[test]
fn key_values() {
    let full = |key: &str, value: &str| Some(KeyValue { key: key.into(), value: value.into() });
    for (text, want) in [
        ("a=b", full("a", "b")),
        ("a=", full("a", "")),
        ("a=b=c", full("a", "b=c")),
        ("=b", None),
        ("a", None),
    ] {
        assert_eq!(text.parse::<KeyValue>().ok(), want, "{text:?}");
    }
}

#[test]
fn command_lines() {
    for (line, ok) in [
        ("build d --name n --version 1", true),
        ("build d --name n --version 1 --annotation a=b --annotation c=d --mode union --target /", true),
        ("build d --name n --version 1 --source-date-epoch 1700000000", true),
        ("build d --name n --version 1 --source-date-epoch -1", false),
        ("build d --name n --version 1 --source-date-epoch 8589934592", false),
        // What the line leaves out may be in capsule.toml.
        ("build d", true),
        ("build d --name n", true),
        ("build d --file f --require ca-bundle --require cuda --env A=b --env C=", true),
        ("build d --env A", false),
        ("build d --name=", false),
        ("build d --version=", false),
        ("build d --require=", false),
        ("build --name n --version 1", false),
        ("build --tar t --name n --version 1 --keep-owner", false),
        ("build --tar t --name n --version 1 --source-date-epoch 0", false),
        ("build --tar t d --name n --version 1", false),
        ("build --tar - --file f", true),
        ("ls", true),
        ("ls tzdata --output json", true),
        ("--output json ls", true),
        ("ls --output yaml", false),
        ("inspect tzdata@1", true),
        ("inspect", false),
        ("attach c a@1 b", true),
        ("attach c", false),
        ("attach c a --mode rw", false),
        ("upgrade c a", true),
        ("upgrade c a@2 --target /x", true),
        ("rollback c a", true),
        ("rollback c a@2", false),
        ("detach c a --lazy --target /x", true),
        ("detach c a@1", false),
        // An unset variable of a script is not "wherever it is".
        ("detach c a --target=", false),
        ("attach c a --target=", false),
        ("ps", true),
        ("ps ns/c --users", true),
        ("ps -n ns c", true),
        ("completion bash", true),
        ("completion vi", false),
        ("", false),
    ] {
        let words = ["capsulectl"].into_iter().chain(line.split_whitespace());
        assert_eq!(Cli::parse_line(words).is_ok(), ok, "{line:?}");
    }
}

#[test]
fn a_build_has_one_source() {
    for (line, want) in [
        ("build d", Source::Directory(Path::new("d"))),
        ("build ./-", Source::Directory(Path::new("./-"))),
        ("build --tar t", Source::Tar(Path::new("t"))),
        ("build --tar -", Source::Tar(Path::new("-"))),
    ] {
        let words = ["capsulectl"].into_iter().chain(line.split_whitespace());
        let Command::Build(args) = Cli::parse_line(words).expect(line).command else { panic!("{line}") };
        assert_eq!(args.source.given(), Some(want), "{line}");
    }
}
