//! What the VM's kernel starts with: its modules, busybox, the programs, and a script that brings it to the root file
//! system in seconds, without systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::machine::Work;
use crate::images::Image;
use crate::workspace::Workspace;

const MODULES: [&str; 5] = ["virtio_blk", "ext4", "xfs", "overlay", "loop"];
const PROGRAMS: [&str; 2] = ["capsuled", "capsule-testbed"];
/// What containers need, too.
const OF_CONTAINERS: [&str; 2] = ["capsulectl", "containerd-shim-capsule-v1"];

/// /dev/vda is the root file system; what is written to it is dropped with the VM.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module || exit 1; done
$b mount -t ext4 /dev/vda /root || exit 1
for at in proc dev; do $b mount -o move /$at /root/$at; done
$b mount -t sysfs sys /root/sys
for at in run tmp payload; do $b mount -t tmpfs tmp /root/$at; done
for at in bin configs images; do $b cp -r /$at /root/payload/$at; done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec $b switch_root /root /payload/bin/capsule-testbed power-guest
";

/// Writes the archive for the kernel of `rootfs`.
pub fn write(workspace: &Workspace, rootfs: &Path, path: &Path, work: Work) -> Result<()> {
    let busybox = rootfs.join("usr/bin/busybox");
    let mut archive = Archive::default();
    for folder in ["bin", "configs", "dev", "images", "modules", "proc", "root"] {
        archive.add(folder, 0o40755, &[])?;
    }
    archive.add("init", 0o100_755, INIT.as_bytes())?;
    archive.add("bin/busybox", 0o100_755, &read(&busybox)?)?;
    for name in PROGRAMS {
        archive.add(&format!("bin/{name}"), 0o100_755, &read(&workspace.program(name))?)?;
    }
    if work == Work::Attachments {
        for name in OF_CONTAINERS {
            archive.add(&format!("bin/{name}"), 0o100_755, &read(&workspace.program(name))?)?;
        }
        for name in ["config.toml", "containerd-2.toml"] {
            let content = read(&workspace.source("configs").join(name))?;
            archive.add(&format!("configs/{name}"), 0o100_644, &content)?;
        }
        let image = Image::Busybox;
        archive.add(&format!("images/{}", image.file()), 0o100_644, &read(&image.ready(workspace)?)?)?;
    }
    for (at, module) in modules(rootfs)?.iter().enumerate() {
        let name = format!("modules/{at:02}");
        archive.add(&name, 0o100_644, &read_module(&busybox, module)?)?;
    }
    archive.add("TRAILER!!!", 0, &[])?;
    fs::write(path, archive.bytes).with_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The files of [`MODULES`] and of what they need, in the order in which they load.
fn modules(rootfs: &Path) -> Result<Vec<PathBuf>> {
    let all = rootfs.join("lib/modules");
    let version = fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?.next();
    let folder = version.with_context(|| format!("{} is empty", all.display()))?.context("read")?.path();
    let index = folder.join("modules.dep");
    let index = fs::read_to_string(&index).with_context(|| format!("read {}", index.display()))?;
    let mut files = Vec::new();
    for name in MODULES {
        // `PATH: NEEDED...`, what is needed first comes last. A module that is not there is part of the kernel.
        let line = index.lines().filter_map(|line| line.split_once(':'));
        let found = line
            .into_iter()
            .find(|(path, _)| path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(name));
        if let Some((path, needed)) = found {
            for file in needed.split_ascii_whitespace().rev().chain([path]).map(|file| folder.join(file)) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
    }
    Ok(files)
}

fn read_module(busybox: &Path, module: &Path) -> Result<Vec<u8>> {
    let applet = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        Some("ko") => return read(module),
        _ => bail!("{} is packed in a way that is not known here", module.display()),
    };
    let mut command = Command::new(busybox);
    let output = command.arg(applet).arg(module).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {}", busybox.display()))?;
    ensure!(output.status.success(), "unpack {}: {}", module.display(), output.status);
    Ok(output.stdout)
}

/// A cpio archive of the format `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entries += 1;
        let (size, name_size) = (u32::try_from(data.len())?, u32::try_from(name.len() + 1)?);
        let mut header = String::from("070701");
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        for part in [header.as_bytes(), name.as_bytes(), &[0]] {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        Ok(())
    }
}
