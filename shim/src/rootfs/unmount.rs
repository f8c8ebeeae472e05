//! Unmounting a root.

use std::{fs, path::Path, time::Duration};

use overlayfs_utils::{ContainerPath, ContainerRoot, MountTable, Unmounted, in_directory, mount_at};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use super::{RootfsError, aside};

/// How often an unmount is tried before it is made lazy, and the pause between.
const BUSY: (u32, Duration) = (10, Duration::from_millis(20));

/// Unmounts everything on `target` and below it. Not an error when nothing is mounted there.
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
            // It is busy as well while anything is mounted below it.
            Err(Errno::BUSY) if unmount_below(target) => {}
            Err(Errno::BUSY) if tries < BUSY.0 => {
                tries += 1;
                std::thread::sleep(BUSY.1);
            }
            Err(Errno::BUSY) => return detach_all(target),
            Err(source) => return Err(RootfsError::Unmount(target.to_owned(), source)),
        }
    }
}

/// Unmounts what is below `target`, the last one first; whether anything went. What is hidden by a mount over it stays, and
/// goes when that one has gone.
fn unmount_below(target: &Path) -> bool {
    // On a thread of its own, since they are unmounted by name from the directory that they are in.
    let gone = in_directory(Path::new("/"), || {
        // As the mount table has it.
        let target = target.canonicalize().ok()?;
        let table = MountTable::parse(&fs::read("/proc/thread-self/mountinfo").ok()?).ok()?;
        let root = ContainerRoot::open(&target).ok()?;
        let below: Vec<_> =
            table.below(&target).filter_map(|entry| entry.mount_point.strip_prefix(&target).ok()).collect();
        let gone = below.into_iter().rev().filter(|path| unmount_in(&root, path)).count();
        Some(gone > 0)
    });
    gone.ok().flatten().unwrap_or_default()
}

/// Unmounts what is on top at a path in the root, no link of which is followed.
fn unmount_in(root: &ContainerRoot, path: &Path) -> bool {
    let path = path.to_str().and_then(|path| ContainerPath::parse(&format!("/{path}")).ok());
    let Some(point) = path.and_then(|path| root.mount_point(&path).ok()) else { return false };
    let Ok(Some(mount)) = mount_at(&point) else { return false };
    matches!(overlayfs_utils::unmount(&point, mount), Ok(Unmounted::Done))
}

/// Takes everything off `target` at once, lazily.
///
/// # Errors
/// The kernel's refusal.
pub fn detach_all(target: &Path) -> Result<(), RootfsError> {
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(source) => return Err(RootfsError::Unmount(target.to_owned(), source)),
        }
    }
}
