//! Where things are on the host: everything the test bed makes is below the workspace's `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Names the folder of the programs to test, where they are of another build than the tests.
const PROGRAMS: &str = "CAPSULE_PROGRAMS";

/// The workspace on the host, and the programs of the build that is being tested.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    programs: PathBuf,
    /// Programs of another build, by name.
    others: Vec<(String, PathBuf)>,
}

impl Workspace {
    /// The workspace this was compiled in, with the programs that lie beside `testbed`, the test bed's own binary,
    /// or in the folder that the environment's `CAPSULE_PROGRAMS` names.
    pub fn of(testbed: &Path) -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
        let programs = testbed.parent().with_context(|| format!("{} has no folder", testbed.display()))?;
        let programs = std::env::var_os(PROGRAMS).map_or_else(|| programs.to_owned(), PathBuf::from);
        Ok(Self { root: root.to_owned(), programs, others: Vec::new() })
    }

    /// The test bed's own binary.
    pub fn testbed(&self) -> PathBuf {
        self.programs.join("capsule-testbed")
    }

    /// The same with the program `name` as users get it: of the profile `release`.
    pub fn with_released(mut self, name: &str) -> Self {
        let path = self.root.join("target/release").join(name);
        self.others.push((name.to_owned(), path));
        self
    }

    /// A program of the build that is being tested.
    pub fn program(&self, name: &str) -> PathBuf {
        let other = self.others.iter().find(|(known, _)| known == name);
        other.map_or_else(|| self.programs.join(name), |(_, path)| path.clone())
    }

    /// A file of the sources.
    pub fn source(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A folder below `target/`, made if it is not there.
    pub fn target(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("target").join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Waits until no other process of the workspace makes `what`; free again when the file is dropped.
    pub fn lock(&self, what: &str) -> Result<File> {
        let path = self.target("lock")?.join(what);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// The folder of the cache `kind` for `recipe`: made by `make` when it is not there, whole or not at all.
    ///
    /// `make` is given a temporary folder, which is renamed when it has succeeded.
    pub fn cached(
        &self,
        kind: &str,
        name: &str,
        recipe: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let hash = hex(&Sha256::digest(recipe.as_bytes()));
        let hash = hash.get(..12).unwrap_or(&hash);
        let path = self.target(kind)?.join(format!("{name}-{hash}"));
        let _lock = self.lock(&format!("{kind}-{name}"))?;
        if path.exists() {
            return Ok(path);
        }
        let making = path.with_extension("part");
        remove_tree(&making)?;
        make(&making).with_context(|| format!("make {}", path.display()))?;
        fs::rename(&making, &path).with_context(|| format!("rename {}", making.display()))?;
        Ok(path)
    }
}

/// Removes a tree if it is there.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fails, saying why, unless this process may make namespaces and mounts.
pub fn require_root(purpose: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{purpose} makes namespaces and mounts, which needs root: run it as root");
    }
    Ok(())
}

/// Runs a command to its end with no input; its standard output, or an error with what it wrote to standard error.
pub fn output_of(command: &mut std::process::Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output =
        command.stdin(std::process::Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = stderr.trim().lines().rev().take(8).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{shown}: {}: {}", output.status, tail.join(" | "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
