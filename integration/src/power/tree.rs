//! Files as images have them, and what is there afterwards: the manifest of a tree.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, makedev, mknodat};
use sha2::{Digest as _, Sha256};

use super::random::Random;
use crate::workspace::hex;

/// `cap_net_raw=ep`: version 2 of `struct vfs_cap_data` (linux/capability.h).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Changes a tree at random: most often many small files, now and then large ones, and everything else that a layer
/// may hold. Gives back how many changes it made.
pub fn change(root: &Path, random: &mut Random) -> Result<usize> {
    let count = match random.below(10) {
        0 => 0,
        1..=6 => 1 + random.below(12),
        _ => 12 + random.below(40),
    };
    for number in 0..count {
        let folder = root.join(format!("d{}", random.below(4)));
        if !folder.exists() {
            fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let path = folder.join(name(number, random));
        // A name may be there already, also as a directory: from below, in an overlay.
        if path.symlink_metadata().is_ok() { alter(&path, random) } else { make(&path, &folder, random) }
            .with_context(|| format!("change {}", path.display()))?;
    }
    Ok(count)
}

/// Few enough names that later changes meet earlier ones; some are no UTF-8.
fn name(number: usize, random: &mut Random) -> OsString {
    match random.below(12) {
        0 => OsString::from_vec(vec![b'n', 0xff, 0xfe, b'0' + u8::try_from(random.below(10)).unwrap_or(0)]),
        1 => OsString::from("l".repeat(200)),
        _ => OsString::from(format!("f{}", random.below(number + 8))),
    }
}

fn make(path: &Path, folder: &Path, random: &mut Random) -> Result<()> {
    match random.below(20) {
        0 => symlink("../somewhere/else", path)?,
        1 => fs::create_dir(path)?,
        2 => mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o640), makedev(1, 3))?,
        3 => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?,
        4 => {
            let mut sparse = File::create(path)?;
            sparse.seek(SeekFrom::Start(1 << 20))?;
            sparse.write_all(&random.bytes(100))?;
        }
        5 => {
            // As dpkg writes: beside it, then renamed into place.
            let beside = folder.join(".new");
            fs::write(&beside, content(random))?;
            fs::rename(&beside, path)?;
        }
        6 | 7 => match plain_file_in(folder)? {
            Some(file) => fs::hard_link(file, path)?,
            None => fs::write(path, content(random))?,
        },
        _ => fs::write(path, content(random))?,
    }
    if path.symlink_metadata()?.is_file() {
        decorate(path, random)?;
    }
    Ok(())
}

fn content(random: &mut Random) -> Vec<u8> {
    let length = match random.below(20) {
        0 => 0,
        1..=12 => random.below(4096),
        13..=18 => random.below(64 << 10),
        _ => random.below(512 << 10),
    };
    random.bytes(length)
}

fn plain_file_in(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn decorate(path: &Path, random: &mut Random) -> Result<()> {
    match random.below(8) {
        0 => lsetxattr(path, "user.note", &random.bytes(40), XattrFlags::empty())?,
        1 => lsetxattr(path, "trusted.note", &random.bytes(400), XattrFlags::empty())?,
        2 => lsetxattr(path, "security.capability", &CAPABILITY, XattrFlags::empty())?,
        3 => lchown(path, Some(1000), Some(100))?,
        4 => fs::set_permissions(path, PermissionsExt::from_mode(0o4755))?,
        _ => {}
    }
    Ok(())
}

fn alter(path: &Path, random: &mut Random) -> Result<()> {
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_dir() {
        return Ok(fs::remove_dir_all(path)?);
    }
    match random.below(4) {
        0 if kind.is_file() => Ok(File::options().append(true).open(path)?.write_all(&random.bytes(700))?),
        1 if kind.is_file() => decorate(path, random),
        _ => Ok(fs::remove_file(path)?),
    }
}

/// Everything about a tree that its owner could notice, one line per file, sorted by path.
///
/// `ROOT` itself is `.`. Left out: access times, inode numbers, and sizes of directories.
pub fn manifest(root: &Path) -> Result<Vec<String>> {
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if path.symlink_metadata().with_context(|| format!("stat {}", path.display()))?.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("read {}", path.display()))? {
                paths.push(entry.with_context(|| format!("read {}", path.display()))?.path());
            }
        }
    }
    paths.sort();
    let mut links = HashMap::new();
    paths
        .iter()
        .map(|path| describe(root, path, &mut links).with_context(|| format!("look at {}", path.display())))
        .collect()
}

fn describe(root: &Path, path: &Path, links: &mut HashMap<u64, usize>) -> Result<String> {
    let stat = path.symlink_metadata()?;
    let name = path.strip_prefix(root)?.as_os_str().as_bytes().escape_ascii().to_string();
    let kind = stat.file_type();
    let content = if kind.is_file() {
        format!("{} bytes {}", stat.len(), digest(&fs::read(path)?))
    } else if kind.is_symlink() {
        fs::read_link(path)?.as_os_str().as_bytes().escape_ascii().to_string()
    } else if kind.is_dir() {
        "directory".to_owned()
    } else {
        format!("device {:x}", stat.rdev())
    };
    let mut line = format!(
        "{} {:o} {}:{} {}.{} {content}",
        if name.is_empty() { "." } else { &name },
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec()
    );
    if stat.nlink() > 1 && !kind.is_dir() {
        // The same number for every name of one file.
        let next = links.len();
        let group = links.entry(stat.ino()).or_insert(next);
        line.push_str(&format!(" link {group} of {}", stat.nlink()));
    }
    for (name, value) in attributes(path)? {
        line.push_str(&format!(" {name}={value}"));
    }
    Ok(line)
}

fn attributes(path: &Path) -> Result<Vec<(String, String)>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names)?;
    let names = names.get(..length).context("names of attributes")?;
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, name, &mut value)?;
        let value = value.get(..length).context("an attribute's value")?;
        found.push((name.escape_ascii().to_string(), digest(value)));
    }
    found.sort();
    Ok(found)
}

fn digest(bytes: &[u8]) -> String {
    let mut text = hex(&Sha256::digest(bytes));
    text.truncate(16);
    text
}

/// Fails when a tree is not what its manifest says, and names what differs.
pub fn check(root: &Path, expected: &[String]) -> Result<()> {
    let found = manifest(root)?;
    if found == expected {
        return Ok(());
    }
    let lost: Vec<_> =
        expected.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}")).collect();
    let other: Vec<_> =
        found.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}")).collect();
    let (lost_count, other_count) = (lost.len(), other.len());
    let shown: Vec<_> = lost.into_iter().take(6).chain(other.into_iter().take(6)).collect();
    bail!("{lost_count} files lost or changed, {other_count} are there instead: {}", shown.join(" | "))
}
