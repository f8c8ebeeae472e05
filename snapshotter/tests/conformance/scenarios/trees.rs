//! What containers do to files, through real mounts.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, lremovexattr, lsetxattr,
    makedev, mknodat, utimensat,
};
use rustix::io::Errno;

use super::{
    Subject,
    manifest::{assert_same, manifest},
    mounted::Mounted,
    none, upper,
};

pub async fn privileged_whiteouts_and_contents_show_through_mounts(subject: &mut Subject) {
    let mounts = subject.prepare("a", "", none()).await.unwrap();
    {
        let mounted = Mounted::new(&mounts[0]);
        fs::write(mounted.path("kept"), "one").unwrap();
        fs::write(mounted.path("removed"), "one").unwrap();
        fs::create_dir(mounted.path("dir")).unwrap();
        fs::write(mounted.path("dir/hidden"), "one").unwrap();
    }
    subject.commit("A", "a", none()).await.unwrap();
    let mounts = subject.prepare("b", "A", none()).await.unwrap();
    {
        let mounted = Mounted::new(&mounts[0]);
        fs::remove_file(mounted.path("removed")).unwrap();
        fs::remove_dir_all(mounted.path("dir")).unwrap();
        fs::create_dir(mounted.path("dir")).unwrap();
        fs::write(mounted.path("kept"), "two").unwrap();
    }
    subject.commit("B", "b", none()).await.unwrap();
    let mounts = subject.view("v", "B", none()).await.unwrap();
    let mounted = Mounted::new(&mounts[0]);
    assert_eq!(fs::read_to_string(mounted.path("kept")).unwrap(), "two");
    assert!(!mounted.path("removed").exists());
    assert_eq!(fs::read_dir(mounted.path("dir")).unwrap().count(), 0);
    let refused = fs::write(mounted.path("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// Where a snapshot and a plain directory are treated alike.
type Change = fn(&Path);

/// Commits `name` with a change made through the mounts of a snapshot.
async fn changed(subject: &mut Subject, name: &str, parent: &str, change: Change) -> PathBuf {
    let key = format!("{name}-key");
    let mounts = subject.prepare(&key, parent, none()).await.unwrap();
    change(Mounted::new(&mounts[0]).root());
    subject.commit(name, &key, none()).await.unwrap();
    upper(&mounts[0])
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make_nodes(root: &Path) {
    let node =
        |name: &str, kind, device| mknodat(CWD, root.join(name), kind, Mode::from(0o640), device).unwrap();
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("disk", FileType::BlockDevice, makedev(253, 7));
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
}

/// `setcap cap_net_bind_service+ep`: version 2, effective, permitted bit 10 (linux/capability.h).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn make_attributes(root: &Path) {
    let program = root.join("program");
    fs::write(&program, "#!/bin/true\n").unwrap();
    lchown(&program, Some(70_000), Some(4_000_000_000)).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o6755)).unwrap();
    let set =
        |path: &Path, name: &str, value: &[u8]| lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    set(&program, "security.capability", &CAPABILITY);
    set(&program, "user.binary", &[0, 255, 10, 0]);
    set(&program, "user.empty", b"");
    set(&program, "trusted.large", &[7; 1500]);
    set(&root.join("dir"), "user.of-a-directory", b"yes");
    set(&root.join("link"), "trusted.of-a-link", b"yes");
}

/// Files of every kind, with names and attributes of every kind.
fn make_everything(root: &Path) {
    fs::create_dir_all(root.join("dir/deeper/still")).unwrap();
    fs::set_permissions(root.join("dir"), Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("dir/file"), vec![b'x'; 70_000]).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("l".repeat(255)), "long").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe caf\xe9\n*")), "no UTF-8").unwrap();
    fs::hard_link(root.join("dir/file"), root.join("dir/deeper/same")).unwrap();
    symlink("../../etc/\u{fc}/nowhere", root.join("link")).unwrap();
    fs::hard_link(root.join("link"), root.join("same-link")).unwrap();
    symlink("/", root.join("dir/root")).unwrap();
    make_nodes(root);
    make_attributes(root);
    for name in ["replaced", "emptied/a", "kept/a"] {
        fs::create_dir_all(root.join(name).join("below")).unwrap();
        fs::write(root.join(name).join("file"), name).unwrap();
    }
    set_times(root);
}

/// Gives everything a time of its own, and directories after what is in them.
fn set_times(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            set_times(&path);
        }
        let length = i64::try_from(path.file_name().unwrap().len()).unwrap();
        set_time(&path, 1_000_000_000 + length);
    }
}

