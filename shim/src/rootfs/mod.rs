//! The container's root file system: the mounts that containerd's snapshotter describes, made on the bundle's
//! `rootfs` in the shim's own mount namespace.
//!
//! `plan` reads a mount's options (pure); this file makes and unmakes mounts, `mapped` those whose owners are mapped. The
//! process never changes its working directory or namespace: another container's create may run at the same time.

mod layers;
mod mapped;
mod plan;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use mapped::MappedError;
pub use plan::{Mount, PlanError};
use plan::{Plan, plan};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
        mount_change, mount_remount, move_mount, unmount,
    },
};
use thiserror::Error;

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
    #[error("{step} of {what} on {} failed{log}", target.display())]
    Mount {
        /// Which call.
        step: &'static str,
        /// What was to be mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// What the kernel wrote to the mount context's log, if anything, with a separator.
        log: String,
        /// Its answer.
        #[source]
        source: Errno,
    },
    /// One whose owners are to be mapped.
    #[error("cannot map the owners of the root file system on {}", target.display())]
    Mapped {
        /// Where.
        target: PathBuf,
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
async fn aside(step: impl FnOnce() -> Result<(), RootfsError> + Send + 'static) -> Result<(), RootfsError> {
    tokio::task::spawn_blocking(step).await.map_err(RootfsError::GivenUp)?
}

/// Mounts all of `mounts` on `target`, in order; on an error nothing stays mounted. An empty list leaves the target
/// alone: the caller has mounted it.
///
/// # Errors
/// [`RootfsError`], naming the step and the mount.
pub async fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), RootfsError> {
    let plans = mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| plan(mount).map_err(|source| RootfsError::Plan { index, source }))
        .collect::<Result<Vec<_>, _>>()?;
    if plans.is_empty() {
        return Ok(());
    }
    let target = target.to_owned();
    aside(move || apply_all(&plans, &target)).await
}

fn apply_all(plans: &[Plan], target: &Path) -> Result<(), RootfsError> {
    match fs::create_dir(target) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RootfsError::Target(target.to_owned(), e));
        }
        _ => {}
    }
    for plan in plans {
        if let Err(error) = apply(plan, target) {
            // Each mount hides the one before, so all of them come off from here.
            if let Err(undo) = detach_all(target) {
                log::error!("undo a failed rootfs: {undo}");
            }
            return Err(error);
        }
    }
    Ok(())
}

fn apply(plan: &Plan, target: &Path) -> Result<(), RootfsError> {
    let failed = |step: &'static str| {
        let (what, target) = (plan.describe(), target.to_owned());
        move |source| RootfsError::Mount { step, what, target, log: String::new(), source }
    };
    match plan {
        Plan::Bind { source, recursive, flags, propagation } => {
            let bind = if *recursive { MountFlags::BIND | MountFlags::REC } else { MountFlags::BIND };
            mount(source, target, c"", bind, None).map_err(failed("bind"))?;
            if !flags.is_empty() {
                // A bind ignores every other flag: they take a second call.
                mount_remount(target, MountFlags::BIND | *flags, c"").map_err(failed("remount"))?;
            }
            propagate(*propagation, target).map_err(failed("propagation"))
        }
        Plan::Options { kind, source, flags, data, propagation } => {
            mount(source, target, kind, *flags, Some(data.as_c_str())).map_err(failed("mount"))?;
            propagate(*propagation, target).map_err(failed("propagation"))
        }
        Plan::Overlay { layers, parameters, flags } => overlay(layers, parameters, *flags, target),
        Plan::Mapped { uids, gids, layers, inner } => {
            mapped::mount(uids, gids, layers.as_deref(), inner, target)
        }
    }
}

fn propagate(propagation: Option<MountPropagationFlags>, target: &Path) -> Result<(), Errno> {
    propagation.map_or(Ok(()), |flags| mount_change(target, flags))
}

