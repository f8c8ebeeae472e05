//! Why a container's devices could not be changed.

use overlayfs_utils::BpfError;
use thiserror::Error;

use super::plan::Refusal;

/// Why a container's devices could not be changed.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// By what is attached; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// By the kernel; what had been changed is as it was before.
    #[error("the container's devices cannot be changed")]
    Kernel(#[from] BpfError),
    /// Somebody else changed the programs each time that we did.
    #[error(
        "the container's device programs keep changing: see what else manages its devices, then try again"
    )]
    Restless,
    /// By the kernel, and neither could what had been done be undone.
    #[error(
        "the container's devices are changed in part: {cause}; attach or detach again to have them as they are to be"
    )]
    Half {
        /// What failed first.
        cause: Box<DeviceError>,
        /// What failed when that was to be undone.
        #[source]
        undo: BpfError,
    },
}
