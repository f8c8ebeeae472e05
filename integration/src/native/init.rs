//! Process 1 of a native machine: builds the root, pivots into it, starts the scenario, reaps.
//!
//! All mounts here are made in the machine's own mount namespace and end with it.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::process::{WaitOptions, pivot_root, wait};

use super::Spec;

/// The node's devices that programs expect: name, major, minor.
const DEVICES: [(&str, u32, u32); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("loop-control", 10, 237),
];

/// The loop devices, which are the whole host's: `loopN` is 7, N. The kernel makes more of them as they are needed, with
/// the next numbers.
const LOOPS: u32 = 64;

/// What must not lie on an overlay: containerd's and capsuled's trees hold lower and upper directories themselves,
/// and their durability is real only on a disk.
const ON_DISK: [(&str, &str); 3] =
    [("containerd", "var/lib/containerd"), ("capsule", "var/lib/capsule"), ("logs", "logs")];

/// Runs the machine whose run lies in `folder`; the scenario's exit status.
pub fn init(folder: &Path) -> Result<i32> {
    let spec = Spec::read(folder)?;
    let root = build_root(&spec).context("build the machine's root")?;
    mount_kernel(&spec, &root).context("mount the kernel's file systems")?;
    make_devices(&root.join("dev")).context("make the machine's devices")?;
    enter_root(&root)?;
    rustix::system::sethostname(b"testbed").context("set the host name")?;
    crate::workspace::output_of(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    run_scenario(&spec.scenario)
}

/// The Debian tree below a tmpfs, with the folders on disk and the payload in their places.
fn build_root(spec: &Spec) -> Result<std::path::PathBuf> {
    let base = spec.folder.join("root");
    fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
    mount_at(&base, "tmpfs", "")?;
    for folder in ["upper", "work", "root"] {
        fs::create_dir(base.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    let root = base.join("root");
    let layers = format!(
        "lowerdir={},upperdir={base}/upper,workdir={base}/work",
        spec.rootfs.display(),
        base = base.display(),
    );
    mount_at(&root, "overlay", &layers)?;
    for (name, at) in ON_DISK {
        let source = spec.folder.join("disk").join(name);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        mount_bind(&source, root.join(at)).with_context(|| format!("bind /{at}"))?;
    }
    bind_read_only(&spec.payload, &root.join("payload"))?;
    if let Some(peers) = &spec.peers {
        fs::create_dir(root.join("peers")).context("create /peers")?;
        bind_read_only(peers, &root.join("peers"))?;
    }
    Ok(root)
}

fn bind_read_only(from: &Path, at: &Path) -> Result<()> {
    mount_bind(from, at).with_context(|| format!("bind {}", at.display()))?;
    mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, "")
        .with_context(|| format!("make {} read-only", at.display()))
}

fn mount_kernel(spec: &Spec, root: &Path) -> Result<()> {
    for (at, kind) in [("proc", "proc"), ("sys", "sysfs"), ("run", "tmpfs"), ("tmp", "tmpfs")] {
        mount_at(&root.join(at), kind, "")?;
    }
    let unified = spec.hierarchies.iter().all(|hierarchy| hierarchy.unified);
    if !unified {
        mount_at(&root.join("sys/fs/cgroup"), "tmpfs", "mode=755")?;
    }
    // Mounted from inside the run's cgroup namespace: the root seen here is the run's cgroup.
    for hierarchy in &spec.hierarchies {
        let inside = hierarchy.inside();
        let at = root.join(inside.strip_prefix("/").unwrap_or(inside));
        if !unified {
            fs::create_dir_all(&at).with_context(|| format!("create {}", at.display()))?;
        }
        match hierarchy.controllers.as_str() {
            "" => mount_at(&at, "cgroup2", "")?,
            name if name.starts_with("name=") => mount_at(&at, "cgroup", &format!("none,{name}"))?,
            controllers => mount_at(&at, "cgroup", controllers)?,
        }
    }
    spec.hierarchies.iter().try_for_each(|hierarchy| hierarchy.leave_root(root))
}

fn make_devices(dev: &Path) -> Result<()> {
    mount_at(dev, "tmpfs", "mode=755")?;
    for (name, major, minor) in DEVICES {
        let (path, mode) = (dev.join(name), Mode::from_raw_mode(0o666));
        mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(major, minor))
            .and_then(|()| chmod(&path, mode)) // whatever the harness's umask is
            .with_context(|| format!("make /dev/{name}"))?;
    }
    for number in 0..LOOPS {
        let path = dev.join(format!("loop{number}"));
        mknodat(CWD, &path, FileType::BlockDevice, Mode::from_raw_mode(0o660), makedev(7, number))
            .with_context(|| format!("make {}", path.display()))?;
    }
    for (name, kind, options) in [
        ("pts", "devpts", "newinstance,ptmxmode=666,mode=620,gid=5"),
        ("shm", "tmpfs", ""),
        ("mqueue", "mqueue", ""),
    ] {
        fs::create_dir(dev.join(name)).with_context(|| format!("create /dev/{name}"))?;
        mount_at(&dev.join(name), kind, options)?;
    }
    for (link, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(to, dev.join(link)).with_context(|| format!("link /dev/{link}"))?;
    }
    Ok(())
}

/// Makes `root` the root of the mount namespace and drops the host's. Not `chroot`: a chrooted process may not create
/// user namespaces.
fn enter_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root).with_context(|| format!("change to {}", root.display()))?;
    pivot_root(".", ".").context("pivot into the machine's root")?;
    unmount(".", UnmountFlags::DETACH).context("drop the host's root")?;
    std::env::set_current_dir("/").context("change to the root")
}

/// Starts the scenario and reaps every child, shims' orphans too, until it ends. What still runs then ends with this
/// process.
pub(super) fn run_scenario(name: &str) -> Result<i32> {
    let scenario = Command::new("/payload/bin/capsule-testbed")
        .args(["scenario", name])
        .env_clear()
        .env("PATH", "/payload/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .spawn()
        .context("start the scenario")?;
    loop {
        if let Some((pid, status)) = wait(WaitOptions::empty()).context("reap")?
            && u32::try_from(pid.as_raw_nonzero().get()) == Ok(scenario.id())
        {
            return Ok(status.exit_status().unwrap_or(1));
        }
    }
}

pub(super) fn mount_at(at: &Path, kind: &str, options: &str) -> Result<()> {
    let data = CString::new(options).context("mount options")?;
    mount(kind, at, kind, MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("mount {kind} at {}", at.display()))
}