/// An overlay of more layers than fit in the one page of mount(2)'s options: layer by layer, by the mount API of
/// Linux 5.2, with `lowerdir+` of 6.7.
fn overlay(
    layers: &[PathBuf],
    parameters: &[(String, Option<String>)],
    flags: MountAttrFlags,
    target: &Path,
) -> Result<(), RootfsError> {
    let context =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| step("fsopen", target, "", e))?;
    let failed = |name: &'static str| {
        let context = &context;
        move |e| step(name, target, &kernel_log(context), e)
    };
    for layer in layers {
        fsconfig_set_string(&context, "lowerdir+", layer).map_err(failed("fsconfig(lowerdir+)"))?;
    }
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        }
        .map_err(failed("fsconfig"))?;
    }
    fsconfig_create(&context).map_err(failed("fsconfig(create)"))?;
    let detached = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(failed("fsmount"))?;
    move_mount(&detached, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| step("move_mount", target, "", e))
}

fn step(step: &'static str, target: &Path, log: &str, source: Errno) -> RootfsError {
    let log = if log.is_empty() { String::new() } else { format!(" ({log})") };
    RootfsError::Mount { step, what: "overlay".into(), target: target.to_owned(), log, source }
}

/// The mount context's messages: one per read, none left is an error.
fn kernel_log(context: &impl std::os::fd::AsFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        lines.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    lines.join("; ")
}

/// How often an unmount is tried before it is made lazy, and the pause between.
const BUSY: (u32, Duration) = (10, Duration::from_millis(20));

/// Unmounts everything on `target`. Not an error when nothing is mounted there.
///
/// A mount that stays busy is detached lazily: a process of the host that looks into it must not make a container
/// undeletable.
///
/// # Errors
/// The kernel's refusal of the lazy unmount.
pub async fn unmount_all(target: &Path) -> Result<(), RootfsError> {
    let target = target.to_owned();
    aside(move || unmount_patiently(&target)).await
}

fn unmount_patiently(target: &Path) -> Result<(), RootfsError> {
    let mut tries = 0;
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if tries < BUSY.0 => {
                tries += 1;
                std::thread::sleep(BUSY.1);
            }
            Err(Errno::BUSY) => return detach_all(target),
            Err(source) => return Err(RootfsError::Unmount(target.to_owned(), source)),
        }
    }
}

fn detach_all(target: &Path) -> Result<(), RootfsError> {
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(source) => return Err(RootfsError::Unmount(target.to_owned(), source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More layers than fit in a page of options, and the empty list that leaves the target alone.
    #[tokio::test]
    async fn privileged_a_root_of_many_layers_is_mounted_and_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("rootfs");
        let layer = |i: usize| dir.path().join(format!("{i:0>100}"));
        for i in 0..60 {
            fs::create_dir(layer(i)).unwrap();
            fs::write(layer(i).join(format!("file{i}")), "").unwrap();
        }
        let layers: Vec<_> = (0..60).map(|i| layer(i).display().to_string()).collect();
        let options = vec![format!("lowerdir={}", layers.join(":")), "ro".into()];
        let overlay =
            Mount { kind: "overlay".into(), source: "overlay".into(), options, ..Default::default() };

        mount_all(&[], &target).await.unwrap();
        assert!(!target.exists());
        mount_all(std::slice::from_ref(&overlay), &target).await.expect("this test mounts: run it as root");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 60);
        assert!(fs::write(target.join("x"), "").is_err());
        unmount_all(&target).await.unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        unmount_all(&target).await.unwrap();

        // The second fails: nothing of the first stays.
        let bind = |source: &Path| Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        };
        let missing = dir.path().join("missing");
        let error = mount_all(&[bind(&layer(0)), bind(&missing)], &target).await.unwrap_err();
        assert!(error.to_string().starts_with("bind of "), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        mount_all(&[bind(&layer(7))], &target).await.unwrap();
        assert!(target.join("file7").exists() && fs::write(target.join("x"), "").is_err());
        unmount_all(&target).await.unwrap();
    }
}
