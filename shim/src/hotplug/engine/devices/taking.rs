//! Taking back what devices have in a container: mounts, nodes, and who stands in the way.

use overlayfs_utils::{
    ContainerRoot, CreatedFile, DetachedMount, Held, MountPoint, SuperBlock, Unmounted, User, attach,
    clone_at, detach_file_lazily, find_holders, in_mount_namespace, unmount,
};

use super::{chain, places::Target};
use crate::hotplug::{
    engine::detach::remove_created,
    error::{DevicesError, EngineError},
    journal::{DeviceRecord, Mounted},
    model::AttachmentId,
    scene::Scene,
};

/// Who has devices open that are of no other attachment, or files of such mounts.
pub(super) fn find_users(scene: &Scene, record: &DeviceRecord) -> Result<Vec<User>, EngineError> {
    let others = scene.journal.device_ledger();
    let own = record
        .edits
        .nodes
        .iter()
        .filter(|node| node.grant().is_some_and(|grant| others.users(grant.device).next().is_none()));
    let held = Held {
        devices: own.map(|node| (node.kind.file_type(), node.major, node.minor)).collect(),
        mounts: own_mounts(scene, record).map(Mounted::id).collect(),
    };
    if held.devices.is_empty() && held.mounts.is_empty() {
        return Ok(Vec::new());
    }
    let cgroup = scene.cgroup.as_deref().ok_or(DevicesError::NotUnified)?;
    find_holders(cgroup, &held).map_err(EngineError::Users)
}

/// The mounts of a record that no other has.
fn own_mounts<'a>(scene: &'a Scene, record: &'a DeviceRecord) -> impl Iterator<Item = &'a Mounted> {
    let others = scene.journal.devices.iter().filter(|other| other.id != record.id);
    record.mounts.iter().filter(move |mounted| !others.clone().any(|other| other.mounts.contains(mounted)))
}

pub(super) fn take_mounts_lazily(scene: &Scene, record: &DeviceRecord) -> Result<(), EngineError> {
    let own: Vec<&Mounted> = own_mounts(scene, record).collect();
    in_mount_namespace(scene.task.pidfd(), || {
        for mounted in own.into_iter().rev() {
            let Some(path) = scene.locate(mounted)? else { continue };
            let _ = detach_file_lazily(&scene.task.root().mount_point(&path)?, mounted.id())?;
        }
        Ok(())
    })?
}

/// Unmounts all, or none: then who uses the one that is busy. True when all are gone.
pub(super) fn take_mounts(
    scene: &Scene,
    record: &mut DeviceRecord,
) -> Result<(Vec<User>, bool), EngineError> {
    let (own, id): (Vec<Mounted>, _) = (own_mounts(scene, record).cloned().collect(), record.id.clone());
    let mut taken: Vec<(Mounted, DetachedMount)> = Vec::new();
    let outcome = in_mount_namespace(scene.task.pidfd(), || {
        let outcome = own.iter().rev().try_for_each(|mounted| take_mount(scene, &id, mounted, &mut taken));
        if outcome.is_err() {
            for (mounted, back) in taken.drain(..).rev() {
                match put_back(scene.task.root(), &mounted, &back) {
                    Ok(block) => {
                        let same = record.mounts.iter_mut().filter(|m| m.id() == mounted.id());
                        same.for_each(|m| m.block = block);
                    }
                    Err(error) => log::error!("undoing a detach of {}: {}", mounted.path, chain(&error)),
                }
            }
        }
        outcome
    })?;
    match outcome {
        Ok(()) => Ok((Vec::new(), true)),
        Err(EngineError::Busy(id)) => match find_users(scene, record)? {
            users if users.is_empty() => Err(EngineError::Busy(id)),
            users => Ok((users, false)),
        },
        Err(error) => Err(error),
    }
}

/// Unmounts one; [`EngineError::Busy`] when it is in use.
fn take_mount(
    scene: &Scene,
    id: &AttachmentId,
    mounted: &Mounted,
    taken: &mut Vec<(Mounted, DetachedMount)>,
) -> Result<(), EngineError> {
    let Some(path) = scene.locate(mounted)? else { return Ok(()) };
    let point: MountPoint = scene.task.root().mount_point(&path)?;
    let back = clone_at(&point, mounted.id())?;
    match unmount(&point, mounted.id())? {
        Unmounted::Done => taken.extend(back.map(|back| (mounted.clone(), back))),
        Unmounted::NotThere => {}
        Unmounted::Busy => return Err(EngineError::Busy(id.clone())),
    }
    Ok(())
}

fn put_back(
    root: &ContainerRoot,
    mounted: &Mounted,
    back: &DetachedMount,
) -> Result<SuperBlock, EngineError> {
    let target = Target::find(root, &mounted.path)?;
    attach(back, target.fd(), mounted.path.as_ref())?;
    Ok(SuperBlock::of(back.fd())?)
}

/// Removes the nodes, files and directories of a record that is no more in the journal, as far as no other has them.
pub(super) fn remove_files(scene: &mut Scene, record: &DeviceRecord) {
    let others = &scene.journal.devices;
    let is_own = |file: &&CreatedFile| {
        !others.iter().any(|other| other.nodes.contains(file) || other.placeholders.contains(file))
    };
    for file in record.nodes.iter().chain(&record.placeholders).filter(is_own) {
        scene.task.root().remove_file(file);
    }
    remove_created(scene, &record.created);
}
