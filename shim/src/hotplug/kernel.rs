//! What the kernel can do, found out by the first capsule that needs it: nearly all containers start, run and end without
//! one, and to probe takes a mount namespace and a thread.

use std::sync::{Arc, OnceLock};

use overlayfs_utils::{LayersBy, ProbeError};

/// Known once for all containers of the shim.
#[derive(Debug, Clone, Default)]
pub struct Kernel(Arc<OnceLock<LayersBy>>);

impl Kernel {
    /// A kernel that takes layers `by`, as a test wants it.
    #[cfg(test)]
    pub fn known(by: LayersBy) -> Self {
        Self(Arc::new(OnceLock::from(by)))
    }

    /// How overlays are told their layers. Blocks for some milliseconds the first time.
    ///
    /// # Errors
    /// [`ProbeError`] when the kernel cannot do what capsules need; asked again, it is probed again.
    pub fn layers_by(&self) -> Result<LayersBy, ProbeError> {
        if let Some(by) = self.0.get() {
            return Ok(*by);
        }
        let features = overlayfs_utils::probe()?;
        log::info!("hot-plug: {features}");
        Ok(*self.0.get_or_init(|| features.layers_by))
    }
}
