//! criu for machines: the checkpoint program that runc drives. forky has no package of it, trixie's runs on its kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of, remove_tree};

/// The newest release that has it.
const SUITE: Suite = Suite::Trixie;
/// What of the package and of what it depends on is kept: the program is started by its own loader, with its own
/// libraries, whatever the machine has.
const PARTS: [&str; 3] = ["usr/sbin/criu", "usr/lib/x86_64-linux-gnu", "usr/lib64/ld-linux-x86-64.so.2"];
/// Where machines have it.
const AT: &str = "/payload/criu";

/// The folder with criu and its libraries.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let recipe = format!("{SUITE} {PARTS:?} {}", include_str!("criu.rs"));
    workspace.cached("criu", SUITE.name(), &recipe, |folder| {
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let tree = scratch.join("tree");
        let mut command = rootfs::mmdebstrap(keyring.as_deref());
        command.args(["--variant=extract", "--include=criu", SUITE.name()]).arg(&tree);
        output_of(&mut command).context("fetch criu")?;
        for part in PARTS {
            let (from, to) = (tree.join(part), folder.join(part));
            let parent = to.parent().context("a part without parent")?;
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            if !from.exists() {
                bail!("criu's package lacks {part}");
            }
            output_of(Command::new("cp").arg("-a").arg(&from).arg(&to))?;
        }
        remove_tree(&scratch)
    })
}

/// Writes the program `criu` to the folder of a machine's programs.
pub fn write_program(bin: &Path) -> Result<()> {
    let [program, libraries, loader] = PARTS.map(|part| format!("{AT}/{part}"));
    let path = bin.join("criu");
    let script = format!("#!/bin/sh\nexec {loader} --library-path {libraries} {program} \"$@\"\n");
    fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&path, mode).with_context(|| format!("chmod {}", path.display()))
}
