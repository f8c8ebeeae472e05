//! `build` of the real binary against a server of the tests: what a tree's `capsule.toml` and `.capsuleignore` do,
//! and tars. No root needed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use capsule_proto::capsule::v1::{self, Mode};

use fake::{Asked, Fake, Ran, TAKEN, capsulectl, command, finish};

/// Most time that a command may take that has nothing to wait for.
const SOON: Duration = Duration::from_secs(30);

const DECLARATION: &str = r#"
name = "tzdata"
version = "2026.1"
target = "/usr/share/zoneinfo"
mode = "union"
requires = ["ca-bundle >=2026, <2027"]
devices = ["example.com/clock=rtc"]

[environment]
TZDIR = "/usr/share/zoneinfo"

[resources]
"pids.max" = 64

[caps]
"cpu.max" = "1cpus"

[annotations]
team = "time"
"#;

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("a file");
    }
}

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), files);
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The one build that the fake heard, to its end.
fn heard(fake: &Fake) -> (v1::BuildHeader, Vec<u8>) {
    match <[Asked; 1]>::try_from(fake.asked()).expect("one call") {
        [Asked::Build { header, tar, whole: true, .. }] => (*header, tar),
        [other] => panic!("{other:?}"),
    }
}

fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("entries");
    entries.map(|e| e.expect("an entry").path().expect("a path").display().to_string()).collect()
}

fn is_done(ran: &Ran) {
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
}

fn is_refused(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}

#[test]
fn a_declared_tree_needs_no_options() {
    let (fake, dir) = (Fake::start(), tree(&[("capsule.toml", DECLARATION), ("UTC", "UTC")]));
    is_done(&fake.run(&["build", text(dir.path())]));
    let (header, tar) = heard(&fake);
    let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let want = v1::BuildHeader {
        name: "tzdata".into(),
        version: "2026.1".into(),
        default_target: "/usr/share/zoneinfo".into(),
        default_mode: Mode::Union.into(),
        annotations: pair("team", "time"),
        requires: vec!["ca-bundle >=2026, <2027".into()],
        environment: pair("TZDIR", "/usr/share/zoneinfo"),
        resources: pair("pids.max", "64"),
        caps: pair("cpu.max", "1cpus"),
        devices: vec!["example.com/clock=rtc".into()],
        ..v1::BuildHeader::default()
    };
    assert_eq!(header, want);
    assert_eq!(names(&tar), ["UTC"]);
}

#[test]
fn options_win_and_add() {
    let (fake, dir) = (Fake::start(), tree(&[("capsule.toml", DECLARATION), ("UTC", "UTC")]));
    let line = ["build", text(dir.path()), "--version", "2026.2", "--mode", "ro", "--env", "LANG=C"];
    is_done(&fake.run(&[&line[..], &["--require", "ca-bundle >=2027", "--require", "tools"]].concat()));
    let (header, _) = heard(&fake);
    assert_eq!((header.name.as_str(), header.version.as_str()), ("tzdata", "2026.2"));
    assert_eq!(header.default_mode(), Mode::Ro);
    assert_eq!(header.requires, ["ca-bundle >=2027", "tools"]);
    assert_eq!((header.environment.len(), header.environment["LANG"].as_str()), (2, "C"));
}

/// The file that is named and lies in the tree is no part of it, and neither is the one that it stands in for.
#[test]
fn another_file_may_be_named() {
    let fake = Fake::start();
    let dir = tree(&[("capsule.toml", "wrong"), ("d/other.toml", DECLARATION), ("d/UTC", "UTC")]);
    let inside = dir.path().join("d/other.toml");
    is_done(&fake.run(&["build", text(dir.path()), "--file", text(&inside)]));
    let (header, tar) = heard(&fake);
    assert_eq!(header.name, "tzdata");
    assert_eq!(names(&tar), ["d/", "d/UTC"]);

    let elsewhere = tree(&[("x.toml", DECLARATION)]);
    is_done(&fake.run(&["build", text(dir.path()), "--file", text(&elsewhere.path().join("x.toml"))]));
    assert_eq!(names(&heard(&fake).1), ["d/", "d/UTC", "d/other.toml"]);
}

#[test]
fn a_wrong_declaration_is_refused_with_its_line() {
    let (fake, dir) = (Fake::start(), tree(&[("UTC", "UTC")]));
    let file = dir.path().join("capsule.toml");
    let at = |line: usize| format!("`{}` line {line}: ", file.display());
    for (content, parts) in [
        ("name = 'a'\nversoin = '1'\n", &[at(2).as_str(), "unknown field `versoin`", "`requires`"][..]),
        ("name = 'a'\n\nversion = 1.0\n", &[&at(3), "expected a string"]),
        ("[resources]\n'pids.max' = true\n", &[&at(2), "a string or a whole number"]),
        ("name =", &[&at(1)]),
    ] {
        fs::write(&file, content).expect("a file");
        is_refused(&fake.run(&["build", text(dir.path())]), 1, parts);
    }
    assert!(fake.asked().is_empty());
}

