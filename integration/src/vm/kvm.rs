//! Whether KVM can boot this kernel. The device node alone says little: nested KVM that lacks what the guest's
//! kernel needs lets it die early, and qemu waits for ever.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::rootfs::kernel;
use crate::workspace::{Workspace, hex};

/// A kernel with no root file system says this at the end of a boot that went well.
const BOOTED: &str = "Unable to mount root fs";
const LIMIT: Duration = Duration::from_secs(10);

/// Boots the kernel under KVM with nothing to mount, once per kernel and host kernel; the answer is kept.
pub fn works(workspace: &Workspace, rootfs: &Path) -> Result<bool> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let (kernel, _) = kernel(rootfs)?;
    let host = rustix::system::uname();
    let key = format!("{} {:?} {:?}", kernel.display(), host.release(), host.version());
    let hash = hex(&Sha256::digest(key.as_bytes()));
    let _lock = workspace.lock("kvm")?;
    let answer = workspace.target("kvm")?.join(hash);
    if let Ok(known) = fs::read_to_string(&answer) {
        return Ok(known == "works");
    }
    let works = boots(workspace, &kernel)?;
    fs::write(&answer, if works { "works" } else { "fails" }).context("keep the answer about KVM")?;
    Ok(works)
}

fn boots(workspace: &Workspace, kernel: &Path) -> Result<bool> {
    let mut qemu = Command::new(workspace.testbed())
        .args(["leash", "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults"])
        .args(["-display", "none", "-monitor", "none", "-no-reboot", "-serial", "file:/dev/stdout"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start qemu to try KVM")?;
    let mut out = qemu.stdout.take().context("qemu has no output")?;
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = out.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).contains(BOOTED));
    });
    let works = ended.recv_timeout(LIMIT).unwrap_or(false);
    qemu.kill().context("end qemu")?;
    qemu.wait().context("wait for qemu")?;
    Ok(works)
}
