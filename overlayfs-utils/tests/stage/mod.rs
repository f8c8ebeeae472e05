//! A stage for tests on the real kernel: a mount namespace and a tmpfs that end with the test.
#![allow(dead_code, clippy::unwrap_used)] // each test binary uses a part

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use overlayfs_utils::{
    ContainerPath, ContainerRoot, DetachedMount, LayerDir, LayersBy, Lower, MountId, OverlayPlan, attach,
    in_new_mount_namespace, mount_at,
};
use rustix::mount::{MountFlags, MountPropagationFlags};

/// Runs `test` on a thread in its own mount namespace with a private tmpfs at the path it gets.
///
/// Without root the test fails and says why: it never skips.
pub fn on_stage(test: impl FnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "privileged tests need root: run them with sudo");
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("overlayfs-utils-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    fs::create_dir(&dir).unwrap();
    let done = in_new_mount_namespace(|| {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .unwrap();
        rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&dir)))
    });
    fs::remove_dir(&dir).unwrap();
    if let Err(panic) = done.unwrap() {
        std::panic::resume_unwind(panic);
    }
}

/// Writes files ("path", "content") below `dir`, which is made.
pub fn tree(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir.to_owned()
}

/// A detached overlay of the directories alone.
pub fn ro(stage: &Path, layers: &[&Path], by: LayersBy) -> DetachedMount {
    let empty = LayerDir::open(&tree(&stage.join("empty"), &[])).unwrap();
    let layers: Vec<_> = layers.iter().map(|l| LayerDir::open(l).unwrap()).collect();
    let plan = OverlayPlan::ro(layers.iter().map(Lower::Dir).collect(), &empty).unwrap();
    DetachedMount::overlay(&plan, by, "capsule-test").unwrap()
}

/// Attaches at `target` on the stage, taken as the container's root.
pub fn put(stage: &Path, mount: DetachedMount, target: &str) -> MountId {
    let root = ContainerRoot::open(stage).unwrap();
    let target = path(target);
    let (at, _) = root.make_dirs(&target).unwrap();
    attach(&mount, at.fd(), target.as_ref()).unwrap();
    drop(at);
    let id = mount.id().unwrap();
    assert_eq!(mount_at(&root.mount_point(&target).unwrap()).unwrap(), Some(id));
    id
}

/// A path in the container.
pub fn path(path: &str) -> ContainerPath {
    ContainerPath::parse(path).unwrap()
}

/// What is in a file.
pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// A child that is killed with the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
