//! Detached mounts for planned ones, and the places where they go.

use std::{os::fd::AsFd, path::Path};

use overlayfs_utils::{
    ContainerPath, Created, DetachedMount, LayerDir, LayersBy, Lower, MountPoint, OverlayPlan, Resolved,
    SuperBlock, Tree as LayerTree, Upper,
};
use rustix::io::Errno;

use super::writable::Writable;
use crate::hotplug::{
    capsule::Tree,
    error::EngineError,
    journal::{Mounted, Record},
    model::{Content, Mode, Spec},
    plan::{Planned, plan_union},
    scene::Scene,
};

/// A mount that is built, and not attached.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) mount: DetachedMount,
    pub(super) mounted: Mounted,
}

/// A place in the container, held open until something is attached there.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) dir: Resolved,
    pub(super) point: MountPoint,
}

/// Plans the mounts of `spec`. `own` is the attachment that they replace, whose mounts are no obstacle.
pub(super) fn plan(
    scene: &Scene,
    spec: &Spec,
    tree: &Tree,
    own: Option<&Record>,
) -> Result<Vec<Planned>, EngineError> {
    let seen = scene.seen_mounts(&scene.read_mounts()?, own);
    match spec.mode {
        Mode::Union => {
            // The container's root as the host has it shows what is below this attachment's own mounts too.
            let target = scene.host.canonical(&spec.target)?;
            plan_union(tree, scene, &seen, &target)
        }
        Mode::Ro => {
            let at = match own.and_then(|record| record.mounts.first()) {
                Some(mounted) => mounted.path.clone(),
                None => scene.task.root().canonical(&spec.target)?,
            };
            let in_the_way = seen.iter().find(|seen| Path::new(&seen.path).starts_with(&at));
            if let (Some(seen), None) = (in_the_way, own) {
                let path = ContainerPath::parse(&seen.path).unwrap_or(at);
                return Err(EngineError::Occupied { path, by: seen.what.clone() });
            }
            Ok(vec![Planned { at, from: ContainerPath::root(), alone: true }])
        }
    }
}

/// Builds the mounts of all planned places, detached.
pub(super) fn build_all(
    scene: &Scene,
    spec: &Spec,
    tree: &Tree,
    planned: &[Planned],
) -> Result<Vec<Built>, EngineError> {
    let writable = spec.upper.as_ref().map(|place| Writable::open(scene, place)).transpose()?;
    let build_one = |(number, planned): (usize, &Planned)| {
        let layers = tree.dirs(&planned.from)?;
        let upper = writable.as_ref().map(|writable| writable.place(number, planned, tree)).transpose()?;
        build(scene, &spec.content, tree, planned, (layers, upper))
    };
    planned.iter().enumerate().map(build_one).collect()
}

/// Builds the mount of one planned place, detached.
fn build(
    scene: &Scene,
    content: &Content,
    tree: &Tree,
    planned: &Planned,
    (layers, upper): (Vec<LayerDir>, Option<Upper>),
) -> Result<Built, EngineError> {
    let (by, source) = (scene.kernel.layers_by()?, content.source());
    let mapped = if by == LayersBy::Descriptor { map_owners(scene, &layers)? } else { None };
    let lowers = match &mapped {
        Some(trees) => trees.iter().map(Lower::Tree).collect(),
        None => layers.iter().map(Lower::Dir).collect(),
    };
    let overlay = |plan: OverlayPlan<'_>| {
        let plan = if tree.userxattr() { plan.with_userxattr() } else { plan };
        let plan = if let Some(upper) = &upper { plan.with_upper(upper) } else { plan };
        DetachedMount::overlay(&plan, by, &source)
    };
    let mount = if planned.alone {
        let empty = scene.empty_dir()?;
        overlay(OverlayPlan::ro(lowers, &empty)?)?
    } else {
        let below = scene.open_host_dir(&planned.at)?;
        overlay(OverlayPlan::union(lowers, Lower::Dir(&below))?)?
    };
    let block = SuperBlock::of(mount.fd())?;
    Ok(Built { mount, mounted: Mounted { path: planned.at.clone(), block, alone: planned.alone } })
}

/// The layers with their owners mapped into the container's user namespace, where it has one of its own: what root made
/// is root's there too. Nothing for a container that has none, or where it cannot be done: then their owners are nobody in
/// there, and all that they may read they can. Only for kernels that take detached trees as layers.
fn map_owners(scene: &Scene, layers: &[LayerDir]) -> Result<Option<Vec<LayerTree>>, EngineError> {
    let Some(users) = scene.task.user_namespace()? else { return Ok(None) };
    let map = |layer| LayerTree::clone_of(layer)?.id_mapped(users.as_fd());
    match layers.iter().map(map).collect::<Result<Vec<_>, _>>() {
        Ok(trees) => Ok(Some(trees)),
        // The layers' file system cannot, or this shim may not: it is in a user namespace itself.
        Err(error) if matches!(error.errno(), Errno::INVAL | Errno::PERM) => {
            log::debug!("owners are not mapped: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Finds the directory for a planned mount in the container, and makes it where the plan says it is missing.
pub(super) fn place(
    scene: &Scene,
    planned: &Planned,
    created: &mut Vec<Created>,
) -> Result<Placed, EngineError> {
    let root = scene.task.root();
    let dir = if planned.alone {
        let (dir, made) = root.make_dirs(&planned.at)?;
        created.extend(made);
        dir
    } else {
        root.resolve_plain(&planned.at)?
    };
    // The plan was made from what was there a moment ago, and the container does not stand still.
    let same_as_host = || {
        let host = scene.host.resolve_plain(&planned.at)?;
        Ok::<_, EngineError>(host.identity() == dir.identity())
    };
    if dir.path() != &planned.at || dir.is_mount_root() || (!planned.alone && !same_as_host()?) {
        return Err(EngineError::Raced(planned.at.clone()));
    }
    let point = root.mount_point(&planned.at)?;
    Ok(Placed { dir, point })
}
