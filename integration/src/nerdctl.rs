//! nerdctl for machines: Debian has no package of it. It is built from its module, with Debian's Go; with Debian's network
//! plugins beside it.
//!
//! Pinned as a whole: the module by its own sum below, what it is built of by the sums in it, Go by Debian's signature.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::Apt;
use crate::go::Go;
use crate::rootfs::{self, Suite};
use crate::workspace::{Workspace, output_of, remove_tree};

const MODULE: &str = "github.com/containerd/nerdctl/v2";
/// What `nerdctl --version` says, too.
pub const VERSION: &str = "v2.2.1";
/// As `go.sum` has them: of the module's files, and of its `go.mod`.
const SUMS: [&str; 2] =
    ["h1:eXBu4HddMEXtLmZsJncfvOiJ6a8DemOzWhOxypNIEG0=", "h1:Ogh1WVvN6G5GhFgGZxDeGtV0XKi1RiN44aNbJDHia4M="];
/// A module that only its tests need, and that it replaces by a folder which is not part of it; and what of its program uses it:
/// functions for tests alone.
const TESTS: (&str, [&str; 2]) =
    ("github.com/containerd/nerdctl/mod/tigron", ["testing.go", "testing_linux.go"]);

/// The release whose Go builds it: stable, and new enough.
const GO: Suite = Suite::Trixie;
/// Debian's network plugins (`bridge`, `portmap` and others), and the release of the machines that have them.
const PLUGINS: (&str, Suite) = ("containernetworking-plugins", Suite::Forky);

/// Where machines have them.
const AT: &str = "/peers";

/// Whether a scenario uses it.
pub fn needed_by(scenario: &str) -> bool {
    matches!(scenario, "nerdctl" | "docs-nerdctl")
}

/// The folder with `bin/nerdctl` and the plugins in `cni/`. Four minutes the first time.
pub fn ready(workspace: &Workspace) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, PLUGINS.1)?;
    let recipe = format!("{} {} {}", rootfs.display(), include_str!("nerdctl.rs"), include_str!("go.rs"));
    workspace.cached("nerdctl", "programs", &recipe, |folder| {
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        for part in [folder.join("bin"), scratch.clone()] {
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let go = Go::fetch(GO, &scratch, keyring.as_deref())?;
        build(&go, &scratch, &folder.join("bin/nerdctl"))?;
        let apt = Apt::of(&rootfs, PLUGINS.1.name(), keyring.as_deref(), &scratch.join("apt"))?;
        let plugins = scratch.join("plugins");
        let deb = apt.download(PLUGINS.0)?;
        output_of(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&plugins))?;
        output_of(Command::new("cp").arg("-a").arg(plugins.join("usr/lib/cni")).arg(folder.join("cni")))?;
        remove_tree(&scratch)
    })
}

/// Puts both where a machine's programs look for them.
pub fn install() -> Result<()> {
    fs::create_dir_all("/opt/cni").context("create /opt/cni")?;
    for (from, at) in [("bin/nerdctl", "/usr/local/bin/nerdctl"), ("cni", "/opt/cni/bin")] {
        symlink(Path::new(AT).join(from), at).with_context(|| format!("link {at}"))?;
    }
    Ok(())
}

/// Builds nerdctl, linked statically.
fn build(go: &Go, scratch: &Path, program: &Path) -> Result<()> {
    let source = source(go, scratch)?;
    // `go install` builds no module that replaces another one.
    let (tests, files) = TESTS;
    for file in files {
        let path = source.join("cmd/nerdctl/helpers").join(file);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let edits = [format!("-dropreplace={tests}@v0.0.0"), format!("-droprequire={tests}")];
    output_of(go.command(&source).args(["mod", "edit"]).args(edits))?;
    let named = format!("-s -w -X {MODULE}/pkg/version.Version={VERSION}");
    let mut build = go.command(&source);
    build.args(["build", "-mod=readonly", "-ldflags", &named, "-o"]).arg(program).arg("./cmd/nerdctl");
    output_of(&mut build).context("build nerdctl")?;
    let says = output_of(Command::new(program).arg("--version"))?;
    ensure!(says.contains(VERSION.trim_start_matches('v')), "nerdctl calls itself {says:?}");
    Ok(())
}

/// Its module's files, as they were when the sums were written.
fn source(go: &Go, scratch: &Path) -> Result<PathBuf> {
    let asking = scratch.join("asking");
    fs::create_dir_all(&asking).with_context(|| format!("create {}", asking.display()))?;
    let sums = format!("{MODULE} {VERSION} {}\n{MODULE} {VERSION}/go.mod {}\n", SUMS[0], SUMS[1]);
    let module = format!("module asking\n\ngo 1.24\n\nrequire {MODULE} {VERSION}\n");
    for (file, text) in [("go.mod", module), ("go.sum", sums)] {
        fs::write(asking.join(file), text).with_context(|| format!("write {file}"))?;
    }
    let told = output_of(go.command(&asking).args(["mod", "download", "-json", MODULE]))
        .context("fetch nerdctl's module")?;
    let told: serde_json::Value = serde_json::from_str(&told).context("what Go says of nerdctl's module")?;
    let folder = told["Dir"].as_str().context("Go names no folder")?;
    ensure!(told["Sum"] == SUMS[0], "nerdctl's module is another one: {told}");
    let source = scratch.join("source");
    output_of(Command::new("cp").arg("-a").arg(folder).arg(&source))?;
    Ok(source)
}
