//! Overlays that are written to, on the real kernel.

#![allow(clippy::unwrap_used)] // tests

mod stage;

use std::{
    fs::{self, Permissions},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
};

use overlayfs_utils::{
    DetachedMount, IdMapping, LayerDir, LayersBy, Lower, MADE, MountTable, OverlayPlan, Tree, UpperBase,
    UpperError, made_as, mount_image, new_user_namespace,
};
use stage::{on_stage, put, read, tree};

/// A writable overlay of `layer` with what is in `base`, at `target`.
fn writable(dir: &Path, layer: &Path, base: &UpperBase, by: LayersBy, target: &str) {
    let empty = LayerDir::open(&tree(&dir.join("empty"), &[])).unwrap();
    let layer = LayerDir::open(layer).unwrap();
    let upper = base.place(Path::new(""), 0, std::slice::from_ref(&layer)).unwrap();
    let plan = OverlayPlan::ro(vec![Lower::Dir(&layer)], &empty).unwrap().with_upper(&upper);
    put(dir, DetachedMount::overlay(&plan, by, "capsule-test").unwrap(), target);
}

fn base(path: &Path) -> UpperBase {
    UpperBase::new(LayerDir::open(&tree(path, &[])).unwrap())
}

#[test]
fn privileged_what_is_written_is_in_the_upper_directory_alone() {
    on_stage(|dir| {
        for (n, by) in LayersBy::ALL.into_iter().enumerate() {
            let layer = tree(&dir.join("layer"), &[("kept", "1"), ("gone", "1"), ("sub/old", "1")]);
            fs::set_permissions(&layer, Permissions::from_mode(0o1777)).unwrap();
            let uppers = dir.join(format!("base{n}"));
            let (target, at) = (format!("/t{n}"), dir.join(format!("t{n}")));
            let host = base(&uppers);
            let base = if by == LayersBy::Descriptor { host.detached(None).unwrap() } else { host };
            writable(dir, &layer, &base, by, &target);
            drop(base);
            fs::write(at.join("new"), "2").unwrap();
            fs::write(at.join("kept"), "2").unwrap();
            fs::remove_file(at.join("gone")).unwrap();
            // A directory of a lower layer is not renamed: nothing but its own name would say where it was.
            let renamed = fs::rename(at.join("sub"), at.join("other")).unwrap_err();
            assert_eq!(renamed.kind(), std::io::ErrorKind::CrossesDevices, "{by:?}");
            assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o1777, "{by:?}");
            assert_eq!(read(layer.join("kept")), "1");
            for file in ["new", "kept"] {
                assert_eq!(read(uppers.join("upper").join(file)), "2");
            }
            assert!(!at.join("gone").exists() && layer.join("gone").exists());
            let table = MountTable::parse(&fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap();
            let shown = format!("{:?}", table.top_at(&at).unwrap());
            assert!(!shown.contains("base"), "{by:?}: no path of the host: {shown}");
        }
    });
}

/// What another mount had written is there again, also over another version.
#[test]
fn privileged_an_upper_directory_goes_over_any_layer() {
    on_stage(|dir| {
        let first = tree(&dir.join("1"), &[("a", "1"), ("b", "1")]);
        let second = tree(&dir.join("2"), &[("a", "2"), ("b", "2"), ("c", "2")]);
        for (layer, target) in [(&first, "/t1"), (&second, "/t2")] {
            let base = base(&dir.join("base")).detached(None).unwrap();
            writable(dir, layer, &base, LayersBy::Descriptor, target);
            let at = dir.join(&target[1..]);
            fs::write(at.join("a"), "mine").unwrap();
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        writable(dir, &second, &base(&dir.join("base")), LayersBy::Path, "/t3");
        assert_eq!(["a", "b", "c"].map(|file| read(dir.join("t3").join(file))), ["mine", "2", "2"]);
    });
}

#[test]
fn privileged_owners_are_mapped_both_ways() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("a", "1")]);
        let mapping = IdMapping::parse("0:100000:65536").unwrap().with_root_outside();
        let users = new_user_namespace(&mapping, &mapping).unwrap();
        let base = base(&dir.join("base")).detached(Some(users.as_fd())).unwrap();
        let empty = LayerDir::open(&tree(&dir.join("empty"), &[])).unwrap();
        let opened = LayerDir::open(&layer).unwrap();
        let mapped = Tree::clone_of(&opened).unwrap().id_mapped(users.as_fd()).unwrap();
        let upper = base.place(Path::new(""), 0, std::slice::from_ref(&opened)).unwrap();
        let plan = OverlayPlan::ro(vec![Lower::Tree(&mapped)], &empty).unwrap().with_upper(&upper);
        put(dir, DetachedMount::overlay(&plan, LayersBy::Descriptor, "mapped").unwrap(), "/t");
        let at = dir.join("t");
        assert_eq!(fs::metadata(&at).unwrap().uid(), 100_000);
        let script = format!("echo 2 >{0}/a && echo 3 >{0}/new", at.display());
        let arguments = ["--reuid", "100000", "--regid", "100000", "--clear-groups", "sh", "-c", &script];
        assert!(Command::new("setpriv").args(arguments).status().unwrap().success());
        for file in ["a", "new"] {
            let (seen, stored) = (at.join(file), dir.join("base/upper").join(file));
            assert_eq!([seen, stored].map(|path| fs::metadata(path).unwrap().uid()), [100_000, 0], "{file}");
        }
    });
}