#[test]
fn where_name_and_version_can_come_from() {
    let (fake, dir) = (Fake::start(), tree(&[("UTC", "UTC")]));
    let file = dir.path().join("capsule.toml");
    let written = format!("write `name` in `{}`", file.display());
    is_refused(&fake.run(&["build", text(dir.path())]), 2, &["pass --name", &written]);
    fs::write(&file, "name = 'tzdata'").expect("a file");
    is_refused(&fake.run(&["build", text(dir.path())]), 2, &["pass --version", "write `version` in "]);
    let line = ["build", "--tar", "none.tar", "--name", "tzdata"];
    is_refused(&fake.run(&line), 2, &["pass --version", "in a file that --file names"]);
    assert!(fake.asked().is_empty());
}

/// A tree from elsewhere must not make capsulectl quote, or wait for, what its author has no business with.
#[test]
fn a_tree_does_not_lead_its_declaration_astray() {
    let (fake, secret) = (Fake::start(), tree(&[("secret", "key = 'secret'")]));
    for name in ["capsule.toml", ".capsuleignore"] {
        let dir = tree(&[("UTC", "UTC")]);
        let file = dir.path().join(name);
        let refused = |what: &str| {
            let ran = fake.run(&["build", text(dir.path()), "--name", "a", "--version", "1"]);
            is_refused(&ran, 1, &[text(&file), what]);
            assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
        };
        symlink(secret.path().join("secret"), &file).expect("a link");
        refused("not a regular file");
        fs::remove_file(&file).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, 0o600.into()).expect("a FIFO");
        refused("not a regular file");
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("a directory");
        refused("not a regular file");
        fs::remove_dir(&file).expect("removed");
        File::create(&file).and_then(|f| f.set_len((1 << 20) + 1)).expect("a large file");
        refused("more than 1048576 bytes");
    }
    assert!(fake.asked().is_empty());
}

#[test]
fn what_is_ignored_is_not_part_of_the_tree() {
    let fake = Fake::start();
    let plain = tree(&[("a", "a"), ("d/keep", "k"), ("empty/x.o", "o")]);
    fs::remove_file(plain.path().join("empty/x.o")).expect("removed");
    let other = tree(&[("a", "a"), ("d/keep", "k"), ("empty/x.o", "o")]);
    let ignore = "*.o\n/build/\n.git\n.capsuleignore\n!d/b.o\n";
    write(other.path(), &[(".capsuleignore", ignore), ("build/a", "a"), ("b.o", "b"), (".git/HEAD", "h")]);
    // What a nested file says does not count, and it is a file as any other: it is left out by name here.
    write(other.path(), &[("d/.capsuleignore", "keep")]);
    let line = |dir: &'static str| ["build", dir, "--name", "a", "--version", "1"];
    let archive = |dir: &Path| {
        let mut line = line("");
        line[1] = text(dir);
        is_done(&fake.run(&line));
        heard(&fake).1
    };
    let want = archive(plain.path());
    assert_eq!(names(&want), ["a", "d/", "d/keep", "empty/"]);
    assert!(archive(other.path()) == want, "the same tree has the same archive");

    fs::write(other.path().join(".capsuleignore"), "/*\n!a\n!d\n").expect("a file");
    assert_eq!(names(&archive(other.path())), ["a", "d/", "d/.capsuleignore", "d/keep"]);
}

#[test]
fn a_bad_pattern_is_refused_with_its_line() {
    let (fake, dir) = (Fake::start(), tree(&[("a", "a"), (".capsuleignore", "# x\n*.o\n[ab\n")]));
    let ran = fake.run(&["build", text(dir.path()), "--name", "a", "--version", "1"]);
    let at = format!("`{}/.capsuleignore` line 3 is no pattern", dir.path().display());
    is_refused(&ran, 1, &[&at, "unclosed character class"]);

    fs::write(dir.path().join(".capsuleignore"), "*").expect("a file");
    let ran = fake.run(&["build", text(dir.path()), "--name", "a", "--version", "1"]);
    is_refused(&ran, 1, &[text(dir.path()), "all of it is excluded"]);
    assert!(fake.asked().is_empty());
}

