//! Unmounting a root.

use std::{path::Path, time::Duration};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use super::{RootfsError, aside};

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
