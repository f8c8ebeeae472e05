//! All that can be seen of a tree: names, types, modes, owners, times, links, attributes and content.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest as _, Sha256};

/// One file of any type.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    device: u64,
    modified: (i64, i64),
    /// A link's target; of a file's content its digest.
    content: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file.
    same_as: PathBuf,
}

/// The files of a tree by path below its root. Of the root itself only mode, owner and attributes count.
pub fn manifest(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let (mut found, mut seen) = (BTreeMap::new(), HashMap::new());
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if metadata.is_dir() {
            let mut below: Vec<PathBuf> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort_by(|a, b| b.cmp(a));
            todo.append(&mut below);
        }
        let content = match metadata.file_type() {
            kind if kind.is_file() => Sha256::digest(fs::read(&path).unwrap()).to_vec(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let is_root = path == root;
        let entry = Entry {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            modified: if is_root { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) },
            content,
            attributes: attributes(&path),
            same_as: seen.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.clone()).clone(),
        };
        found.insert(name, entry);
    }
    found
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let length = lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Fails with what differs, and not with all that does not.
pub fn assert_same(found: &BTreeMap<PathBuf, Entry>, expected: &BTreeMap<PathBuf, Entry>) {
    for (path, entry) in expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{} is there", path.display());
    }
}
