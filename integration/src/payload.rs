//! What a machine is given as `/payload`: `bin/` (the build that is tested), `configs/` (as users get them),
//! `images/`, `capsules/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of, remove_tree};
use crate::{capsules, images};

/// The programs of the workspace that a machine is given.
const PROGRAMS: [&str; 4] = ["capsule-testbed", "capsuled", "containerd-shim-capsule-v1", "capsulectl"];

/// The image every test container is made from.
pub const IMAGE: &str = "localhost/busybox:latest";

/// The payload of the build that is tested.
#[derive(Debug, Clone)]
pub struct Payload {
    /// On the host.
    pub folder: PathBuf,
}

impl Payload {
    /// Puts the payload together. Programs are copied each time, the rest is made once.
    pub fn ready(workspace: &Workspace) -> Result<Self> {
        let capsules = capsules::ready(workspace)?;
        let image = busybox_image(workspace)?;
        let _lock = workspace.lock("payload")?;
        let folder = workspace.target("payload")?.join(std::process::id().to_string());
        if folder.exists() {
            return Ok(Self { folder });
        }
        sweep(folder.parent().context("the payload has no parent folder")?)?;
        let making = folder.with_extension("part");
        remove_tree(&making)?;
        let bin = making.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        for name in PROGRAMS {
            let from = workspace.program(name);
            if !from.exists() {
                bail!("{} is not built: run `make build`", from.display());
            }
            fs::copy(&from, bin.join(name)).with_context(|| format!("copy {}", from.display()))?;
        }
        let configs = workspace.source("configs");
        for (from, name) in [(&capsules, "capsules"), (&image, "images"), (&configs, "configs")] {
            output_of(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(making.join(name)))?;
        }
        fs::rename(&making, &folder).with_context(|| format!("rename {}", making.display()))?;
        Ok(Self { folder })
    }
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

fn busybox_image(workspace: &Workspace) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let busybox = rootfs.join("usr/bin/busybox");
    let source = workspace.source("integration/src/bin/capsule-reader.rs");
    let text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
    let recipe = format!("{IMAGE} {} {text} {}", rootfs.display(), include_str!("images.rs"));
    workspace.cached("images", "busybox", &recipe, |folder| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let reader = folder.join("capsule-reader");
        // Static: it runs where no libc is.
        output_of(
            Command::new("rustc")
                .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
                .arg(&reader)
                .arg(&source),
        )?;
        let applets = output_of(Command::new(&busybox).arg("--list"))?;
        let tree = images::busybox(&busybox, &applets, &reader)?;
        images::write_image(&folder.join("busybox.tar"), IMAGE, &tree)
    })
}
