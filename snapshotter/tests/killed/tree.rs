//! The files of a layer: made at random, and known by their digest.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::rig::Seeded;

/// What tells two trees apart: names, types, modes, owners, times, links and content of everything in them.
pub type Digest = [u8; 32];

/// Adds a few files of every common type to a directory; what is there stays.
pub fn fill(directory: &Path, random: &mut Seeded) -> io::Result<()> {
    let below = directory.join(format!("d{:x}", random.next()));
    fs::create_dir(&below)?;
    for number in 0..=random.below(4) {
        let path = below.join(format!("f{number}"));
        let length = usize::try_from(random.below(6000)).unwrap();
        let line = format!("{:016x}\n", random.next());
        File::create(&path)?.write_all(&line.as_bytes().repeat(length / line.len() + 1)[..length])?;
        fs::set_permissions(
            &path,
            Permissions::from_mode(0o4700 + u32::try_from(random.below(64)).unwrap()),
        )?;
    }
    if random.chance(50) {
        fs::hard_link(below.join("f0"), directory.join(format!("h{:x}", random.next())))?;
    }
    if random.chance(50) {
        symlink("f0", below.join("link"))?;
    }
    Ok(())
}

/// The digest of a tree, its root included. Follows no link.
pub fn digest(root: &Path) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        add(&mut hasher, root, &path)?;
        if fs::symlink_metadata(&path)?.is_dir() {
            let mut below: Vec<PathBuf> = fs::read_dir(&path)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?;
            below.sort();
            todo.append(&mut below);
        }
    }
    Ok(hasher.finalize().into())
}

fn add(hasher: &mut Sha256, root: &Path, path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let content = match () {
        () if kind.is_file() => fs::read(path)?,
        () if kind.is_symlink() => fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
        () if kind.is_char_device() || kind.is_block_device() => metadata.rdev().to_le_bytes().to_vec(),
        () => Vec::new(),
    };
    let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes();
    let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap().to_le_bytes();
    hasher.update(length(name));
    hasher.update(name);
    for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
        hasher.update(number.to_le_bytes());
    }
    let times = [metadata.mtime(), metadata.mtime_nsec()];
    times.iter().for_each(|time| hasher.update(time.to_le_bytes()));
    hasher.update(metadata.nlink().to_le_bytes());
    hasher.update(length(&content));
    hasher.update(content);
    Ok(())
}
