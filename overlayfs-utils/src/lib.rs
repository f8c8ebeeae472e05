//! overlayfs-utils.
