//! Attach, swap, unmount and targets on the real kernel.

#![allow(clippy::unwrap_used)] // tests

mod stage;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use overlayfs_utils::{
    ContainerRoot, LayersBy, NamespaceError, PinnedTask, ResolveError, SuperBlock, Unmounted, Usage, attach,
    clone_at, detach_lazily, find_users, in_mount_namespace, mount_at, swap, unmount,
};
use stage::{Running, on_stage, path, put, read, ro, tree};

const BY: LayersBy = LayersBy::Descriptor;

#[test]
fn privileged_readers_never_miss_a_file_while_versions_are_swapped() {
    on_stage(|dir| {
        let versions = ["one", "two"].map(|v| tree(&dir.join(v), &[("file", &v.repeat(20_000))]));
        let mut id = put(dir, ro(dir, &[&versions[0]], BY), "/t");
        let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        let file = dir.join("t/file");
        let reader = || {
            while !stop.load(Ordering::Relaxed) {
                let text = read(&file);
                assert!(text == "one".repeat(20_000) || text == "two".repeat(20_000), "a torn read");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            let point = ContainerRoot::open(dir).unwrap().mount_point(&path("/t")).unwrap();
            // On a loaded machine the readers may get their turn late.
            let enough = |swaps| swaps > 200 && reads.load(Ordering::Relaxed) > 200;
            for n in (1..100_000).take_while(|n| !enough(*n)) {
                let next = ro(dir, &[&versions[n % 2]], BY);
                assert_eq!(swap(&next, &point, id).unwrap(), Unmounted::Done);
                id = next.id().unwrap();
                assert_eq!(mount_at(&point).unwrap(), Some(id));
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
            assert_eq!(unmount(&point, id).unwrap(), Unmounted::Done);
            assert_eq!(mount_at(&point).unwrap(), None);
        });
        assert!(reads.into_inner() > 200, "the readers hardly ran");
    });
}

#[test]
fn privileged_a_busy_mount_is_refused_and_a_lazy_unmount_keeps_open_files() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "content")]);
        let id = put(dir, ro(dir, &[&layer], BY), "/t");
        let point = ContainerRoot::open(dir).unwrap().mount_point(&path("/t")).unwrap();
        let open = File::open(dir.join("t/file")).unwrap();
        assert_eq!(unmount(&point, id).unwrap(), Unmounted::Busy);
        assert_eq!(mount_at(&point).unwrap(), Some(id));
        assert_eq!(detach_lazily(&point, id).unwrap(), Unmounted::Done);
        assert_eq!(mount_at(&point).unwrap(), None);
        assert_eq!(std::io::read_to_string(open).unwrap(), "content");
    });
}

#[test]
fn privileged_only_the_mount_that_is_expected_is_touched() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "x")]);
        let ours = put(dir, ro(dir, &[&layer], BY), "/t");
        let root = ContainerRoot::open(dir).unwrap();
        // Someone mounts on top of ours.
        let theirs = ro(dir, &[&layer], BY);
        attach(&theirs, root.resolve(&path("/t")).unwrap().fd(), "/t".as_ref()).unwrap();
        let point = root.mount_point(&path("/t")).unwrap();
        assert_eq!(unmount(&point, ours).unwrap(), Unmounted::NotThere);
        assert_eq!(detach_lazily(&point, ours).unwrap(), Unmounted::NotThere);
        assert_eq!(swap(&ro(dir, &[&layer], BY), &point, ours).unwrap(), Unmounted::NotThere);
        assert_eq!(mount_at(&point).unwrap(), Some(theirs.id().unwrap()));
    });
}

