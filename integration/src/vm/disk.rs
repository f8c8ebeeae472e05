//! Disk images, made without mounting anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::output_of;

/// Room for containerd's content and snapshots beside the tree.
const ROOT_SIZE: &str = "4G";

/// The image of a root file system, kept beside the tree.
pub fn of_rootfs(tree: &Path) -> Result<PathBuf> {
    let image = tree.with_extension("ext4");
    if image.exists() {
        return Ok(image);
    }
    let making = tree.with_extension(format!("ext4.{}", std::process::id()));
    make(tree, &making, ROOT_SIZE)?;
    fs::rename(&making, &image).with_context(|| format!("rename {}", making.display()))?;
    Ok(image)
}

/// The image of a folder that is only read.
pub fn of_folder(tree: &Path, image: &Path) -> Result<PathBuf> {
    make(tree, image, "1G")?;
    Ok(image.to_owned())
}

fn make(tree: &Path, image: &Path, size: &str) -> Result<()> {
    // On some systems sbin is not on root's path.
    let mut command = Command::new("mke2fs");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-d"]).arg(tree).arg(image).arg(size);
    output_of(&mut command).map(drop)
}
