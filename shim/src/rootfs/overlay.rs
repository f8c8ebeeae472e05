//! An overlay, layer by layer.

use std::path::Path;

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use super::{RootfsError, place::Place};

/// An overlay of more layers than fit in the one page of mount(2)'s options, by the mount API of Linux 5.2, with
/// `lowerdir+` of 6.7. `target` is what `place` is now.
///
/// # Errors
/// [`RootfsError::Mount`].
pub fn mount(
    parameters: &[(String, Option<String>)],
    flags: MountAttrFlags,
    target: &Path,
    place: &Place,
) -> Result<(), RootfsError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| step("fsopen", place, "", e))?;
    let failed = |name: &'static str| {
        let context = &context;
        move |e| step(name, place, &kernel_log(context), e)
    };
    for (key, value) in parameters {
        let name = match key.as_str() {
            "lowerdir+" => "fsconfig(lowerdir+), which Linux 6.7 has first,",
            "datadir+" => "fsconfig(datadir+), which Linux 6.8 has first,",
            _ => "fsconfig",
        };
        match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        }
        .map_err(failed(name))?;
    }
    fsconfig_create(&context).map_err(failed("fsconfig(create)"))?;
    let detached = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(failed("fsmount"))?;
    // A spot that is held is a link of procfs.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(&detached, c"", CWD, target, flags).map_err(|e| step("move_mount", place, "", e))
}

fn step(step: &'static str, place: &Place, log: &str, source: Errno) -> RootfsError {
    let log = if log.is_empty() { String::new() } else { format!(" ({log})") };
    RootfsError::Mount { step, what: "overlay".into(), target: place.to_string(), log, source }
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