#[test]
fn privileged_planted_links_never_lead_out_of_the_root() {
    on_stage(|dir| {
        let outside = tree(&dir.join("outside"), &[("secret/file", "")]);
        let inside = tree(&dir.join("root"), &[("real/dir/file", ""), ("a-file", "")]);
        for (name, target) in [
            ("abs", "/real"),
            ("up", "../../../../../../outside/secret"),
            ("loop", "loop"),
            ("dangling", "/nowhere"),
            ("host", "/proc/self/root"),
            ("init", "/proc/1/root"),
            ("real/back", "../../real/dir"),
        ] {
            symlink(target, inside.join(name)).unwrap();
        }
        fs::create_dir(inside.join("proc")).unwrap();
        rustix::mount::mount("proc", inside.join("proc"), "proc", rustix::mount::MountFlags::empty(), None)
            .unwrap();
        let root = ContainerRoot::open(&inside).unwrap();
        for (asked, found) in [
            ("/abs/dir", "/real/dir"),
            ("/real/back", "/real/dir"),
            ("/abs", "/real"),
            ("/real/dir", "/real/dir"),
            ("/", "/"),
        ] {
            assert_eq!(root.resolve(&path(asked)).unwrap().path(), &path(found), "{asked}");
        }
        // ".." stops at the root, so the planted path is looked for inside.
        assert!(matches!(root.resolve(&path("/up")), Err(ResolveError::Missing(_))));
        assert!(matches!(root.resolve(&path("/loop/x")), Err(ResolveError::Link(_))));
        assert!(matches!(root.resolve(&path("/host")), Err(ResolveError::Link(_))));
        // EACCES instead of ELOOP where this test's root may not look at init (fewer capabilities than init has).
        assert!(root.resolve(&path("/init")).is_err() && root.resolve(&path("/init/etc")).is_err());
        assert!(matches!(root.resolve(&path("/host/etc")), Err(ResolveError::Link(_))));
        assert!(matches!(root.resolve(&path("/a-file")), Err(ResolveError::NotADirectory(_))));
        assert!(matches!(root.resolve(&path("/a-file/x")), Err(ResolveError::NotADirectory(_))));
        assert!(matches!(root.resolve(&path("/proc/sys")), Err(ResolveError::KernelFilesystem { .. })));
        assert!(matches!(root.make_dirs(&path("/dangling")), Err(ResolveError::Link(_))));
        assert!(!inside.join("nowhere").exists());
        assert!(matches!(root.make_dirs(&path("/dangling/x/y")), Err(ResolveError::Link(_))));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    });
}

#[test]
fn privileged_a_link_swapped_during_lookups_leads_nowhere_else() {
    on_stage(|dir| {
        let outside = tree(&dir.join("outside/etc"), &[]);
        let inside = tree(&dir.join("root"), &[("etc/x/keep", "")]);
        symlink("/../../outside", inside.join("link")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Exchange the directory and a link that points outside, as fast as can be.
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        inside.join("etc"),
                        rustix::fs::CWD,
                        inside.join("link"),
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                }
            });
            let root = ContainerRoot::open(&inside).unwrap();
            for _ in 0..2_000 {
                if let Ok((at, created)) = root.make_dirs(&path("/etc/new")) {
                    assert!(["/etc/new", "/link/new"].contains(&at.path().as_str()), "{}", at.path());
                    root.remove_created(&created);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0, "a directory was made outside");
    });
}

#[test]
fn privileged_missing_directories_are_made_and_taken_back() {
    on_stage(|dir| {
        let root_dir = tree(&dir.join("root"), &[("usr/file", "")]);
        let root = ContainerRoot::open(&root_dir).unwrap();
        let (at, created) = root.make_dirs(&path("/usr/share/zoneinfo")).unwrap();
        assert_eq!(at.path(), &path("/usr/share/zoneinfo"));
        let paths: Vec<_> = created.iter().map(|c| c.path.as_str()).collect();
        assert_eq!(paths, ["/usr/share", "/usr/share/zoneinfo"]);
        fs::write(root_dir.join("usr/share/theirs"), "").unwrap();
        // What someone else has put something into stays.
        assert_eq!(root.remove_created(&created), [path("/usr/share")]);
        assert!(root_dir.join("usr/share/theirs").exists() && !root_dir.join("usr/share/zoneinfo").exists());
        let mount = rustix::mount::mount_remount;
        rustix::mount::mount_bind(&root_dir, &root_dir).unwrap();
        mount(&root_dir, rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY, "").unwrap();
        let root = ContainerRoot::open(&root_dir).unwrap();
        assert!(matches!(root.make_dirs(&path("/opt/x")), Err(ResolveError::ReadOnly(_))));
    });
}

#[test]
fn privileged_a_process_is_entered_by_its_pidfd_and_an_ended_one_is_not() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "in there")]);
        let target = tree(&dir.join("target"), &[]);
        let args = ["--mount", "--propagation", "private", "sleep", "60"];
        let mut there = Running::start(Command::new("unshare").args(args));
        let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let theirs = format!("/proc/{}/ns/mnt", there.pid());
        while fs::read_link(&theirs).unwrap() == own {
            std::thread::sleep(Duration::from_millis(1));
        }
        let task = PinnedTask::open(there.pid()).unwrap();
        let mount = ro(dir, &[&layer], BY);
        let shown = path(target.to_str().unwrap());
        let attached = in_mount_namespace(task.pidfd(), || {
            let at = task.root().resolve(&shown).unwrap();
            attach(&mount, at.fd(), shown.as_ref())
        });
        attached.unwrap().unwrap();
        assert_eq!(read(format!("/proc/{}/root{shown}/file", there.pid())), "in there");
        assert!(!target.join("file").exists(), "it is in the other namespace only");
        let table = task.read_mounts().unwrap();
        assert_eq!(table.top_at(shown.as_ref()).unwrap().source, "capsule-test");
        assert!(in_mount_namespace(task.pidfd(), || -> () { panic!("on purpose") }).is_err());
        there.0.kill().unwrap();
        there.0.wait().unwrap();
        assert!(!task.is_alive());
        assert!(matches!(in_mount_namespace(task.pidfd(), || ()), Err(NamespaceError::Enter(_))));
    });
}