/// What the overlay shows of them is what the capsule says, and what is published has them.
#[test]
fn privileged_each_directory_that_is_made_is_as_the_capsules() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("a/b/file", "1")]);
        let places = ["", "a", "a/b"];
        let like: Vec<_> = places
            .into_iter()
            .zip([0o1777, 0o755, 0o2750])
            .map(|(place, mode)| {
                let path = layer.join(place);
                std::os::unix::fs::chown(&path, Some(mode), Some(7)).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                LayerDir::open(&path).unwrap()
            })
            .collect();
        let base = base(&dir.join("base"));
        for number in 0..2 {
            base.place(Path::new("a/b"), number, &like).unwrap();
            for (place, mode) in places.into_iter().zip([0o1777, 0o755, 0o2750]) {
                let path = dir.join("base/upper").join(place);
                let made = fs::metadata(&path).unwrap();
                assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (mode, mode, 7), "{place:?}");
                let mut mark = [0; 64];
                let length = rustix::fs::getxattr(&path, MADE, &mut mark).unwrap();
                assert_eq!(mark[..length], *made_as(mode, mode, 7).as_bytes());
            }
        }
    });
}

#[test]
fn privileged_a_link_that_was_written_leads_nowhere() {
    on_stage(|dir| {
        let layer = [LayerDir::open(&tree(&dir.join("layer"), &[])).unwrap()];
        let base = base(&dir.join("base"));
        base.place(Path::new(""), 0, &layer).unwrap();
        tree(&dir.join("outside"), &[]);
        symlink(dir.join("outside"), dir.join("base/upper/usr")).unwrap();
        let refused = base.place(Path::new("usr"), 1, &layer).unwrap_err();
        assert!(matches!(refused, UpperError::Directory { step: "open", .. }), "{refused}");
        fs::write(dir.join("base/upper/file"), "").unwrap();
        assert!(base.place(Path::new("file/x"), 1, &layer).is_err());
        assert_eq!(fs::read_dir(dir.join("outside")).unwrap().count(), 0);
    });
}

/// What is written ends where the image ends, and nothing of the node's file system is shown.
#[test]
fn privileged_an_image_bounds_what_is_written() {
    on_stage(|dir| {
        let file = dir.join("image");
        fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
        assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file).status().unwrap().success());
        let layer = tree(&dir.join("layer"), &[("a", "1")]);
        let base = UpperBase::of_image(&file).unwrap().detached(None).unwrap();
        writable(dir, &layer, &base, LayersBy::Descriptor, "/t");
        drop(base);
        let full = fs::write(dir.join("t/big"), vec![1; 16 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        fs::remove_file(dir.join("t/big")).unwrap();
        fs::write(dir.join("t/a"), "2").unwrap();
        let again = mount_image(&file, true).unwrap();
        let root = again.root().unwrap();
        let read =
            rustix::fs::openat(root.fd(), "upper/a", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        let text = std::io::read_to_string(fs::File::from(read.unwrap())).unwrap();
        assert_eq!(text, "2");
    });
}
