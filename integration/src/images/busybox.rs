//! The image of the test container: busybox with its applets and `capsule-reader`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::layer::Entry;
use super::{Image, SOURCES, oci};
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of};

/// The folder with the image and `capsule-reader`.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let source = workspace.source("integration/src/bin/capsule-reader.rs");
    let text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
    let recipe = format!("{} {text} {} {SOURCES:?}", rootfs.display(), include_str!("busybox.rs"));
    let image = Image::Busybox;
    workspace.cached("images", "busybox", &recipe, |folder| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        // Static: it runs where no libc is.
        output_of(
            Command::new("rustc")
                .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
                .arg(folder.join("capsule-reader"))
                .arg(&source),
        )?;
        oci::write(&folder.join(image.file()), image.name(), &[layer(workspace, folder)?])
    })
}

/// Debian's busybox, which needs no library.
pub fn program(workspace: &Workspace) -> Result<Vec<u8>> {
    let path = path(workspace)?;
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

fn path(workspace: &Workspace) -> Result<PathBuf> {
    Ok(rootfs::ready(workspace, Suite::Forky)?.join("usr/bin/busybox"))
}

/// Its only layer, with the `capsule-reader` that lies in `folder`. `/usr` is merged as in Debian, so that a capsule of
/// Debian packages finds its dynamic linker through `/lib64`.
pub fn layer(workspace: &Workspace, folder: &Path) -> Result<Vec<Entry>> {
    let applets = output_of(Command::new(path(workspace)?).arg("--list"))?;
    let reader = folder.join("capsule-reader");
    let reader = fs::read(&reader).with_context(|| format!("read {}", reader.display()))?;
    let mut layer = Vec::new();
    for folder in ["dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var"] {
        layer.push(Entry::folder(folder));
    }
    for folder in ["usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "usr/share", "usr/share/doc"] {
        layer.push(Entry::folder(folder));
    }
    for (link, to) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")] {
        layer.push(Entry::symlink(link, to));
    }
    layer.push(Entry::file("usr/bin/busybox", program(workspace)?).mode(0o755));
    layer.push(Entry::file("usr/bin/capsule-reader", reader).mode(0o755));
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.push(Entry::symlink(format!("usr/bin/{applet}"), "busybox"));
    }
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("usr/share/doc/before", "what the image itself holds\n"),
    ] {
        layer.push(Entry::file(file, text));
    }
    Ok(layer)
}
