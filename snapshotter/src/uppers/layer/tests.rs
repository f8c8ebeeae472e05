use std::{
    collections::BTreeMap,
    fs,
    io::Cursor,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, mknodat, setxattr};

use super::*;

/// What each member is, by its name.
fn members(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let mut members = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut xattrs = String::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs += &format!(" {name}={}", String::from_utf8_lossy(record.value_bytes()));
            }
        }
        let link = entry.link_name_bytes().map(|link| String::from_utf8(link.into_owned()).unwrap());
        let mode = entry.header().mode().unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let what = match (entry.header().entry_type(), link) {
            (tar::EntryType::Directory, _) => format!("directory {mode:o}"),
            (tar::EntryType::Symlink, Some(link)) => format!("-> {link}"),
            (tar::EntryType::Link, Some(link)) => format!("= {link}"),
            (tar::EntryType::Regular, _) => format!("file {mode:o} {text:?}"),
            (other, _) => format!("{other:?}"),
        };
        members.insert(name, what + &xattrs);
    }
    members
}

fn write(dir: &Path) -> Result<(usize, Vec<u8>), Broken> {
    let mut layers = Layers::new(false);
    let number = layers.add(dir).unwrap();
    let mut bytes = Vec::new();
    let count = write_layer(&layers, number, &mut bytes)?;
    Ok((count, bytes))
}

#[test]
fn privileged_marks_become_those_of_the_image_specification() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let long = format!("sub/{}", "x".repeat(200));
    fs::create_dir_all(at("sub/opaque")).unwrap();
    fs::write(at("sub/file"), "text").unwrap();
    fs::hard_link(at("sub/file"), at("sub/twin")).unwrap();
    fs::write(at(&long), "long").unwrap();
    symlink("/etc/../passwd", at("link")).unwrap();
    symlink("y".repeat(150), at("long-link")).unwrap();
    mknodat(CWD, at("sub/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    mknodat(CWD, at("gone"), FileType::CharacterDevice, Mode::empty(), 0).expect("run this as root");
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let set =
        |name: &str, key: &str, value: &[u8]| setxattr(at(name), key, value, XattrFlags::empty()).unwrap();
    set("sub/opaque", "trusted.overlay.opaque", b"y");
    set("sub/file", "trusted.overlay.origin", b"bookkeeping");
    set("sub/file", "user.note", b"a=b");
    let (count, bytes) = write(dir.path()).unwrap();
    let found = members(&bytes);
    let want = BTreeMap::from(
        [
            (".wh.gone", "file 0 \"\"".to_owned()),
            ("fifo", "Fifo".to_owned()),
            ("link", "-> /etc/../passwd".to_owned()),
            ("long-link", format!("-> {}", "y".repeat(150))),
            ("sub", "directory 755".to_owned()),
            ("sub/.wh.gone", "file 0 \"\"".to_owned()),
            ("sub/file", "file 644 \"text\" user.note=a=b".to_owned()),
            ("sub/opaque", "directory 755".to_owned()),
            ("sub/opaque/.wh..wh..opq", "file 0 \"\"".to_owned()),
            ("sub/twin", "= sub/file user.note=a=b".to_owned()),
            (&long, "file 644 \"long\"".to_owned()),
        ]
        .map(|(name, what)| (name.to_owned(), what)),
    );
    assert_eq!(found, want);
    assert_eq!(count, want.len());
    assert_eq!(write(dir.path()).unwrap().1, bytes, "the same, however often it is read");
}

#[test]
fn owners_and_times_of_any_size_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (_, bytes) = write(dir.path()).unwrap();
    let mut archive = tar::Archive::new(Cursor::new(&bytes));
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    let meta = fs::metadata(dir.path().join("file")).unwrap();
    let header = entry.header();
    let kept = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
    assert_eq!(kept, (meta.uid().into(), meta.gid().into(), meta.mtime().unsigned_abs()));
    let big = Entry {
        path: b"big".to_vec(),
        kind: Kind::Fifo,
        mode: 0o600,
        uid: u32::MAX - 2,
        gid: 3_000_000,
        mtime: (-1, 0),
        ctime: (0, 0),
        xattrs: Attributes::new(),
        inode: (0, 0),
        sha256: None,
    };
    let member = Member::of(&big).unwrap();
    let kept = (member.header.uid().unwrap(), member.header.gid().unwrap(), member.header.mtime().unwrap());
    assert_eq!(kept, (u64::from(u32::MAX - 2), 3_000_000, 0));
}

/// Writes go on while it is read: whatever is written is noticed, or was there as a whole.
#[test]
fn what_changes_meanwhile_is_noticed() {
    struct Interfering<'a>(&'a Path, bool);
    impl Write for Interfering<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !std::mem::replace(&mut self.1, true) {
                fs::write(self.0, "now").unwrap();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for name in ["a", "z", "new"] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["a", "m", "z"] {
            fs::write(dir.path().join(file), "before").unwrap();
        }
        let mut layers = Layers::new(false);
        let number = layers.add(dir.path()).unwrap();
        let path = dir.path().join(name);
        let broken = write_layer(&layers, number, Interfering(&path, false)).unwrap_err();
        assert!(matches!(broken, Broken::Changed(_)), "{name}: {broken:?}");
    }
}