#[test]
fn privileged_every_kind_of_user_is_found() {
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "x"), ("dir/file", "x")]);
        for (program, name) in [("/usr/bin/busybox", "busybox"), ("/bin/sleep", "sleep")] {
            fs::copy(program, layer.join(name)).unwrap();
        }
        let mount = ro(dir, &[&layer], BY);
        let block = SuperBlock::of(mount.fd()).unwrap();
        let id = put(dir, mount, "/t");
        let at = dir.join("t");
        let open = File::open(at.join("file")).unwrap();
        let busybox = at.join("busybox");
        let runs = [
            ("cwd", Running::start(Command::new("sleep").arg("60").current_dir(at.join("dir")))),
            ("exe", Running::start(Command::new(&busybox).args(["sleep", "60"]))),
            ("root", Running::start(Command::new("chroot").arg(&at).args(["/busybox", "sleep", "60"]))),
            (
                "mmap",
                Running::start(Command::new("/lib64/ld-linux-x86-64.so.2").arg(at.join("sleep")).arg("60")),
            ),
            ("mount", Running::start(Command::new("unshare").args(["--mount", "sleep", "60"]))),
        ];
        std::thread::sleep(Duration::from_millis(200));
        let own = rustix::fs::stat("/proc/thread-self/ns/mnt").unwrap().st_ino;
        // A filesystem that is gone leaves its device number to the next one: the pin keeps it ours.
        let point = ContainerRoot::open(dir).unwrap().mount_point(&path("/t")).unwrap();
        let _pin = clone_at(&point, id).unwrap().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let pids: Vec<_> = runs.iter().map(|(_, run)| run.pid()).chain([me]).collect();
        // Other tests start processes too, which have copies of our descriptors until they exec.
        let find = || {
            let mut users = find_users(&[block], Some(own)).unwrap().remove(0);
            users.retain(|user| pids.contains(&user.pid) && !(user.pid == me && user.path == Path::new("/")));
            users
        };
        let users = find();
        for (how, run) in &runs {
            let found = users.iter().any(|u| u.pid == run.pid() && u.how.to_string() == *how);
            assert!(found, "{how} of {} is missing in {users:#?}", run.pid());
        }
        let mine: Vec<_> = users.iter().filter(|u| u.pid == me).collect();
        assert!(
            matches!(mine[..], [u] if matches!(u.how, Usage::Fd(_)) && u.path == at.join("file")),
            "{mine:?}"
        );
        // The same after a lazy unmount: the mount lives on, out of reach.
        assert_eq!(detach_lazily(&point, id).unwrap(), Unmounted::Done);
        let draining = find();
        assert_eq!(draining.len(), users.len(), "{draining:#?}\nbefore: {users:#?}");
        drop((open, runs));
        assert_eq!(find(), []);
    });
}

#[test]
fn privileged_a_file_system_that_does_not_answer_holds_no_scan_up() {
    use std::os::fd::AsRawFd;
    on_stage(|dir| {
        let layer = tree(&dir.join("layer"), &[("file", "text")]);
        let mount = ro(dir, &[&layer], BY);
        let block = SuperBlock::of(mount.fd()).unwrap();
        put(dir, mount, "/t");
        let open = File::open(dir.join("t/file")).unwrap();

        // A FUSE server that answers nothing, and a descriptor of its root.
        let (device, point) = (dir.join("fuse"), tree(&dir.join("f"), &[]));
        let number = rustix::fs::makedev(10, 229);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &device,
            rustix::fs::FileType::CharacterDevice,
            0o600.into(),
            number,
        )
        .unwrap();
        let server = File::options().read(true).write(true).open(&device).expect("the kernel's FUSE");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("fuse", &point, "fuse", flags, Some(options.as_c_str())).unwrap();
        let root = rustix::fs::open(&point, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();

        let (sender, scanned) = std::sync::mpsc::channel();
        let scan = std::thread::spawn(move || sender.send(find_users(&[block], None).unwrap()));
        let users = scanned.recv_timeout(Duration::from_secs(20));
        drop((server, root)); // ends the wait of a scan that hangs
        scan.join().unwrap().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let users = users.expect("the scan asks the file system");
        let fd = u32::try_from(open.as_raw_fd()).unwrap();
        assert!(users[0].iter().any(|u| u.pid == own && u.how == Usage::Fd(fd)), "{users:?}");
    });
}
