//! How long the bare system calls of an attach, a swap and a detach take on this machine.
//!
//! Run as root: `cargo run --release -p overlayfs-utils --example mount_bench -- [ROUNDS]`. Everything happens in a mount
//! namespace and on a tmpfs of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a measurement, not a library

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use overlayfs_utils::{
    ContainerPath, ContainerRoot, DetachedMount, LayerDir, LayersBy, Lower, MountPoint, OverlayPlan,
    PinnedTask, Unmounted, attach, find_users, in_mount_namespace, in_new_mount_namespace, probe, swap,
    unmount,
};
use rustix::mount::{MountFlags, MountPropagationFlags};

fn main() {
    let rounds = std::env::args().nth(1).map_or(1_000, |n| n.parse().expect("ROUNDS is a number"));
    let began = Instant::now();
    let features = probe().expect("a supported kernel, and root");
    println!("{features}\nprobe: {:?}", began.elapsed());
    let dir = std::env::temp_dir().join(format!("mount-bench-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    in_new_mount_namespace(|| measure(&dir, features.layers_by, rounds)).unwrap();
    fs::remove_dir(&dir).unwrap();
}

fn measure(dir: &Path, by: LayersBy, rounds: usize) {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), None).unwrap();
    for name in ["one", "two", "empty", "t"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::write(dir.join("one/file"), "one").unwrap();
    let root = ContainerRoot::open(dir).unwrap();
    let target = ContainerPath::parse("/t").unwrap();
    let point = root.mount_point(&target).unwrap();
    let build = |name: &str| {
        let (layer, empty) =
            (LayerDir::open(&dir.join(name)).unwrap(), LayerDir::open(&dir.join("empty")).unwrap());
        let plan = OverlayPlan::ro(vec![Lower::Dir(&layer)], &empty).unwrap();
        DetachedMount::overlay(&plan, by, "bench").unwrap()
    };
    let put = |mount: &DetachedMount| {
        let at = root.resolve(&target).unwrap();
        attach(mount, at.fd(), target.as_ref()).unwrap();
    };
    let take = |point: &MountPoint, mount: DetachedMount| {
        let id = mount.id().unwrap();
        drop(mount);
        assert_eq!(unmount(point, id).unwrap(), Unmounted::Done);
    };

    let me = PinnedTask::open(i32::try_from(std::process::id()).unwrap()).unwrap();
    let mut times = Times::default();
    for _ in 0..rounds {
        let mount = times.of("build", || build("one"));
        times.of("attach", || put(&mount));
        let next = times.of("build the next", || build("two"));
        let old = mount.id().unwrap();
        drop(mount);
        times.of("swap", || assert_eq!(swap(&next, &point, old).unwrap(), Unmounted::Done));
        times.of("unmount", || take(&point, next));
        times.of("enter a namespace", || in_mount_namespace(me.pidfd(), || ()).unwrap());
    }
    for _ in 0..50 {
        let mount = build("one");
        let block = overlayfs_utils::SuperBlock::of(mount.fd()).unwrap();
        times.of("find users", || find_users(&[block], None).unwrap());
    }
    times.print();
}

#[derive(Default)]
struct Times(Vec<(&'static str, Vec<Duration>)>);

impl Times {
    fn of<T>(&mut self, what: &'static str, run: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = run();
        let took = began.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == what) {
            Some((_, times)) => times.push(took),
            None => self.0.push((what, vec![took])),
        }
        done
    }

    fn print(mut self) {
        for (what, times) in &mut self.0 {
            times.sort();
            let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
            println!("{what:18} p50 {:>9.1?}  p99 {:>9.1?}", at(50), at(99));
        }
    }
}
