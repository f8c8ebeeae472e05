//! Overlays on the real kernel: layering, odd paths, unions, id-mapping, errors.

#![allow(clippy::unwrap_used)] // tests

mod stage;

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use overlayfs_utils::{
    DetachedMount, LayerDir, LayersBy, Lower, MountTable, OverlayPlan, Step, Tree, try_writable_overlay,
};
use rustix::{
    fs::{FileType, Mode},
    io::Errno,
    mount::MountFlags,
};
use stage::{Running, on_stage, put, read, ro, tree};

#[test]
fn privileged_the_topmost_layer_wins() {
    on_stage(|dir| {
        let low = tree(&dir.join("low"), &[("a", "low"), ("b", "low"), ("gone", "low"), ("only-low", "low")]);
        let mid = tree(&dir.join("mid"), &[("a", "mid"), ("b", "mid")]);
        let top = tree(&dir.join("top"), &[("a", "top")]);
        // A whiteout of overlayfs: a character device 0/0.
        rustix::fs::mknodat(rustix::fs::CWD, mid.join("gone"), FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
        for (n, by) in LayersBy::ALL.into_iter().enumerate() {
            put(dir, ro(dir, &[&top, &mid, &low], by), &format!("/t{n}"));
            let at = dir.join(format!("t{n}"));
            let all = ["a", "b", "only-low"].map(|f| read(at.join(f)));
            assert_eq!(all, ["top", "mid", "low"], "{by:?}");
            assert!(!at.join("gone").exists(), "{by:?}: a whiteout hides what is below");
            assert_eq!(
                fs::write(at.join("x"), "").unwrap_err().kind(),
                std::io::ErrorKind::ReadOnlyFilesystem
            );
        }
    });
}

#[test]
fn privileged_any_character_may_be_in_a_layers_path_and_none_reaches_the_mount_table() {
    on_stage(|dir| {
        let odd: [&[u8]; 7] = [b"a:b", b"a,b", b"a\\b", b"a b", b"a\nb", b"\xff\xfe", b"\\:,lowerdir+=x"];
        for (n, by) in LayersBy::ALL.into_iter().enumerate() {
            for (i, name) in odd.iter().enumerate() {
                let layer = tree(&dir.join(OsStr::from_bytes(name)), &[("file", "odd")]);
                let target = format!("/odd{n}-{i}");
                put(dir, ro(dir, &[&layer], by), &target);
                assert_eq!(read(dir.join(&target[1..]).join("file")), "odd", "{name:?} {by:?}");
            }
        }
        let table = MountTable::parse(&fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap();
        let ours: Vec<_> = table.entries().iter().filter(|m| m.source == "capsule-test").collect();
        assert_eq!(ours.len(), 3 * odd.len());
        for mount in ours {
            assert!(!mount.super_options.contains(&*dir.to_string_lossy()), "{}", mount.super_options);
            for flag in ["ro", "nosuid", "nodev"] {
                assert!(mount.options.split(',').any(|o| o == flag), "{flag}: {}", mount.options);
            }
        }
    });
}

#[test]
fn privileged_a_union_keeps_what_an_overlay_root_holds() {
    on_stage(|dir| {
        // A container's root: an overlay with an upper layer. The union is the second and last level of stacking.
        let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|n| tree(&dir.join(n), &[]));
        tree(&lower.join("usr"), &[("bin/sh", "image"), ("bin/tool", "image")]);
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("root", &root, "overlay", MountFlags::empty(), &*options).unwrap();
        tree(&root.join("usr"), &[("bin/written", "container")]);
        let capsule = tree(&dir.join("capsule"), &[("bin/tool", "capsule"), ("bin/new", "capsule")]);
        for by in LayersBy::ALL {
            let below = LayerDir::open(&root.join("usr")).unwrap();
            let top = LayerDir::open(&capsule).unwrap();
            let plan = OverlayPlan::union(vec![Lower::Dir(&top)], Lower::Dir(&below)).unwrap();
            put(&root, DetachedMount::overlay(&plan, by, "u").unwrap(), "/usr");
            let seen = ["sh", "tool", "new", "written"].map(|f| read(root.join("usr/bin").join(f)));
            assert_eq!(seen, ["image", "capsule", "capsule", "container"], "{by:?}");
            // Every file shows the overlay's own device, though the layers are on two filesystems.
            let device = fs::metadata(root.join("usr")).unwrap().dev();
            for file in ["bin/sh", "bin/new", "bin/written"] {
                assert_eq!(fs::metadata(root.join("usr").join(file)).unwrap().dev(), device, "{file} {by:?}");
            }
            // Lazily: a process that another test starts may hold a copy of our descriptors until it execs.
            rustix::mount::unmount(root.join("usr"), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    });
}

#[test]
fn privileged_a_layer_may_be_id_mapped() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "x")]);
        let shifted = Running::start(Command::new("unshare").args(["--user", "sleep", "60"]));
        let proc = Path::new("/proc").join(shifted.pid().to_string());
        // The child is in its user namespace once the link differs from ours.
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        while fs::read_link(proc.join("ns/user")).unwrap() == own {
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::write(proc.join("uid_map"), "0 100000 65536").unwrap();
        fs::write(proc.join("gid_map"), "0 200000 65536").unwrap();
        let userns = fs::File::open(proc.join("ns/user")).unwrap();
        let dir_fd = LayerDir::open(&layer).unwrap();
        let empty = LayerDir::open(&tree(&dir.join("empty"), &[])).unwrap();
        let mapped = Tree::clone_of(&dir_fd).unwrap().id_mapped(userns.as_fd()).unwrap();
        let plan = OverlayPlan::ro(vec![Lower::Tree(&mapped)], &empty).unwrap();
        put(dir, DetachedMount::overlay(&plan, LayersBy::Descriptor, "mapped").unwrap(), "/t");
        let meta = fs::metadata(dir.join("t/file")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_000, 200_000));
        assert_eq!(fs::metadata(layer.join("file")).unwrap().uid(), 0);
    });
}

