//! Debian root file systems: one tree serves a native machine (below an overlay) and a VM (as a disk image).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, str};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{Workspace, output_of, remove_tree};

/// A Debian release whose containerd the project supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// containerd 2.1.
    Forky,
    /// containerd 1.7.
    Trixie,
}

impl Suite {
    /// Its name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forky => "forky",
            Self::Trixie => "trixie",
        }
    }

    fn packages(self) -> String {
        match self {
            Self::Forky => format!("{PACKAGES},{DOCKER}"),
            Self::Trixie => PACKAGES.to_owned(),
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const PACKAGES: &str = "busybox-static,containerd,crun,dbus,docker-registry,e2fsprogs,erofs-utils,fuse-overlayfs,fuse3,iproute2,kmod,\
                        linux-image-amd64,procps,runc,strace,systemd-sysv,udev,zstd";

/// In forky alone: Debian's older Docker is none that has its images in containerd as today's has.
const DOCKER: &str = "docker-cli,docker.io";

/// Read by nobody in a machine, and a third of the tree.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"];

/// The machine's own daemons would be in the way of the private ones.
const MASKED: [&str; 4] =
    ["containerd.service", "docker-registry.service", "docker.service", "docker.socket"];

const UNIT: &str = include_str!("../units/capsule-testbed.service");

/// The suites whose own keyring package is fetched, one with the keys of the one before, when the host's keyring is
/// too old to know the keys of the newest.
const KEYRING_CHAIN: [&str; 2] = ["bookworm", "trixie"];

/// The root file system of `suite`; built on first use, about a minute.
pub fn ready(workspace: &Workspace, suite: Suite) -> Result<PathBuf> {
    let recipe = format!("{suite} {} {LEFT_OUT:?} {UNIT} {MASKED:?}", suite.packages());
    workspace.cached("rootfs", suite.name(), &recipe, |tree| build(suite, tree))
}

fn build(suite: Suite, tree: &Path) -> Result<()> {
    let scratch = tree.with_extension("keyring");
    remove_tree(&scratch)?;
    let keyring = keyring(&scratch)?;
    let mut command = mmdebstrap(keyring.as_deref());
    command.args(["--variant=minbase", "--include", &suite.packages()]);
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    output_of(command.args([suite.name()]).arg(tree))?;
    remove_tree(&scratch)?;
    finish(tree)
}

/// mmdebstrap finds a mirror by itself, and apt inside checks every signature.
pub(crate) fn mmdebstrap(keyring: Option<&Path>) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--quiet", "--format=directory", "--components=main"]);
    // The machine's mirror may be a snapshot whose index has expired; its signature is checked all the same.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    if let Some(keyring) = keyring {
        command.arg("--keyring").arg(keyring);
    }
    command
}

/// A keyring that knows the newest suites: none when the host's own does.
pub(crate) fn keyring(scratch: &Path) -> Result<Option<PathBuf>> {
    const HOST: &str = "/usr/share/keyrings";
    const NEWEST: &str = "debian-archive-trixie-automatic.gpg";
    if Path::new(HOST).join(NEWEST).exists() {
        return Ok(None);
    }
    if !Path::new(HOST).join("debian-archive-keyring.gpg").exists() {
        bail!("the keys of the Debian archive are missing: install debian-archive-keyring");
    }
    let mut known: Option<PathBuf> = None;
    for suite in KEYRING_CHAIN {
        let tree = scratch.join(suite);
        fs::create_dir_all(scratch).with_context(|| format!("create {}", scratch.display()))?;
        let mut command = mmdebstrap(known.as_deref());
        command.args(["--variant=extract", "--include=debian-archive-keyring", suite]).arg(&tree);
        output_of(&mut command).with_context(|| format!("fetch the archive keys of {suite}"))?;
        known = Some(tree.join("usr/share/keyrings/debian-archive-keyring.gpg"));
        if tree.join("usr/share/keyrings").join(NEWEST).exists() {
            break;
        }
    }
    Ok(known)
}

/// What a machine needs beyond the packages: mount points, the VM's unit, and no first-boot work.
fn finish(tree: &Path) -> Result<()> {
    for folder in ["payload", "etc/capsule", "var/lib/containerd", "var/lib/capsule", "logs"] {
        fs::create_dir_all(tree.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    let machine_id = "c0ffee00c0ffee00c0ffee00c0ffee00\n";
    for (file, content) in [
        ("etc/systemd/system/capsule-testbed.service", UNIT),
        ("etc/machine-id", machine_id),
        ("etc/hostname", "testbed\n"),
        ("etc/fstab", "tmpfs /tmp tmpfs mode=1777 0 0\n"),
        ("etc/.updated", ""),
        ("var/.updated", ""),
    ] {
        let path = tree.join(file);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    for unit in MASKED {
        let masked = tree.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &masked).with_context(|| format!("mask {}", masked.display()))?;
    }
    Ok(())
}

/// The kernel and the initial RAM disk of a tree.
pub fn kernel(tree: &Path) -> Result<(PathBuf, PathBuf)> {
    let boot = tree.join("boot");
    let find = |prefix: &str| -> Result<PathBuf> {
        let entries = fs::read_dir(&boot).with_context(|| format!("read {}", boot.display()))?;
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
            })
            .with_context(|| format!("no {prefix}* in {}", boot.display()))
    };
    Ok((find("vmlinuz-")?, find("initrd.img-")?))
}
