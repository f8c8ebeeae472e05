//! A container made of `unshare`, `pivot_root` and a static busybox, on a host's side that is a namespace of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use overlayfs_utils::{LayersBy, in_new_mount_namespace};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::{
    hotplug::{LiveTask, Runtime, TaskLookupError, Tasks, engine::Engine, kernel::Kernel},
    oci::RuntimeError,
    seccomp::{Denied, RecordError},
};

/// Runs in the container before its init: what a runtime would mount, and a volume.
const SET_UP: &str = "set -e; mount --bind . .; cd \"$PWD\"
mount -t proc proc proc || mount --rbind /proc proc; mount -t tmpfs volume data; mkdir data/sub
pivot_root . .; umount -l .; cd /; EXTRA
exec /bin/busybox sh -c 'echo ready; exec sleep 600'";

/// A running container.
pub struct Container {
    pub init: Child,
    pub bundle: PathBuf,
    rootfs: PathBuf,
}

/// It changes nothing.
#[derive(Debug)]
struct NoRuntime;

impl Runtime for NoRuntime {
    fn update(&self, _: &[u8]) -> Result<(), RuntimeError> {
        Err(RuntimeError::Reaper)
    }

    fn check_denials(&self, _: &Denied) -> Result<(), RecordError> {
        Ok(())
    }
}

/// One container, "c".
pub struct One(pub LiveTask);

impl Tasks for One {
    fn live(&self, id: &str) -> Result<LiveTask, TaskLookupError> {
        if id == "c" { Ok(self.0.clone()) } else { Err(TaskLookupError::NotFound(id.to_owned())) }
    }

    fn ids(&self) -> Vec<String> {
        vec!["c".to_owned()]
    }
}

impl Container {
    /// Starts one on the stage `dir`; `extra` is run in it, as root, before its init.
    pub fn start(dir: &Path, extra: &str) -> Self {
        Self::start_with(dir, extra, &["--mount"])
    }

    /// Starts one in a user namespace of its own, which owns its mount namespace.
    pub fn start_in_user_namespace(dir: &Path) -> Self {
        Self::start_with(dir, "", &["--user", "--map-root-user", "--mount"])
    }

    fn start_with(dir: &Path, extra: &str, namespaces: &[&str]) -> Self {
        let [image, upper, work, bundle] = ["image", "upper", "work", "bundle"].map(|n| dir.join(n));
        for made in ["bin", "proc", "data", "usr/share/keep", "etc", "usr/lib"] {
            fs::create_dir_all(image.join(made)).unwrap();
        }
        fs::copy("/usr/bin/busybox", image.join("bin/busybox")).unwrap();
        for tool in ["sh", "sleep", "cat", "mv", "mount", "umount", "ln", "mkdir", "true"] {
            symlink("busybox", image.join("bin").join(tool)).unwrap();
        }
        fs::write(image.join("usr/share/keep/file"), "image").unwrap();
        symlink("/proc/self/root", image.join("etc/x")).unwrap();
        symlink("../../../../../../../../usr/lib", image.join("etc/up")).unwrap();
        symlink("usr/lib", image.join("lib")).unwrap();
        let rootfs = bundle.join("rootfs");
        for made in [&upper, &work, &rootfs] {
            fs::create_dir_all(made).unwrap();
        }
        let show = |p: &Path| p.display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", show(&image), show(&upper), show(&work));
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("rootfs", &rootfs, "overlay", MountFlags::empty(), &*options).unwrap();
        let set_up = SET_UP.replace("EXTRA", extra);
        let mut init = Command::new("unshare")
            .args(namespaces)
            .args(["--propagation", "private", "sh", "-c", &set_up])
            .current_dir(&rootfs)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_ready(&mut init);
        Self { init, bundle, rootfs }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.init.id()).unwrap()
    }

    pub fn live(&self) -> LiveTask {
        LiveTask {
            init: pidfd(&self.init),
            init_pid: self.pid(),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            cgroup: None,
            runtime: Arc::new(NoRuntime),
            takes_capsules: true,
            has_begun: true,
        }
    }

    pub fn engine(&self) -> Engine {
        self.engine_by(LayersBy::Descriptor)
    }

    pub fn engine_by(&self, by: LayersBy) -> Engine {
        Engine::new(Arc::new(One(self.live())), Kernel::known(by))
    }

    /// What a process in the container reads.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", self.pid())).ok()
    }

    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(format!("/proc/{}/root{path}", self.pid())).is_ok()
    }

    /// Starts a shell in the container that runs `script` and says "ready".
    pub fn spawn(&self, script: &str) -> Running {
        let pid = self.pid().to_string();
        let mut child = Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--root", "--wd", "/bin/sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_ready(&mut child);
        Running(child)
    }

    pub fn run(&self, script: &str) {
        drop(self.spawn(&format!("{script} && echo ready")));
    }

    /// The mount table without ids.
    pub fn mounts(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap();
        text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap().to_owned()).collect()
    }

    /// Paths of all entries on the container's own file system.
    pub fn tree(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut todo = vec![self.rootfs.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                all.push(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
            }
        }
        all.sort();
        all
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// A process that is killed with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn pidfd(child: &Child) -> Arc<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    Arc::new(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap())
}

fn wait_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
}

/// Runs `test` in a mount namespace and on a tmpfs of its own, which is the host's side.
pub fn on_host(test: impl FnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "privileged tests need root: run them with sudo");
    let stage = tempfile::tempdir().unwrap();
    let dir = stage.path();
    let done = in_new_mount_namespace(|| {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .unwrap();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), None).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(dir)))
    });
    if let Err(panic) = done.unwrap() {
        std::panic::resume_unwind(panic);
    }
}
