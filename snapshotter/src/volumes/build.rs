//! The mount of a volume, built and attached nowhere.

use std::path::{Path, PathBuf};

use overlayfs_utils::{DetachedMount, LayerDir, LayersBy, Lower, OverlayPlan, UpperBase};

use super::{VolumeError, model::VolumeId};
use crate::uppers::model::{About, Over, Place};

/// What directories that are no capsule's can be listed and entered by.
const OPEN: u32 = 0o755;

/// How overlays are made on this node.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) by: LayersBy,
    pub(super) userxattr: bool,
    /// An empty directory.
    pub(super) empty: PathBuf,
}

/// What a volume's mounts are called in mount tables. Nothing else on the node is called so.
pub(super) fn source(id: &VolumeId, over: Option<&Over>) -> String {
    match over {
        Some(over) => format!("{}{}@{}", prefix(id), over.capsule, over.version),
        None => prefix(id),
    }
}

/// How what a volume's mounts are called begins, whatever version they have.
pub(super) fn prefix(id: &VolumeId) -> String {
    format!("capsule-volume:{id}:")
}

/// The overlay of `layers`, topmost first, and of what is written, where something is.
pub(super) fn build(
    means: &Means,
    id: &VolumeId,
    layers: &[PathBuf],
    written: Option<&(About, Place)>,
    source: &str,
) -> Result<DetachedMount, VolumeError> {
    let opened = layers.iter().map(|path| LayerDir::open(path)).collect::<Result<Vec<_>, _>>()?;
    let empty = LayerDir::open(&means.empty)?;
    let mount = |plan: OverlayPlan<'_>| {
        let plan = if means.userxattr { plan.with_userxattr() } else { plan };
        let mounted = DetachedMount::overlay(&plan, means.by, source);
        mounted.map_err(|source| VolumeError::Mount { id: id.clone(), source })
    };
    let lowers: Vec<_> = opened.iter().map(Lower::Dir).collect();
    let Some((about, place)) = written else {
        return mount(OverlayPlan::ro(lowers, &empty)?);
    };
    let failed = |source| VolumeError::Place { id: id.clone(), source };
    let base = match place {
        Place::Directory(path) => UpperBase::new(LayerDir::open(path)?),
        Place::Image(path) => UpperBase::of_image(path).map_err(failed)?,
    };
    let base = match means.by {
        LayersBy::Descriptor => {
            base.detached(None).map_err(|source| VolumeError::Mount { id: id.clone(), source })?
        }
        LayersBy::Path | LayersBy::Joined => base,
    };
    let likes = opened.get(..1).unwrap_or_default();
    let upper = base.place(Path::new(""), 0, likes).map_err(failed)?;
    if about.pending {
        let mode = about.permissions.or(opened.is_empty().then_some(OPEN));
        upper.give_root(about.owner, mode).map_err(failed)?;
    }
    let below = if lowers.is_empty() { vec![Lower::Dir(&empty)] } else { lowers };
    mount(OverlayPlan::rw(below, &upper)?)
}
