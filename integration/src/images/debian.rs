//! Images of Debian packages: a layer for each package, as dpkg's own archives hold it, and a few as `RUN` lines make
//! them.
//!
//! The packages are of the stable release. Their maintainers' scripts are not run: what needs them (setting
//! capabilities, precompiling) is in layers of our own.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::layer::{self, Entry};
use super::oci::{Archive, Packed};
use super::{Image, SOURCES};
use crate::apt::Apt;
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, remove_tree};

/// What one image is made of.
#[derive(Debug)]
struct Contents {
    image: Image,
    packages: &'static [&'static str],
    packed: Packed,
    /// Layers above the packages', given the last package's layer.
    above: fn(&[u8]) -> Result<Vec<Vec<Entry>>>,
}

/// `base-files` has the links of a merged `/usr` and must be the lowest.
const BASE: &str = "base-files";

const CONTENTS: [Contents; 3] = [
    Contents {
        image: Image::Python,
        packages: &[BASE, "busybox-static", "python3"],
        packed: Packed::Plain,
        above: above_python,
    },
    // Compressed, as registries serve them.
    Contents {
        image: Image::Git,
        packages: &[BASE, "busybox-static", "git"],
        packed: Packed::Gzip,
        above: above_git,
    },
    Contents {
        image: Image::System,
        packages: &[BASE, "bash", "coreutils", "dash", "cron", "login", "mount", "sudo", "iputils-ping"],
        packed: Packed::Plain,
        above: above_system,
    },
];

/// The folder with the archives of all three.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let recipe = format!("{} {SOURCES:?}", include_str!("debian.rs"));
    workspace.cached("images", "debian", &recipe, |folder| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let suite = Suite::Trixie.name();
        let apt = Apt::of(&rootfs, suite, keyring.as_deref(), &scratch.join(suite))?;
        for contents in CONTENTS {
            contents.make(&apt, folder).with_context(|| format!("make {}", contents.image.name()))?;
        }
        remove_tree(&scratch)
    })
}

impl Contents {
    fn make(&self, apt: &Apt, folder: &Path) -> Result<()> {
        let mut packages = apt.download_all(self.packages)?;
        // Stable: the rest keeps apt's order.
        packages.sort_by_key(|package| !is(package, BASE));
        let mut archive = Archive::create(&folder.join(self.image.file()))?;
        let mut last = Vec::new();
        let wanted = self.packages.last().copied().unwrap_or_default();
        for package in &packages {
            let layer = layer_of(package)?;
            archive.layer(&layer, self.packed)?;
            if is(package, wanted) {
                last = layer;
            }
        }
        for entries in (self.above)(&last)? {
            archive.layer(&layer::archive(&entries)?, self.packed)?;
        }
        archive.finish(self.image.name())
    }
}

/// Whether a file is of this package.
fn is(file: &Path, package: &str) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split('_').next() == Some(package)
}

/// The files of a package, as the archive in it has them.
fn layer_of(package: &Path) -> Result<Vec<u8>> {
    let output = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start dpkg-deb")?;
    ensure!(output.status.success(), "dpkg-deb --fsys-tarfile {}: {}", package.display(), output.status);
    Ok(output.stdout)
}

/// What slim images do: documentation removed; and an application of another user.
fn above_python(_: &[u8]) -> Result<Vec<Vec<Entry>>> {
    let program = "import json, sys\nprint(json.dumps({'python': sys.version_info[0]}))\n";
    Ok(vec![
        without_documentation(),
        vec![
            Entry::folder("srv"),
            Entry::folder("srv/app").owner(1000, 1000),
            Entry::file("srv/app/main.py", program).owner(1000, 1000).mtime(1_750_000_000, 123_456_789),
            Entry::symlink("srv/app/current", "main.py").owner(1000, 1000),
        ],
        vec![Entry::file("srv/app/main.py", format!("{program}# patched\n")).owner(1000, 1000)],
    ])
}

/// Whole folders hidden, and one in the place of a file.
fn above_git(_: &[u8]) -> Result<Vec<Vec<Entry>>> {
    Ok(vec![
        without_documentation(),
        vec![
            Entry::folder("usr/share/git-core"),
            Entry::opaque("usr/share/git-core"),
            Entry::folder("usr/share/git-core/templates"),
            Entry::file("usr/share/git-core/templates/description", "only this\n"),
        ],
        vec![
            Entry::folder("etc/debian_version"),
            Entry::file("etc/debian_version/README", "a folder in the place of a file\n"),
            Entry::file("etc/gitconfig", ""),
        ],
    ])
}

/// What `setcap` does in the maintainer's script of `iputils-ping`, and users.
fn above_system(ping: &[u8]) -> Result<Vec<Vec<Entry>>> {
    let mut archive = tar::Archive::new(ping);
    let mut program = Vec::new();
    for member in archive.entries().context("read a package")? {
        let mut member = member.context("read a package")?;
        if member.path().is_ok_and(|path| path.ends_with("bin/ping")) {
            member.read_to_end(&mut program).context("read ping")?;
        }
    }
    ensure!(!program.is_empty(), "there is no ping in iputils-ping");
    Ok(vec![
        without_documentation(),
        vec![
            Entry::file("usr/bin/ping", program)
                .mode(0o755)
                .xattr("security.capability", super::odd::NET_RAW),
        ],
        vec![
            Entry::file(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
            ),
            Entry::file("etc/group", "root:x:0:\nshadow:x:42:\nuser:x:1000:\n"),
            Entry::file("etc/shadow", "root:*:20000::::::\nuser:*:20000::::::\n").mode(0o640).owner(0, 42),
            Entry::folder("home/user").mode(0o700).owner(1000, 1000),
        ],
    ])
}

fn without_documentation() -> Vec<Entry> {
    vec![Entry::removed("usr/share", "doc"), Entry::removed("usr/share", "man")]
}
