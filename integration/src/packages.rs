//! The package of the build that is tested, in two revisions, which `make test-packages` has made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::Workspace;

/// Where machines have them.
pub const AT: &str = "/payload/packages";

/// The scenario that needs them.
pub const SCENARIO: &str = "packages";

/// The two packages, the older first.
///
/// # Errors
/// When they are not there, which says what makes them.
pub fn made(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let found = in_folder(&workspace.target("packages")?)?;
    ensure!(
        found.len() == 2,
        "target/packages has {} packages instead of two: run `make test-packages`",
        found.len()
    );
    Ok(found)
}

/// The packages in a folder, the older first: their versions differ in their last digit alone.
///
/// # Errors
/// When the folder cannot be read.
pub fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "deb"));
    found.sort();
    Ok(found)
}