/// Not even looked at: for a user who is not root the directory could not be read.
#[test]
fn what_is_ignored_is_not_opened() {
    let (fake, dir) =
        (Fake::start(), tree(&[("a", "a"), ("private/x", "x"), (".capsuleignore", "private\n")]));
    let private = dir.path().join("private");
    // Root reads whatever its mode: a name that no archive can hold is what shows that nobody entered.
    write(&private, &[(".wh.x", "")]);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o000)).expect("a mode");
    let ran = fake.run(&["build", text(dir.path()), "--name", "a", "--version", "1"]);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).expect("a mode");
    is_done(&ran);
    assert_eq!(names(&heard(&fake).1), ["a"]);
}

/// Several chunks, a member that no build of ours would make, and records of twenty blocks as GNU tar pads them.
fn foreign_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mtime(1_234_567);
        header.set_uid(1000);
        builder.append_data(&mut header, path, content).expect("a member");
    };
    add("z", b"z");
    add("a", &vec![b'a'; 3 << 20]);
    let mut tar = builder.into_inner().expect("an archive");
    tar.resize(tar.len().next_multiple_of(10_240), 0);
    tar
}

#[test]
fn a_tar_is_published_as_it_is() {
    let (fake, tar) = (Fake::start(), foreign_tar());
    let dir = tree(&[("x.toml", DECLARATION)]);
    let (archive, file) = (dir.path().join("x.tar"), dir.path().join("x.toml"));
    fs::write(&archive, &tar).expect("a file");
    let line = ["build", "--tar", text(&archive), "--file", text(&file)];
    // Set for all builds of a script; a tar has its own times.
    let ran = finish(command(&fake.socket(), &line).env("SOURCE_DATE_EPOCH", "1"));
    is_done(&ran);
    let start = format!("tzdata@2026.1  {}  (3.0 MiB, ", fake::version().digest);
    assert!(ran.stdout.starts_with(&start), "{}", ran.stdout);
    let [Asked::Build { header, tar: got, chunks: 4, whole: true }] = &fake.asked()[..] else {
        panic!("another call");
    };
    assert_eq!(header.requires.len(), 1);
    assert!(*got == tar, "{} of {} bytes", got.len(), tar.len());

    let piped = ["build", "--tar", "-", "--name", "a", "--version", "1", "-o", "json"];
    let stdin = File::open(&archive).expect("the archive");
    let ran = finish(command(&fake.socket(), &piped).stdin(stdin));
    is_done(&ran);
    let built: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&built["files"], &built["bytes"]), (&serde_json::Value::Null, &tar.len().into()));
    assert!(heard(&fake).1 == tar);
}

#[test]
fn what_is_no_whole_tar_is_refused() {
    let (fake, dir, tar) = (Fake::start(), tree(&[]), foreign_tar());
    let archive = dir.path().join("x.tar");
    let run = |content: &[u8]| {
        fs::write(&archive, content).expect("a file");
        fake.run(&["build", "--tar", text(&archive), "--name", "a", "--version", "1"])
    };
    let name = format!("`{}` ", archive.display());
    is_refused(
        &run(b"\x1f\x8b\x08 and more"),
        1,
        &[&name, "compressed", "gzip -dc FILE | capsulectl build --tar -"],
    );
    is_refused(&run(&[b'x'; 600]), 1, &[&name, "is not a tar"]);
    is_refused(&run(b""), 1, &[&name, "is empty"]);
    assert!(fake.asked().is_empty());
    // An unpacker would take this for all of it.
    is_refused(&run(&tar[..1024]), 1, &[&name, "broken off", "1024 bytes"]);
    is_refused(&run(&tar[..3 << 20]), 1, &[&name, "broken off"]);
    assert!(fake.asked().iter().all(|a| !matches!(a, Asked::Build { whole: true, .. })));
    let none = dir.path().join("none.tar");
    let ran = capsulectl(&fake.socket(), &["build", "--tar", text(&none), "--name", "a", "--version", "1"]);
    is_refused(&ran, 1, &[&format!("cannot open `{}`: No such file", none.display())]);
}

fn wait(mut child: Child) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("its end") {
            return status.code();
        }
        if started.elapsed() > SOON {
            child.kill().expect("killed");
            child.wait().expect("its end");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever writes the tar may take long, or forget to close the pipe: a refusal does not wait for that.
#[test]
fn a_refusal_does_not_wait_for_the_pipe() {
    let fake = Fake::start();
    let line = ["build", "--tar", "-", "--name", "tzdata", "--version", TAKEN];
    let mut child = command(&fake.socket(), &line)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("capsulectl runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut pipe, &foreign_tar()[..1024]).expect("the beginning");
    assert_eq!(wait(child), Some(1));
    drop(pipe);
}
