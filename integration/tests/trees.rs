//! The judge of trees on real files: it finds each kind of difference, and no other.
//!
//! Owners, devices and trusted attributes need root.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use capsule_integration::trees::{Changed, Window, differences, read};
use capsule_integration::workspace::{Workspace, remove_tree, require_root};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

/// Long before the test.
const THEN: i64 = 1_700_000_000;

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).context("set a file's time")
}

fn device(path: &Path, kind: FileType, minor: u32) -> Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), makedev(1, minor)).context("make a device")
}

fn xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty()).with_context(|| format!("set {name}"))
}

/// A tree of one of each.
fn plant(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("folder"))?;
    fs::write(root.join("folder/file"), "content")?;
    fs::write(root.join("one"), "of two")?;
    fs::hard_link(root.join("one"), root.join("two"))?;
    fs::write(root.join("three"), "of two")?;
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"odd\xff\n")), "")?;
    symlink("folder/file", root.join("link"))?;
    device(&root.join("device"), FileType::CharacterDevice, 3)?;
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    xattr(&root.join("folder/file"), "user.a", b"1")?;
    xattr(&root.join("folder"), "trusted.a", b"1")?;
    File::create(root.join("sparse"))?.set_len(1 << 20)?;
    for name in ["folder/file", "one", "three", "link", "device", "fifo", "sparse", "folder"] {
        set_time(&root.join(name), THEN, 7)?;
    }
    Ok(())
}

/// What is done to one of two equal trees, and what is found then.
type Case = (fn(&Path) -> Result<()>, &'static [&'static str]);

const CASES: [Case; 16] = [
    (|_| Ok(()), &[]),
    (
        |root| Ok(fs::set_permissions(root.join("folder"), PermissionsExt::from_mode(0o1755))?),
        &["folder permissions"],
    ),
    (
        |root| Ok(fs::set_permissions(root.join("folder/file"), PermissionsExt::from_mode(0o4644))?),
        &["folder/file permissions"],
    ),
    (|root| Ok(lchown(root.join("link"), Some(7), None)?), &["link owner"]),
    (|root| Ok(chown(root.join("folder"), None, Some(7))?), &["folder group"]),
    (|root| set_time(&root.join("fifo"), THEN, 8), &["fifo time"]),
    (|root| set_time(&root.join("link"), THEN + 1, 7), &["link time"]),
    (
        |root| {
            File::open(root.join("sparse"))?
                .set_modified(UNIX_EPOCH + Duration::from_secs(4_000_000_000))
                .context("the future")
        },
        &["sparse time"],
    ),
    (|root| xattr(&root.join("folder/file"), "user.a", b"2"), &["folder/file extended attributes"]),
    (|root| xattr(&root.join("folder"), "trusted.overlay.opaque", b"y"), &["folder extended attributes"]),
    (|root| xattr(&root.join("link"), "trusted.a", b"y"), &["link extended attributes"]),
    (
        |root| {
            fs::write(root.join("folder/file"), "CONTENT")?;
            set_time(&root.join("folder/file"), THEN, 7)
        },
        &["folder/file content"],
    ),
    (
        |root| {
            fs::remove_file(root.join("link"))?;
            symlink("folder/FILE", root.join("link"))?;
            set_time(&root.join("link"), THEN, 7)
        },
        &["link content"],
    ),
    (
        |root| {
            fs::remove_file(root.join("device"))?;
            device(&root.join("device"), FileType::CharacterDevice, 5)?;
            set_time(&root.join("device"), THEN, 7)
        },
        &["device device"],
    ),
    // The same numbers of links, but of other files.
    (
        |root| {
            fs::remove_file(root.join("two"))?;
            fs::hard_link(root.join("three"), root.join("two"))?;
            Ok(())
        },
        &["one links", "three links", "two same file as"],
    ),
    (
        |root| {
            fs::remove_file(root.join("fifo"))?;
            fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xfe")), "")?;
            Ok(())
        },
        &["fifo file", "\\xfe file"],
    ),
];

#[test]
fn privileged_every_kind_of_difference_is_found() -> Result<()> {
    require_root("a test of owners and devices")?;
    let workspace = Workspace::of(Path::new(env!("CARGO_BIN_EXE_capsule-testbed")))?;
    let folder = workspace.target("tmp")?.join(format!("trees-{}", std::process::id()));
    let outcome = (|| -> Result<()> {
        for (number, (change, expected)) in CASES.into_iter().enumerate() {
            remove_tree(&folder)?;
            let window = Window::open()?;
            let (first, second) = (folder.join("first"), folder.join("second"));
            plant(&first)?;
            plant(&second)?;
            change(&second).with_context(|| format!("case {number}"))?;
            let (first, second) = (read(&first, window)?, read(&second, window)?);
            let found: Vec<String> = differences(&first, &second)
                .iter()
                .map(|difference| format!("{} {}", difference.path.escape_ascii(), difference.what))
                .collect();
            ensure!(found == expected, "case {number}: {found:?} instead of {expected:?}");
            ensure!(first[&b"odd\xff\n"[..]].changed == Changed::Meanwhile, "made a moment ago");
            ensure!(first[&b"one"[..]].changed == Changed::At(THEN, 7), "set to another time");
        }
        Ok(())
    })();
    remove_tree(&folder)?;
    outcome
}
