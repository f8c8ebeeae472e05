//! Programs of the machine: where they are, and what they say.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// A program that says what it is does so at once; a machine without a free processor takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program said.
#[derive(Debug)]
pub struct Ran {
    /// Whether its exit status is 0.
    pub ok: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// The search path of this process.
pub fn own_path() -> OsString {
    std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())
}

/// The first executable file of this name on a search path. `Err` is a file of the name that cannot be executed.
pub fn find(name: &str, path: &OsStr) -> Result<Option<PathBuf>, PathBuf> {
    let mut denied = None;
    for folder in std::env::split_paths(path) {
        let file = folder.join(name);
        match file.metadata() {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => return Ok(Some(file)),
            Ok(found) if found.is_file() => denied = denied.or(Some(file)),
            _ => {}
        }
    }
    denied.map_or(Ok(None), Err)
}

/// Runs a program to its end, with nothing on its standard input, and at most a minute.
///
/// # Errors
/// Why it did not run to its end, in words.
pub async fn run(program: &Path, args: &[&OsStr]) -> Result<Ran, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
        Err(_) => Err(format!("it has not ended within {PATIENCE:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) => Ok(Ran {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

/// What capsuled says of a configuration: its mistakes, a line each on standard error, and whether it would start with it.
///
/// # Errors
/// As [`run`].
pub async fn judged(capsuled: &Path, config: &Path) -> Result<Ran, String> {
    run(capsuled, &["--config".as_ref(), config.as_os_str(), "--check-config".as_ref()]).await
}
