//! Where the writes to an attachment go.

use std::{os::fd::AsFd, path::Path};

use overlayfs_utils::{
    ContainerPath, IdMapping, LayerDir, LayersBy, PlanError, Upper, UpperBase, new_user_namespace,
};
use rustix::io::Errno;

use crate::hotplug::{
    capsule::Tree,
    error::EngineError,
    model::{InvalidRequest, UpperPlace},
    plan::Planned,
    scene::Scene,
};

/// The place, open while overlays are made over it.
#[derive(Debug)]
pub(super) struct Writable {
    base: UpperBase,
}

impl Writable {
    pub(super) fn open(scene: &Scene, place: &UpperPlace) -> Result<Self, EngineError> {
        let by = scene.kernel.layers_by()?;
        let mappings = scene.task.id_mappings()?;
        let base = match place {
            UpperPlace::Directory(path) => UpperBase::new(LayerDir::open(path)?),
            UpperPlace::Image(path) => UpperBase::of_image(path)?,
        };
        let base = match (by, mappings) {
            (LayersBy::Descriptor, mappings) => detached(base, mappings)?,
            (_, None) => base,
            // What the container's root writes would be refused to it, or be another's in the next container.
            (_, Some(_)) => return Err(EngineError::Owners),
        };
        Ok(Self { base })
    }

    /// The upper directory of one planned place, made when it is not there.
    pub(super) fn place(&self, number: usize, planned: &Planned, tree: &Tree) -> Result<Upper, EngineError> {
        let from: &Path = planned.from.as_ref();
        let mut likes = Vec::new();
        for path in from.ancestors() {
            let path = ContainerPath::parse(&path.to_string_lossy()).map_err(InvalidRequest::from)?;
            likes.push(tree.dirs(&path)?.into_iter().next().ok_or(PlanError::NoLayers)?);
        }
        likes.reverse();
        let below = from.strip_prefix("/").unwrap_or(from);
        Ok(self.base.place(below, number, &likes)?)
    }
}

fn detached(base: UpperBase, mappings: Option<[IdMapping; 2]>) -> Result<UpperBase, EngineError> {
    let users = match mappings.map(|both| both.map(IdMapping::with_root_outside)) {
        Some([uids, gids]) => Some(new_user_namespace(&uids, &gids)?),
        None => None,
    };
    match base.detached(users.as_ref().map(AsFd::as_fd)) {
        Ok(base) => Ok(base),
        Err(error) if users.is_some() && matches!(error.errno(), Errno::INVAL | Errno::PERM) => {
            log::debug!("owners are not mapped: {error}");
            Err(EngineError::Owners)
        }
        Err(error) => Err(error.into()),
    }
}
