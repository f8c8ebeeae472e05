//! Where the writes to an attachment go.

use std::{os::fd::AsFd, path::Path};

use overlayfs_utils::{
    DetachedMount, IdMapping, LayerDir, LayersBy, PlanError, Upper, UpperBase, attach, dissolve, mount_image,
    new_user_namespace,
};
use rustix::io::Errno;

use crate::hotplug::{error::EngineError, model::UpperPlace, plan::Planned, scene::Scene};

/// The place, open while overlays are made over it.
#[derive(Debug)]
pub(super) struct Writable {
    base: UpperBase,
    _staged: Option<Staged>,
}

/// A mount that is attached on the host for as long as this is there: older kernels find a layer by its path alone.
#[derive(Debug)]
struct Staged(DetachedMount);

impl Drop for Staged {
    fn drop(&mut self) {
        // Overlays that were made meanwhile have a mount of their own of it.
        if let Err(error) = dissolve(&self.0) {
            log::warn!("what is written stays mounted on the host: {error}");
        }
    }
}

impl Writable {
    pub(super) fn open(scene: &Scene, place: &UpperPlace) -> Result<Self, EngineError> {
        let by = scene.kernel.layers_by()?;
        let mappings = scene.task.id_mappings()?;
        let (base, staged) = match place {
            UpperPlace::Directory(path) => (UpperBase::new(LayerDir::open(path)?, None), None),
            UpperPlace::Image(path) => {
                let mount = mount_image(path, false)?;
                if by == LayersBy::Descriptor {
                    (UpperBase::new(mount.root()?, Some(mount)), None)
                } else {
                    let (dir, path) = scene.stage()?;
                    attach(&mount, dir.fd(), &path)?;
                    let staged = Staged(mount);
                    (UpperBase::new(LayerDir::open(&path)?, None), Some(staged))
                }
            }
        };
        let base = match (by, mappings) {
            (LayersBy::Descriptor, mappings) => detached(base, mappings)?,
            (_, None) => base,
            // What the container's root writes would be refused to it, or be another's in the next container.
            (_, Some(_)) => return Err(EngineError::Owners),
        };
        Ok(Self { base, _staged: staged })
    }

    /// The upper directory of one planned place, made when it is not there.
    pub(super) fn place(
        &self,
        number: usize,
        planned: &Planned,
        layers: &[LayerDir],
    ) -> Result<Upper, EngineError> {
        let from: &Path = planned.from.as_ref();
        let below = from.strip_prefix("/").unwrap_or(from);
        let like = layers.first().ok_or(PlanError::NoLayers)?;
        Ok(self.base.place(below, number, like)?)
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
