//! One mount, made.

use std::path::Path;

use overlayfs_utils::{LoopDevice, in_directory, in_user_namespace};
use rustix::{
    fs::StatVfsMountFlags,
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount},
};

use super::{
    RootfsError, mapped, overlay,
    place::Place,
    plan::{Plan, Source},
};

/// Makes one mount.
///
/// # Errors
/// [`RootfsError`]. A bind, or a propagation, that failed at its second call is there.
pub fn apply(plan: &Plan, place: &Place) -> Result<(), RootfsError> {
    let failed = |step: &'static str| {
        let (what, target) = (plan.describe(), place.to_string());
        move |source| RootfsError::Mount { step, what, target, log: String::new(), source }
    };
    let spot = place.find()?;
    let target = spot.path();
    match plan {
        Plan::Bind { source, recursive, flags, propagation } => {
            let bind = if *recursive { MountFlags::BIND | MountFlags::REC } else { MountFlags::BIND };
            mount(source, target, c"", bind, None).map_err(failed("bind"))?;
            if !flags.is_empty() {
                // A bind ignores every other flag: they take a second call.
                let made = place.find()?;
                let kept = locked_flags(made.path()).map_err(failed("statvfs"))?;
                let flags = MountFlags::BIND | *flags | kept;
                mount_remount(made.path(), flags, c"").map_err(failed("remount"))?;
            }
            propagate(*propagation, place, failed("propagation"))
        }
        Plan::Remount { flags, data, propagation } => {
            mount_remount(target, *flags, data.as_c_str()).map_err(failed("remount"))?;
            propagate(*propagation, place, failed("propagation"))
        }
        Plan::Options { kind, source, flags, data, propagation, directory } => {
            let device = attach(source, *flags)?;
            let source = device.as_ref().map_or(source.path(), LoopDevice::path);
            let data = Some(data.as_c_str());
            let call = || mount(source, target, kind, *flags, data).map_err(failed("mount"));
            within(directory.as_deref(), call)?;
            propagate(*propagation, place, failed("propagation"))
        }
        Plan::Overlay { directory, parameters, flags, propagation } => {
            within(directory.as_deref(), || overlay::mount(parameters, *flags, target, place))?;
            propagate(*propagation, place, failed("propagation"))
        }
        Plan::Mapped { uids, gids, layers, inner } => {
            mapped::mount(uids, gids, layers.as_deref(), inner, place)
        }
    }
}

/// The flags of a mount that a remount has to repeat: in a user namespace nobody may take away those that came from outside
/// of it (mount_namespaces(7)). Elsewhere none, as with containerd's own mounts.
fn locked_flags(target: &Path) -> Result<MountFlags, Errno> {
    if !in_user_namespace().unwrap_or(false) {
        return Ok(MountFlags::empty());
    }
    let has = rustix::fs::statvfs(target)?.f_flag;
    let table = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    Ok(table.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag).collect())
}

/// The loop device of a file, which it is until a mount has it.
fn attach(source: &Source, flags: MountFlags) -> Result<Option<LoopDevice>, RootfsError> {
    let Source::File { path, direct } = source else { return Ok(None) };
    let attached = LoopDevice::attach(path, flags.contains(MountFlags::RDONLY), *direct);
    attached.map(Some).map_err(RootfsError::Loop)
}

/// Makes a mount whose layers are relative to `directory`, or to nothing.
fn within(
    directory: Option<&Path>,
    make: impl FnOnce() -> Result<(), RootfsError> + Send,
) -> Result<(), RootfsError> {
    let Some(directory) = directory else { return make() };
    in_directory(directory, make).map_err(|e| RootfsError::Layers(directory.to_owned(), e))?
}

/// Of the mount that is there now: what the place was before is below it.
fn propagate(
    propagation: Option<MountPropagationFlags>,
    place: &Place,
    failed: impl FnOnce(Errno) -> RootfsError,
) -> Result<(), RootfsError> {
    let Some(flags) = propagation else { return Ok(()) };
    mount_change(place.find()?.path(), flags).map_err(failed)
}