/// Changes what a layer below holds: removes, replaces, and touches one thing at a time.
fn change_everything(root: &Path) {
    fs::remove_file(root.join("null")).unwrap();
    fs::remove_file(root.join(OsStr::from_bytes(b"\xff\xfe caf\xe9\n*"))).unwrap();
    fs::remove_file(root.join("same-link")).unwrap();
    fs::remove_dir_all(root.join("emptied")).unwrap();
    fs::create_dir(root.join("emptied")).unwrap();
    fs::write(root.join("emptied/new"), "new").unwrap();
    fs::remove_dir_all(root.join("replaced")).unwrap();
    fs::write(root.join("replaced"), "a file now").unwrap();
    fs::remove_file(root.join("empty")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::remove_file(root.join("kept/a/file")).unwrap();
    fs::rename(root.join("l".repeat(255)), root.join("m".repeat(255))).unwrap();
    fs::set_permissions(root.join("fifo"), Permissions::from_mode(0o600)).unwrap();
    lchown(root.join("socket"), Some(1), Some(2)).unwrap();
    lsetxattr(root.join("program"), "user.binary", b"changed", XattrFlags::REPLACE).unwrap();
    lremovexattr(root.join("program"), "user.empty").unwrap();
    // Only what is changed already: to set a time copies a file up, and parts it from its other names.
    for changed in ["emptied/new", "emptied", "replaced", "empty", "kept/a"] {
        set_time(&root.join(changed), 1_500_000_000);
    }
}

pub async fn privileged_files_of_every_kind_come_out_as_they_went_in(subject: &mut Subject) {
    let plain = tempfile::tempdir().unwrap();
    fs::set_permissions(plain.path(), Permissions::from_mode(0o755)).unwrap();
    let compare = async |subject: &mut Subject, name: &str| {
        let mounts = subject.view(&format!("{name}-view"), name, none()).await.unwrap();
        assert_same(&manifest(Mounted::new(&mounts[0]).root()), &manifest(plain.path()));
    };
    // Into the bottom layer, which is a bind mount, and changed through an overlay.
    make_everything(plain.path());
    changed(subject, "A", "", make_everything).await;
    compare(subject, "A").await;
    change_everything(plain.path());
    changed(subject, "B", "A", change_everything).await;
    compare(subject, "B").await;
    // And into a layer above.
    let base: Change = |root| fs::create_dir(root.join("dir")).unwrap();
    changed(subject, "C", "", base).await;
    changed(subject, "D", "C", |root| {
        fs::remove_dir(root.join("dir")).unwrap();
        make_everything(root);
    })
    .await;
    changed(subject, "E", "D", change_everything).await;
    compare(subject, "E").await;
}

pub async fn privileged_removed_and_replaced_files_are_marked_as_overlayfs_does(subject: &mut Subject) {
    changed(subject, "A", "", make_everything).await;
    let upper = changed(subject, "B", "A", change_everything).await;
    let device = |name: &OsStr| fs::symlink_metadata(upper.join(name)).unwrap();
    for name in [OsStr::new("null"), OsStr::from_bytes(b"\xff\xfe caf\xe9\n*"), OsStr::new(&"l".repeat(255))]
    {
        let whiteout = device(name);
        assert!(whiteout.file_type().is_char_device(), "{name:?}");
        assert_eq!(whiteout.rdev(), 0, "{name:?}");
    }
    let opaque = |name: &str| {
        let mut value = [0; 8];
        lgetxattr(upper.join(name), "trusted.overlay.opaque", &mut value[..])
            .map(|length| value[..length].to_vec())
    };
    for name in ["emptied", "empty"] {
        assert_eq!(opaque(name), Ok(b"y".to_vec()), "{name}");
    }
    assert_ne!(opaque("kept"), Ok(b"y".to_vec()));
    assert!(upper.join("replaced").is_file());
    assert!(!upper.join("kept/a/below").exists(), "what is not touched is not copied");
}

/// What an overlayfs in a container writes into ours (Linux ≥ 6.7 escapes it; older kernels refuse it).
pub async fn privileged_attributes_of_overlayfs_itself_can_be_nested(subject: &mut Subject) {
    const NAME: &str = "trusted.overlay.opaque";
    changed(subject, "A", "", |root| fs::create_dir_all(root.join("dir/below")).unwrap()).await;
    changed(subject, "B", "A", |root| match lsetxattr(root.join("dir"), NAME, b"y", XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => fs::write(root.join("refused"), "").unwrap(),
        done => done.unwrap(),
    })
    .await;
    let mounts = subject.view("v", "B", none()).await.unwrap();
    let view = Mounted::new(&mounts[0]);
    let mut value = [0; 8];
    let nested = lgetxattr(view.path("dir"), NAME, &mut value[..]).map(|length| value[..length].to_vec());
    let expected = if view.path("refused").exists() { Err(Errno::NODATA) } else { Ok(b"y".to_vec()) };
    assert_eq!(nested, expected);
    assert!(view.path("dir/below").is_dir(), "the nested mark means nothing to our overlay");
}