#[test]
fn privileged_an_error_says_step_layer_and_what_the_kernel_logged() {
    on_stage(|dir| {
        let empty = LayerDir::open(&tree(&dir.join("empty"), &[])).unwrap();
        // A layer that is a file: the errno is the same for anything, the context's log says what is wrong.
        let file = tree(&dir.join("layer"), &[("file", "")]).join("file");
        let layer = LayerDir::from_fd(fs::File::open(&file).unwrap().into(), "/a layer".into());
        for by in LayersBy::ALL {
            let plan = OverlayPlan::ro(vec![Lower::Dir(&layer)], &empty).unwrap();
            let error = DetachedMount::overlay(&plan, by, "capsule x@1").unwrap_err();
            assert_eq!((error.step, error.errno()), (Step::AddLayer, Errno::INVAL), "{error} {by:?}");
            let text = error.to_string();
            assert!(text.contains("\"/a layer\"") && text.contains("is not a directory"), "{text}");
            assert!(!error.log.is_empty());
        }
        // The same directory twice is refused when the superblock is made; this the kernel logs to dmesg alone.
        let twice = tree(&dir.join("twice"), &[]);
        let [one, two] = [0, 1].map(|_| LayerDir::open(&twice).unwrap());
        let plan = OverlayPlan::union(vec![Lower::Dir(&one)], Lower::Dir(&two)).unwrap();
        let error = DetachedMount::overlay(&plan, LayersBy::Descriptor, "capsule x@1").unwrap_err();
        assert_eq!((error.step, error.errno()), (Step::CreateSuperblock, Errno::LOOP), "{error}");
        assert!(error.to_string().contains("capsule x@1"));
    });
}

#[test]
fn privileged_what_a_layer_links_to_is_not_opened() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("usr/bin/x", "")]);
        std::os::unix::fs::symlink("/etc", layer.join("etc")).unwrap();
        std::os::unix::fs::symlink("..", layer.join("up")).unwrap();
        let layer = LayerDir::open(&layer).unwrap();
        assert!(layer.open_below("usr".as_ref()).unwrap().is_some());
        for name in ["etc", "up", "usr/bin/x", "missing"] {
            assert!(layer.open_below(name.as_ref()).unwrap().is_none(), "{name}");
        }
        assert!(layer.open_below("..".as_ref()).is_err());
    });
}

#[test]
fn privileged_a_place_is_tried_for_writable_overlays() {
    on_stage(|dir| {
        let place = |name: &str| {
            let path = tree(&dir.join(name), &[]);
            move |below: &str| LayerDir::open(&tree(&path.join(below), &[])).unwrap()
        };
        let attempt = |name: &str, options: &[(&str, Option<&str>)]| {
            let at = place(name);
            try_writable_overlay(&at("upper"), &at("work"), &at("lower"), options)
        };
        attempt("plain", &[("index", Some("off")), ("volatile", None)]).unwrap();
        let unknown = attempt("unknown", &[("no-such-option", None)]).unwrap_err();
        assert_eq!((unknown.step, unknown.errno()), (Step::SetOption, Errno::INVAL));
        assert_eq!(unknown.object, "no-such-option");
        let against =
            attempt("against", &[("metacopy", Some("on")), ("redirect_dir", Some("off"))]).unwrap_err();
        assert_eq!(against.step, Step::CreateSuperblock, "{against}");

        // An overlay is no place for the upper directory of another.
        let data = ["lower", "upper", "work"]
            .map(|name| format!("{name}dir={}", tree(&dir.join(name), &[]).display()));
        let data = std::ffi::CString::new(data.join(",")).unwrap();
        let merged = tree(&dir.join("merged"), &[]);
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(data.as_c_str()))
            .unwrap();
        let nested = attempt("merged/nested", &[]).unwrap_err();
        assert_eq!(nested.errno(), Errno::INVAL, "{nested}");
        assert!(nested.to_string().contains("merged/nested/upper"), "{nested}");
        rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}
