//! Random trees, each published whole and over the one before: what both attach is the same.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, XattrFlags, makedev, mknodat, setxattr};

use super::capsulectl::json;
use super::versions::{diff, publish, same};
use crate::power::random::Random;

const ROOT: &str = "/var/tmp/random";
const ROUNDS: u64 = 10;
/// How many things are tried in a round; some do not fit to what is there.
const CHANGES: usize = 120;
const NAMES: [&str; 5] = ["a", "a-", "b", "c.d", "Ä"];

/// Ten trees, each made of the one before, on a chain of as many layers.
pub fn run() -> Result<String> {
    let mut random = Random::new(20_261_129);
    let root = Path::new(ROOT);
    fs::create_dir_all(root).context("create the tree")?;
    fs::write(root.join("always"), "something").context("write a file")?;
    let (mut differences, mut bytes) = (0, [0, 0]);
    for round in 1..=ROUNDS {
        for _ in 0..CHANGES {
            // What does not fit is left out.
            let _ = change(&mut random, root);
        }
        let version = round.to_string();
        publish(root, "whole", &version, &["--keep-owner"])?;
        let base = format!("chain@{}", round - 1);
        let on: &[&str] = if round > 1 { &["--keep-owner", "--base", &base] } else { &["--keep-owner"] };
        publish(root, "chain", &version, on)?;
        same(&format!("whole@{version}"), &format!("chain@{version}"))
            .with_context(|| format!("round {round}"))?;
        for (sum, name) in bytes.iter_mut().zip(["whole", "chain"]) {
            let layers = json(&["inspect", &format!("{name}@{version}")])?["layers"].clone();
            *sum += layers.as_array().and_then(|l| l.last()?["size"].as_u64()).context("a size")?;
        }
        if round > 1 {
            let found = diff(&format!("whole@{}", round - 1), &format!("whole@{version}"))?;
            ensure!(!found.is_empty(), "round {round} changed nothing");
            differences += found.len();
        }
    }
    Ok(format!("{ROUNDS} trees, {differences} differences, {} bytes instead of {}", bytes[1], bytes[0]))
}

fn change(random: &mut Random, root: &Path) -> io::Result<()> {
    let path = path(random, root);
    match random.below(12) {
        0..3 => remove(&path),
        3..5 => fs::create_dir_all(&path),
        5..8 => {
            let size = random.below(9000);
            remove(&path).ok();
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            fs::write(&path, vec![pick(random, b"xyz"); size])
        }
        8 => {
            let other = self::path(random, root);
            fs::hard_link(other, &path)
        }
        9 => symlink(pick(random, &NAMES), &path),
        10 => {
            let kind = pick(random, &[FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice]);
            Ok(mknodat(CWD, &path, kind, 0o640.into(), makedev(1, pick(random, &[3, 5])))?)
        }
        _ => metadata(random, &path),
    }
}

fn metadata(random: &mut Random, path: &Path) -> io::Result<()> {
    lchown(path, Some(pick(random, &[0, 1, 1000])), Some(pick(random, &[0, 1000])))?;
    if fs::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    let mode = pick(random, &[0o644, 0o755, 0o4711, 0o1777]);
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(setxattr(path, "user.note", &[pick(random, b"xyz")], XattrFlags::empty())?)
}

/// One of them; there is at least one.
fn pick<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[random.below(all.len())]
}

fn path(random: &mut Random, root: &Path) -> PathBuf {
    let mut path = root.to_owned();
    for _ in 0..=random.below(3) {
        path.push(pick(random, &NAMES));
    }
    path
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
