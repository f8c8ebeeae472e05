//! What a machine is given as `/payload`: `bin/` (the build that is tested), `configs/` (as users get them),
//! `images/`, `capsules/`, `criu/`, and for one scenario `packages/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::capsules;
use crate::criu;
use crate::images::Image;
use crate::workspace::{Workspace, output_of, remove_tree};

/// The programs of the workspace that a machine is given.
const PROGRAMS: [&str; 7] = [
    "capsule-testbed",
    "capsuled",
    "containerd-shim-capsule-v1",
    "capsulectl",
    "capsule-remote",
    "capsule-controller",
    "capsule-simulator",
];

/// The snapshotter's conformance suite, which `make suite` puts beside the programs. Only one scenario needs it.
pub const SUITE: &str = "capsuled-conformance";

/// The payload of the build that is tested.
#[derive(Debug, Clone)]
pub struct Payload {
    /// On the host.
    pub folder: PathBuf,
}

impl Payload {
    /// Puts the payload together, with at least these images. Programs are copied once per process, the rest is made
    /// once.
    pub fn ready(workspace: &Workspace, images: &[Image]) -> Result<Self> {
        let (capsules, criu) = (capsules::ready(workspace)?, criu::ready(workspace)?);
        let images = images
            .iter()
            .map(|image| Ok((image.file(), image.ready(workspace)?)))
            .collect::<Result<Vec<_>>>()?;
        let _lock = workspace.lock("payload")?;
        let folder = workspace.target("payload")?.join(std::process::id().to_string());
        if !folder.exists() {
            sweep(folder.parent().context("the payload has no parent folder")?)?;
            let making = folder.with_extension("part");
            fill(workspace, &capsules, &criu, &making)?;
            fs::rename(&making, &folder).with_context(|| format!("rename {}", making.display()))?;
        }
        for (name, archive) in images {
            let at = folder.join("images").join(name);
            if !at.exists() {
                // They are large, and no machine can write to its payload.
                fs::hard_link(&archive, &at).with_context(|| format!("link {}", archive.display()))?;
            }
        }
        Ok(Self { folder })
    }

    /// Adds files, in a folder of this name.
    pub fn add(&self, name: &str, files: &[PathBuf]) -> Result<()> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for file in files {
            let at = folder.join(file.file_name().context("a file without a name")?);
            fs::copy(file, &at).with_context(|| format!("copy {}", file.display()))?;
        }
        Ok(())
    }
}

/// Everything but the images.
fn fill(workspace: &Workspace, capsules: &Path, criu: &Path, folder: &Path) -> Result<()> {
    remove_tree(folder)?;
    for part in ["bin", "images"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
    }
    for name in PROGRAMS.into_iter().chain([SUITE]) {
        let from = workspace.program(name);
        if !from.exists() && name == SUITE {
            continue;
        }
        if !from.exists() {
            bail!("{} is not built: run `make build`", from.display());
        }
        fs::copy(&from, folder.join("bin").join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    criu::write_program(&folder.join("bin"))?;
    let configs = workspace.source("configs");
    for (from, name) in [(capsules, "capsules"), (criu, "criu"), (configs.as_path(), "configs")] {
        output_of(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(folder.join(name)))?;
    }
    Ok(())
}

/// Removes the payloads of processes that are gone.
fn sweep(payloads: &Path) -> Result<()> {
    for entry in fs::read_dir(payloads).with_context(|| format!("read {}", payloads.display()))? {
        let path = entry.with_context(|| format!("read {}", payloads.display()))?.path();
        let pid = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            remove_tree(&path)?;
        }
    }
    Ok(())
}
