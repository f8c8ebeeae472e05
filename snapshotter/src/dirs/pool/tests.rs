//! The pool on the file system of temporary files. No root needed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::{XattrFlags, setxattr};

use super::*;

fn dirs() -> (tempfile::TempDir, Dirs) {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    (root, dirs)
}

/// A file with times and mode that depend on nothing.
fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    touch(path, 1000);
}

fn touch(path: &Path, seconds: u64) {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(at).unwrap();
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Shares and commits what is in the snapshot; how many files were replaced.
fn commit(dirs: &Dirs, id: u64) -> u64 {
    let fresh = dirs.share(id).unwrap();
    dirs.offer(&fresh);
    fresh.shared.0
}

fn pooled(dirs: &Dirs) -> usize {
    fs::read_dir(dirs.pool()).unwrap().count()
}

#[test]
fn equal_files_become_one_and_directories_keep_their_times() {
    let (_root, dirs) = dirs();
    for id in [1, 2] {
        let at = |name: &str| dirs.upper(id).join(name);
        write(&at("d/same"), "same");
        write(&at("d/twice"), "same");
        write(&at("empty"), "");
        write(&at("differs"), &id.to_string());
        fs::hard_link(at("differs"), at("link")).unwrap();
        std::os::unix::fs::symlink("d", at("symlink")).unwrap();
        touch(&at("d"), 5000 + id);
    }
    assert_eq!(commit(&dirs, 1), 1);
    assert_eq!(commit(&dirs, 2), 2);
    let at = |id: u64, name: &str| dirs.upper(id).join(name);
    assert_eq!(inode(&at(1, "d/same")), inode(&at(2, "d/twice")));
    assert_eq!(inode(&at(2, "d/same")), inode(&at(2, "d/twice")));
    assert_eq!(inode(&at(2, "differs")), inode(&at(2, "link")));
    assert_ne!(inode(&at(1, "differs")), inode(&at(2, "differs")));
    assert_ne!(inode(&at(1, "empty")), inode(&at(2, "empty")));
    for id in [1, 2] {
        assert_eq!(fs::metadata(at(id, "d")).unwrap().mtime(), 5000 + i64::try_from(id).unwrap());
        assert_eq!(fs::read_to_string(at(id, "d/twice")).unwrap(), "same");
        assert_eq!(fs::read_to_string(at(id, "differs")).unwrap(), id.to_string());
    }
    assert_eq!(pooled(&dirs), 3);
    assert_eq!(commit(&dirs, 2), 0, "nothing is left to be replaced");
}

#[test]
fn what_differs_in_anything_is_not_shared() {
    type Change = fn(&Path);
    let changes: [Change; 5] = [
        |path| write(path, "othe"),
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap(),
        |path| touch(path, 1001),
        |path| setxattr(path, "user.x", b"y", XattrFlags::empty()).unwrap(),
        |path| setxattr(path, "user.x", b"z", XattrFlags::empty()).unwrap(),
    ];
    let (_root, dirs) = dirs();
    for id in 0..=changes.len() as u64 {
        let file = dirs.upper(id).join("f");
        write(&file, "same");
        if let Some(change) = (id as usize).checked_sub(1).map(|i| changes[i]) {
            change(&file);
        }
        assert_eq!(commit(&dirs, id), 0, "{id}");
    }
    assert_eq!(pooled(&dirs), 1 + changes.len());
}

#[test]
fn nothing_is_offered_before_the_commit_and_nothing_stays_without_a_layer() {
    let (_root, dirs) = dirs();
    for id in [1, 2] {
        write(&dirs.upper(id).join("f"), "same");
        write(&dirs.upper(id).join("g"), &id.to_string());
    }
    let fresh = dirs.share(1).unwrap();
    assert_eq!(pooled(&dirs), 0, "its content is not durable");
    dirs.offer(&fresh);
    assert_eq!(commit(&dirs, 2), 1);
    assert_eq!(pooled(&dirs), 3);
    assert_eq!(dirs.sweep(false).unwrap(), 0, "no layer has gone");
    dirs.remove(1).unwrap();
    assert_eq!(dirs.sweep(false).unwrap(), 1);
    assert_eq!(fs::read_to_string(dirs.upper(2).join("f")).unwrap(), "same");
    fs::write(dirs.pool().join("new-of-a-crash"), "").unwrap();
    dirs.remove(2).unwrap();
    assert_eq!(dirs.sweep(false).unwrap(), 2);
    assert_eq!(dirs.sweep(true).unwrap(), 1);
    assert_eq!(pooled(&dirs), 0);
}

#[test]
fn an_entry_that_is_not_what_it_says_is_replaced() {
    let (_root, dirs) = dirs();
    write(&dirs.upper(1).join("f"), "same");
    commit(&dirs, 1);
    let entry = fs::read_dir(dirs.pool()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&entry).unwrap();
    write(&entry, "cut");
    write(&dirs.upper(2).join("f"), "same");
    assert_eq!(commit(&dirs, 2), 0);
    assert_eq!(inode(&entry), inode(&dirs.upper(2).join("f")));
    write(&dirs.upper(3).join("f"), "same");
    assert_eq!(commit(&dirs, 3), 1);
    assert_eq!(fs::read_to_string(dirs.upper(3).join("f")).unwrap(), "same");
}

/// ext4 gives a file at most 65,000 names; other file systems here have no limit that can be met.
#[test]
fn a_file_of_too_many_names_is_followed_by_another() {
    let (root, dirs) = dirs();
    write(&dirs.upper(1).join("f"), "same");
    commit(&dirs, 1);
    let first = dirs.upper(1).join("f");
    let more = root.path().join("more");
    fs::create_dir(&more).unwrap();
    let limit = (0..70_000).find(|i| fs::hard_link(&first, more.join(i.to_string())).is_err());
    for id in [2, 3] {
        write(&dirs.upper(id).join("f"), "same");
    }
    let expected = if limit.is_some() { [0, 1] } else { [1, 1] };
    assert_eq!([commit(&dirs, 2), commit(&dirs, 3)], expected);
    assert_eq!(inode(&dirs.upper(2).join("f")), inode(&dirs.upper(3).join("f")));
    assert_eq!(inode(&first) == inode(&dirs.upper(2).join("f")), limit.is_none());
}
