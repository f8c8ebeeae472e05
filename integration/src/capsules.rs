//! Real input: `tzdata` of two Debian releases, and a tree of debugging tools with the libraries they need.
//!
//! Everything is fetched by apt's client with its checks on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::Apt;
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of, remove_tree};

/// The releases whose tzdata is used. The main archive of a release that is no longer updated keeps what it had.
const TZDATA_OF: [&str; 2] = ["bullseye", "forky"];
/// The tools a person wants in a container that has none.
const TOOLS: &str = "strace,procps";

/// The folder with the capsule trees: `tzdata-VERSION` (two) and `debug-tools`.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let recipe = format!("{TZDATA_OF:?} {TOOLS} {} {}", rootfs.display(), include_str!("capsules.rs"));
    workspace.cached("capsules", "trees", &recipe, |folder| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        for suite in TZDATA_OF {
            let apt = Apt::of(&rootfs, suite, keyring.as_deref(), &scratch.join(suite))?;
            let package = apt.download("tzdata")?;
            add_tzdata(&package, &scratch.join(suite), folder)?;
        }
        add_tools(keyring.as_deref(), &scratch.join("tools"), &folder.join("debug-tools"))?;
        remove_tree(&scratch)
    })
}

/// The zone files of a tzdata package as the tree `tzdata-VERSION`, with the version as semver: 2024a is 2024.1.0.
fn add_tzdata(package: &Path, scratch: &Path, folder: &Path) -> Result<()> {
    let unpacked = scratch.join("unpacked");
    output_of(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked))?;
    let zones = unpacked.join("usr/share/zoneinfo");
    let release = fs::read_to_string(zones.join("tzdata.zi")).context("read the release of tzdata")?;
    let version = semver_of(release.lines().next().unwrap_or_default())?;
    let tree = folder.join(format!("tzdata-{version}"));
    fs::rename(&zones, &tree).with_context(|| format!("rename {}", zones.display()))
}

/// `# version 2024a` → `2024.1.0`.
fn semver_of(first_line: &str) -> Result<String> {
    let release = first_line.strip_prefix("# version ").context("tzdata.zi names no version")?;
    let (year, letter) = release.split_at_checked(4).context("tzdata's release is too short")?;
    match letter.as_bytes() {
        [letter @ b'a'..=b'z', ..] if year.bytes().all(|digit| digit.is_ascii_digit()) => {
            Ok(format!("{year}.{}.0", letter - b'a' + 1))
        }
        _ => bail!("{release:?} is no release of tzdata"),
    }
}

/// The tools and all they depend on, as apt resolves it, with only what they need to run.
fn add_tools(keyring: Option<&Path>, scratch: &Path, tree: &Path) -> Result<()> {
    let mut command = rootfs::mmdebstrap(keyring);
    command.args(["--variant=extract", "--include", TOOLS, Suite::Forky.name()]).arg(scratch);
    output_of(&mut command).context("fetch the debugging tools")?;
    for part in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64"] {
        let (from, to) = (scratch.join(part), tree.join(part));
        let parent = to.parent().context("a part without parent")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        if from.exists() {
            output_of(Command::new("cp").arg("-a").arg(&from).arg(&to))?;
        }
    }
    for needed in ["usr/bin/strace", "usr/bin/ps", "usr/lib64/ld-linux-x86-64.so.2"] {
        if !tree.join(needed).exists() {
            bail!("the debugging tools lack {needed}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_become_versions_that_sort() {
        for (line, version) in [
            ("# version 2024a", Some("2024.1.0")),
            ("# version 2026f-dirty", Some("2026.6.0")),
            ("# version 20", None),
            ("# 2024a", None),
            ("# version 2024", None),
            ("# version abcda", None),
        ] {
            assert_eq!(semver_of(line).ok().as_deref(), version, "{line}");
        }
    }
}