/// What a write has changed last cannot be set back.
#[test]
fn a_file_whose_time_is_set_back_is_noticed() {
    struct Rewriting<'a>(&'a Path, usize);
    impl Write for Rewriting<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let before = self.1;
            self.1 += bytes.len();
            if before < 2 << 20 && self.1 >= 2 << 20 {
                let mtime = fs::metadata(self.0).unwrap().modified().unwrap();
                fs::write(self.0, vec![b'B'; 8 << 20]).unwrap();
                fs::File::options().write(true).open(self.0).unwrap().set_modified(mtime).unwrap();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big");
    fs::write(&path, vec![b'A'; 8 << 20]).unwrap();
    let mut layers = Layers::new(false);
    let number = layers.add(dir.path()).unwrap();
    let broken = write_layer(&layers, number, Rewriting(&path, 0)).unwrap_err();
    assert!(matches!(broken, Broken::Changed(_)), "{broken:?}");
}

#[test]
fn what_was_written_in_this_tick_is_waited_for() {
    let now = (100, 500);
    for (ctime, wanted) in [
        ((100, 500), true),
        ((100, 499), false),
        ((99, 900), false),
        // Linux 6.13 knows it better than by ticks.
        ((100, 501), true),
        ((101, 499), true),
        ((101, 500), false),
    ] {
        assert_eq!(is_this_tick(ctime, now), wanted, "{ctime:?}");
    }
    let now = clock_gettime(ClockId::RealtimeCoarse);
    await_next_tick((now.tv_sec, u32::try_from(now.tv_nsec).unwrap()));
    assert!(clock_gettime(ClockId::RealtimeCoarse) > now);
}

/// No image can hold it, and so the message says what.
#[test]
fn a_path_that_is_too_long_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut here = fs::File::open(dir.path()).unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&here, "dd", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "dd", OFlags::DIRECTORY, Mode::empty()).unwrap().into();
    }
    let refused = write(dir.path()).unwrap_err();
    crate::dirs::remove_tree(&dir.path().join("dd")).unwrap();
    let Broken::Failed(error @ UpperError::LongPath(_)) = refused else { panic!("{refused:?}") };
    let text = error.to_string();
    assert!(text.contains("/dd/dd/dd/") && text.contains("… is longer than") && text.len() < 300, "{text}");
}

#[test]
fn nothing_is_no_layer() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(write(dir.path()).unwrap().0, 0);
}

/// The shim has made them so that an overlay lies over each hierarchy.
#[test]
fn privileged_directories_that_nobody_wrote_are_nothing_until_they_are_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usr/bin");
    fs::create_dir_all(&path).unwrap();
    for made in [dir.path().join("usr"), path.clone()] {
        let meta = fs::metadata(&made).unwrap();
        let mark = made_as(meta.mode() & 0o7777, meta.uid(), meta.gid());
        setxattr(&made, MADE, mark.as_bytes(), XattrFlags::empty()).expect("run this as root");
    }
    let (count, bytes) = write(dir.path()).unwrap();
    assert_eq!((count, members(&bytes).len()), (0, 2));
    setxattr(&path, "user.note", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(write(dir.path()).unwrap().0, 1);
    rustix::fs::removexattr(&path, "user.note").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(write(dir.path()).unwrap().0, 1);
    fs::write(path.join("file"), "").unwrap();
    assert_eq!(write(dir.path()).unwrap().0, 2);
}

/// A container that may make devices puts one where a file was listed: it is not opened, whatever it is.
#[test]
fn privileged_a_device_in_the_place_of_a_file_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b");
    let zero = rustix::fs::stat("/dev/zero").unwrap().st_rdev;
    struct Swapping<'a>(&'a Path, u64, Vec<u8>);
    impl Write for Swapping<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When "a" is written, "b" is listed.
            if self.2.is_empty() {
                fs::remove_file(self.0).unwrap();
                mknodat(CWD, self.0, FileType::CharacterDevice, Mode::RUSR, self.1).unwrap();
            }
            self.2.extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::write(&path, vec![1; 65536]).unwrap();
    let mut layers = Layers::new(false);
    let number = layers.add(dir.path()).unwrap();
    let mut swapping = Swapping(&path, zero, Vec::new());
    let broken = write_layer(&layers, number, &mut swapping).unwrap_err();
    assert!(matches!(broken, Broken::Changed(_)), "{broken:?}");
    assert!(swapping.2.len() < 4096, "{} bytes, and the device has no end", swapping.2.len());
}

#[test]
fn a_file_that_would_delete_others_is_refused_by_name() {
    for name in [".wh.kept", ".wh..wh..opq"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub").join(name), "").unwrap();
        let refused = write(dir.path()).unwrap_err();
        let Broken::Failed(UpperError::WhiteoutName(path)) = refused else { panic!("{refused:?}") };
        assert_eq!(path, format!("sub/{name}"));
    }
}
