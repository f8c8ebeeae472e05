//! Whether overlays can be written to in a place, found by making one that no path ever shows.

use std::os::fd::AsRawFd;

use rustix::mount::MountAttrFlags;

use crate::{context::Context, detached::LayerDir, error::MountError};

/// Makes an overlay of `upper` and `work` over `lower` with further options of overlayfs (name and value), and drops it.
///
/// The three are empty directories; `upper` and `work` are on one file system. overlayfs leaves its own
/// directories in `work`. A success does not mean that the file system has all that overlayfs makes use of: without
/// extended attributes or `d_type` it mounts too, with a warning in the kernel's log, and works worse
/// (Linux `Documentation/filesystems/overlayfs.rst`, "Upper and lower").
///
/// # Errors
/// [`MountError`], by step: an option that this kernel does not know or that contradicts another, or a file system that
/// cannot be written to through an overlay (an overlay, for one).
pub fn try_writable_overlay(
    upper: &LayerDir,
    work: &LayerDir,
    lower: &LayerDir,
    options: &[(&str, Option<&str>)],
) -> Result<(), MountError> {
    let context = Context::open("overlay")?;
    context.set_string("source", "trial")?;
    for (key, directory) in [("upperdir", upper), ("workdir", work), ("lowerdir", lower)] {
        // By descriptor: fsconfig(2) takes values of 255 bytes at most, and paths may be longer.
        let by_descriptor = format!("/proc/self/fd/{}", directory.fd().as_raw_fd());
        context.set_string(key, &by_descriptor).map_err(|error| error.about(directory.name()))?;
    }
    for (name, value) in options {
        match value {
            Some(value) => context.set_string(name, value)?,
            None => context.set_flag(name)?,
        }
    }
    context.mount(MountAttrFlags::empty(), &format!("an overlay in {}", upper.name())).map(drop)
}
