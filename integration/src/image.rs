//! The image for the nodes of a cluster, of the release, which `make image` has made.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::workspace::Workspace;

/// The scenario that needs it.
pub const SCENARIO: &str = "kubernetes-image";
/// The payload's folder with it.
pub const FOLDER: &str = "image";
/// Its file.
pub const ARCHIVE: &str = "resource-capsules.tar";

/// Its archive.
///
/// # Errors
/// When it is not there, which says what makes it.
pub fn made(workspace: &Workspace) -> Result<PathBuf> {
    let archive = workspace.target(FOLDER)?.join(ARCHIVE);
    ensure!(archive.exists(), "{} is not there: run `make image`", archive.display());
    Ok(archive)
}
