//! Debian's Go, for programs that Debian has no package of, or none that is new enough.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::rootfs::{self, Suite};
use crate::workspace::output_of;

/// Debian's Go, unpacked and not installed.
#[derive(Debug)]
pub struct Go {
    scratch: PathBuf,
    /// Its root, in which `bin/go` is.
    root: PathBuf,
}

impl Go {
    /// That of a release, into `scratch`, where all that it makes will be too. `keyring` is none where the host's own knows
    /// the release.
    pub fn fetch(suite: Suite, scratch: &Path, keyring: Option<&Path>) -> Result<Self> {
        let tree = scratch.join("go");
        let mut command = rootfs::mmdebstrap(keyring);
        command.args(["--variant=extract", "--include=golang-go", suite.name()]).arg(&tree);
        output_of(&mut command).context("fetch Debian's Go")?;
        let program = fs::read_link(tree.join("usr/bin/go")).context("Debian's Go has no program")?;
        // As `../lib/go-1.24/bin/go`.
        let root = program.parent().and_then(Path::parent).context("the Go program's folder")?;
        Ok(Self { scratch: scratch.to_owned(), root: tree.join("usr/bin").join(root) })
    }

    /// A run of the program. It is linked statically, as its compiler is: whatever the host has.
    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.root.join("bin/go"));
        command.current_dir(folder).env("GOROOT", &self.root).env("GOPATH", self.scratch.join("path"));
        command.env("GOCACHE", self.scratch.join("cache")).env("GOTOOLCHAIN", "local");
        command.env("GOFLAGS", "-trimpath -buildvcs=false -modcacherw").env("CGO_ENABLED", "0");
        command
    }
}
