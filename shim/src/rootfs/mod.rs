//! The container's root file system: the mounts that containerd's snapshotter describes, made on the bundle's
//! `rootfs` in the shim's own mount namespace.
//!
//! `plan` reads a mount's description, `options` and `layers` parts of it (pure); `place` finds where it goes; `apply` makes
//! it, `overlay` one of very many layers, `mapped` one whose owners are mapped, `helper` one of a program; `unmount` unmakes
//! them. The process never changes its working directory or namespace: another container's create may run at the same time.

mod apply;
mod helper;
mod layers;
mod mapped;
mod options;
mod overlay;
mod place;
mod plan;
mod unmount;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use apply::apply;
use helper::Helper;
pub use helper::HelperError;
pub use mapped::MappedError;
use overlayfs_utils::{LoopError, NamespaceError};
use place::Place;
pub use plan::{Mount, PlanError};
use plan::{Plan, plan};
use rustix::io::Errno;
use thiserror::Error;
use unmount::detach_all;

use crate::reaper::Reaper;
pub use unmount::unmount_all;

/// A root file system that could not be made or unmade.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// What containerd asks for cannot be understood.
    #[error("rootfs mount {index} is not supported")]
    Plan {
        /// Its place in the list.
        index: usize,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// The directory to mount on.
    #[error("cannot create {}", .0.display())]
    Target(PathBuf, #[source] io::Error),
    /// One system call.
    #[error("{step} of {what} on {target} failed{log}")]
    Mount {
        /// Which call.
        step: &'static str,
        /// What was to be mounted.
        what: String,
        /// Where.
        target: String,
        /// What the kernel wrote to the mount context's log, if anything, with a separator.
        log: String,
        /// Its answer.
        #[source]
        source: Errno,
    },
    /// What to mount on.
    #[error("cannot find {below:?} in the root file system, to mount on it")]
    Place {
        /// Its path in the root.
        below: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A file system of a program.
    #[error("cannot mount a program's file system")]
    Helper(#[from] HelperError),
    /// A file system in a file.
    #[error("cannot make a loop device of the root file system's file")]
    Loop(#[source] LoopError),
    /// A thread in the directory that an overlay's layers are in.
    #[error("cannot mount the layers in {}", .0.display())]
    Layers(PathBuf, #[source] NamespaceError),
    /// One whose owners are to be mapped.
    #[error("cannot map the owners of the root file system on {target}")]
    Mapped {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: MappedError,
    },
    /// The unmount.
    #[error("cannot unmount {}", .0.display())]
    Unmount(PathBuf, #[source] Errno),
    /// The shim ends.
    #[error("a mount or unmount was given up")]
    GivenUp(#[source] tokio::task::JoinError),
}

/// Off the runtime's one thread: the kernel may read a file system's journal before it has mounted it, and writes all of a
/// layer's file system to the disk before it has unmounted an overlay. Other containers do not wait for that.
async fn aside<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, RootfsError> + Send + 'static,
) -> Result<T, RootfsError> {
    tokio::task::spawn_blocking(step).await.map_err(RootfsError::GivenUp)?
}

/// One mount.
enum Step {
    /// By system calls.
    Calls(Plan),
    /// By a program.
    Helper(Helper),
}

impl Step {
    fn of(mount: &Mount) -> Result<Self, PlanError> {
        Ok(match Helper::of(mount)? {
            Some(helper) => Self::Helper(helper),
            None => Self::Calls(plan(mount)?),
        })
    }

    async fn make(self, place: Place, reaper: &Reaper) -> Result<(), RootfsError> {
        match self {
            Self::Calls(plan) => aside(move || apply(&plan, &place)).await,
            Self::Helper(helper) => Box::pin(helper.mount(&place, reaper)).await,
        }
    }
}

/// Mounts all of `mounts` on `target` or below it, in order; on an error nothing stays mounted. An empty list leaves the
/// target alone: the caller has mounted it.
///
/// # Errors
/// [`RootfsError`], naming the step and the mount.
pub async fn mount_all(mounts: &[Mount], target: &Path, reaper: &Reaper) -> Result<(), RootfsError> {
    let steps = mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| match Step::of(mount) {
            Ok(step) => Ok((Place::new(target, &mount.target), step)),
            Err(source) => Err(RootfsError::Plan { index, source }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if steps.is_empty() {
        return Ok(());
    }
    match fs::create_dir(target) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RootfsError::Target(target.to_owned(), e));
        }
        _ => {}
    }
    for (place, step) in steps {
        if let Err(error) = step.make(place, reaper).await {
            // Each mount hides the one before or lies in one, so all of them come off from here.
            let target = target.to_owned();
            if let Err(undo) = aside(move || detach_all(&target)).await {
                log::error!("undo a failed rootfs: {undo}");
            }
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(layers: &[String], more: &[&str]) -> Mount {
        let lower = format!("lowerdir={}", layers.join(":"));
        let options = [lower].into_iter().chain(more.iter().map(|option| (*option).to_owned())).collect();
        Mount { kind: "overlay".into(), source: "overlay".into(), options, ..Default::default() }
    }

    fn bind(source: &Path) -> Mount {
        let options = vec!["rbind".into(), "ro".into()];
        Mount { kind: "bind".into(), source: source.display().to_string(), options, ..Default::default() }
    }

    /// `count` directories with a file each, named so that every path ends with `name`.
    fn layers_in(dir: &Path, count: usize, name: impl Fn(usize) -> String) -> Vec<String> {
        let make = |i| {
            let layer = dir.join(name(i));
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("file{i}")), "").unwrap();
            layer.display().to_string()
        };
        (0..count).map(make).collect()
    }

    /// What the mount table says of the superblock on `target`.
    fn super_options(target: &Path) -> String {
        let table = overlayfs_utils::MountTable::parse(&fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        table.top_at(target).unwrap().super_options.clone()
    }

    /// Every path is longer than `fsconfig(2)` takes, and all of them need nine pages: mount(2) takes them from the directory
    /// that they are in, as on kernels without `lowerdir+`.
    #[tokio::test]
    async fn privileged_128_layers_of_long_paths_are_one_mount_call() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = dir.path().join("d".repeat(200)).join("e".repeat(90));
        let layers = layers_in(&snapshots, 128, |i| format!("{i}/fs"));
        let at = |name: &str| snapshots.join(name).display().to_string();
        fs::create_dir_all(at("u/fs")).unwrap();
        fs::create_dir_all(at("u/work")).unwrap();
        let writable = [format!("upperdir={}", at("u/fs")), format!("workdir={}", at("u/work"))];
        let writable: Vec<&str> = writable.iter().map(String::as_str).collect();
        let target = dir.path().join("rootfs");
        for more in [&writable[..], &["ro"]] {
            let overlay = overlay(&layers, more);
            assert!(overlay.options[0].len() > 9 * 4096);
            mount_all(&[overlay], &target, &Reaper::idle()).await.expect("this test mounts: run it as root");
            assert_eq!(fs::read_dir(&target).unwrap().count(), 128);
            let seen = super_options(&target);
            assert!(seen.contains("lowerdir=0/fs:1/fs:2/fs:"), "{seen}");
            assert_eq!(fs::write(target.join("new"), "").is_ok(), more.len() == 2);
            unmount_all(&target).await.unwrap();
        }
        assert!(snapshots.join("u/fs/new").exists());
    }

    /// More than a page holds even so: layer by layer, with what the page would hold of each.
    #[tokio::test]
    async fn privileged_450_layers_go_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers_in(&dir.path().join("s"), 450, |i| format!("{i:0>10}/fs"));
        let target = dir.path().join("rootfs");
        mount_all(&[overlay(&layers, &["ro", "rprivate"])], &target, &Reaper::idle())
            .await
            .expect("this test mounts: run it as root");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 450);
        let seen = super_options(&target);
        assert!(seen.contains("lowerdir+=0000000000/fs"), "{seen}");
        unmount_all(&target).await.unwrap();

        let too_many = layers_in(&dir.path().join("t"), 501, |i| format!("{i:0>10}/fs"));
        let error = mount_all(&[overlay(&too_many, &["ro"])], &target, &Reaper::idle()).await.unwrap_err();
        assert!(error.to_string().contains("limit is 500"), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    /// The empty list leaves the target alone; a list of which one fails leaves nothing.
    #[tokio::test]
    async fn privileged_a_root_is_mounted_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("rootfs");
        let layers = layers_in(dir.path(), 2, |i| i.to_string());
        mount_all(&[], &target, &Reaper::idle()).await.unwrap();
        assert!(!target.exists());
        let [first, missing] = [Path::new(&layers[0]).to_owned(), dir.path().join("missing")];
        let both = [bind(&first), bind(&missing)];
        let error =
            mount_all(&both, &target, &Reaper::idle()).await.expect_err("this test mounts: run it as root");
        assert!(error.to_string().starts_with("bind of "), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        mount_all(&[bind(&first)], &target, &Reaper::idle()).await.unwrap();
        assert!(target.join("file0").exists() && fs::write(target.join("x"), "").is_err());
        unmount_all(&target).await.unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        unmount_all(&target).await.unwrap();

        let many = layers_in(&dir.path().join("l".repeat(100)), 60, |i| i.to_string());
        fs::remove_dir_all(dir.path().join("l".repeat(100))).unwrap();
        let error = mount_all(&[overlay(&many, &["ro"])], &target, &Reaper::idle()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot mount the layers in "), "{error}");
    }

    /// Mounts on and below `dir`, in the order in which they are made.
    fn mounts_in(dir: &Path) -> Vec<String> {
        let table = overlayfs_utils::MountTable::parse(&fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        let below = |path: &Path| path.strip_prefix(dir).ok().map(|path| path.display().to_string());
        table.entries().iter().filter_map(|entry| below(&entry.mount_point)).collect()
    }

    fn below(target: &str, mount: Mount) -> Mount {
        Mount { target: target.into(), ..mount }
    }

    #[tokio::test]
    async fn privileged_mounts_below_the_root_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let base = dir.join("base");
        for name in ["low", "high/deep"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/high", base.join("link")).unwrap();
        let layers = layers_in(&dir, 3, |i| i.to_string());
        fs::create_dir(dir.join("1/deep")).unwrap();
        let layer = |number: usize| bind(Path::new(&layers[number]));
        let target = dir.join("rootfs");
        let mut base = bind(&base);
        base.options = vec!["rbind".into(), "rw".into()];
        let mut mounts =
            vec![base, below("low", layer(0)), below("/link", layer(1)), below("link/deep", layer(2))];
        mount_all(&mounts, &target, &Reaper::idle()).await.expect("this test mounts: run it as root");
        assert_eq!(mounts_in(&target), ["", "low", "high", "high/deep"]);
        assert!(target.join("low/file0").exists() && target.join("high/deep/file2").exists());
        // The flags are those of the mount, not of what it is on.
        assert!(fs::write(target.join("low/new"), "").is_err() && fs::write(target.join("new"), "").is_ok());
        unmount_all(&target).await.unwrap();
        assert!(mounts_in(&target).is_empty());

        // An overlay of them over all hides them from whoever unmounts.
        let at = |name: &str| target.join(name).display().to_string();
        mounts.push(overlay(&[at("high/deep"), at("low")], &["ro"]));
        mount_all(&mounts, &target, &Reaper::idle()).await.unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
        assert_eq!(mounts_in(&target), ["", "low", "high", "high/deep", ""]);
        unmount_all(&target).await.unwrap();
        assert!(mounts_in(&target).is_empty());

        // Who looks into one delays nobody for ever, and a list of which one fails leaves nothing.
        mount_all(&mounts[..3], &target, &Reaper::idle()).await.unwrap();
        let open = fs::File::open(target.join("low")).unwrap();
        unmount_all(&target).await.unwrap();
        assert!(mounts_in(&target).is_empty());
        drop(open);
        mounts.push(below("nowhere", layer(0)));
        let error = mount_all(&mounts, &target, &Reaper::idle()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot find \"nowhere\" in the root"), "{error}");
        assert!(mounts_in(&target).is_empty());
    }

    #[tokio::test]
    async fn privileged_any_mount_can_be_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("base/volume")).unwrap();
        let many = layers_in(&dir.join("s"), 450, |i| format!("{i:0>10}/fs"));
        let mut mapped = bind(Path::new(&many[0]));
        mapped.options.extend(["uidmap=0:1000:10".into(), "gidmap=0:1000:10".into()]);
        let mut private = bind(Path::new(&many[0]));
        private.options.push("unbindable".into());
        let target = dir.join("rootfs");
        for (mount, files) in
            [(overlay(&many, &["ro"]), 450), (overlay(&many[..9], &["ro"]), 9), (mapped, 1), (private, 1)]
        {
            let mounts = [bind(&dir.join("base")), below("volume", mount)];
            mount_all(&mounts, &target, &Reaper::idle()).await.expect("this test mounts: run it as root");
            assert_eq!(mounts_in(&target), ["", "volume"]);
            assert_eq!(fs::read_dir(target.join("volume")).unwrap().count(), files);
            unmount_all(&target).await.unwrap();
            assert!(mounts_in(&target).is_empty());
        }
    }
}
