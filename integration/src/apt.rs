//! Packages of a Debian release, fetched by apt's client in folders of its own, with its checks on.
//!
//! The mirror is the one that built the root file system; the host's own packages and lists are not looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::output_of;

/// The lists of one release.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Fetches the lists of `suite` into `folder`. `keyring` is none where the host's own knows the suite.
    pub fn of(rootfs: &Path, suite: &str, keyring: Option<&Path>, folder: &Path) -> Result<Self> {
        for part in
            ["state/lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/sources.d", "deb"]
        {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let keyring = keyring.unwrap_or(Path::new("/usr/share/keyrings/debian-archive-keyring.gpg"));
        let source = format!("deb [signed-by={}] {} {suite} main\n", keyring.display(), mirror(rootfs)?);
        let list = folder.join("etc/sources.list");
        fs::write(&list, source).with_context(|| format!("write {}", list.display()))?;
        fs::write(folder.join("status"), "").context("write an empty package status")?;
        let apt = Self { folder: folder.to_owned() };
        // A release that is no longer updated has an index that has expired; its signature is checked all the same.
        output_of(apt.get().args(["-o", "Acquire::Check-Valid-Until=false", "update"]))?;
        Ok(apt)
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(self.folder.join("deb")).env("LC_ALL", "C");
        command.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "APT::Install-Recommends=false"]);
        for (option, path) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc", "etc"),
            ("Dir::Etc::sourcelist", "etc/sources.list"),
            ("Dir::Etc::sourceparts", "etc/sources.d"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.folder.join(path).display()));
        }
        command
    }

    /// One package, without what it depends on.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        output_of(self.get().args(["download", package]))?;
        package_in(&self.folder.join("deb"), package)
    }

    /// Packages with all that they depend on, in the order in which apt would unpack them.
    pub fn download_all(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let plan = output_of(self.get().args(["--simulate", "install"]).args(packages))?;
        output_of(self.get().args(["--download-only", "--yes", "install"]).args(packages))?;
        let archives = self.folder.join("cache/archives");
        planned(&plan).map(|package| package_in(&archives, package)).collect()
    }
}

/// The names in lines like `Inst NAME (VERSION …)`.
fn planned(plan: &str) -> impl Iterator<Item = &str> {
    plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
}

/// The file `PACKAGE_VERSION_ARCHITECTURE.deb`.
fn package_in(folder: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let found = entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)));
    Ok(found.with_context(|| format!("apt fetched no {package}"))?.path())
}

/// The mirror the root file system came from, as its own apt knows it.
fn mirror(rootfs: &Path) -> Result<String> {
    let path = rootfs.join("etc/apt/sources.list");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let url = text
        .lines()
        .filter_map(|line| line.strip_prefix("deb "))
        .find_map(|line| line.split_ascii_whitespace().find(|word| word.contains("://")));
    Ok(url.with_context(|| format!("no mirror in {}", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_packages_in_order() {
        let plan = "Reading package lists...\nInst gcc-14-base (14.2.0 Debian:13 [amd64])\n\
                    Inst libc6 (2.41 Debian:13 [amd64]) []\nConf libc6 (2.41 Debian:13 [amd64])\n";
        assert_eq!(planned(plan).collect::<Vec<_>>(), ["gcc-14-base", "libc6"]);
    }
}
