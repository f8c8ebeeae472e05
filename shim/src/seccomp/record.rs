//! A runtime's record of a container, and the copy of it in which the container's filter denies more.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;
use thiserror::Error;

use super::{Denied, ProfileError, ProgramError, profile::narrow_state, program};
use crate::bundle::{BundleError, write_private};

/// runc's, and with it all that is built on libcontainer.
const STATE: &str = "state.json";
/// crun's; the last is there where the container has a filter.
const STATUS: &str = "status";
const CONFIG: &str = "config.json";
const PROGRAM: &str = "seccomp.bpf";

/// Why processes cannot be given more denials than their container has.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The runtime is none that is known.
    #[error(
        "its runtime's record of it at {0} is of no form that is known here: capsules that deny system calls need runc or crun"
    )]
    Unknown(PathBuf),
    /// The record cannot be read or copied.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The copy cannot be written.
    #[error(transparent)]
    Write(#[from] BundleError),
    /// Its filter is of no form that is known.
    #[error("the filter of {path} cannot be narrowed")]
    Profile {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        source: ProfileError,
    },
    /// Likewise.
    #[error("the filter of {path} cannot be narrowed")]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong.
        source: ProgramError,
    },
}

/// The files of a record in which the filter also denies these calls, by their names.
fn narrow(record: &Path, denied: &Denied) -> Result<Vec<(&'static str, Vec<u8>)>, RecordError> {
    let unknown = || RecordError::Unknown(record.to_owned());
    let read = |name| optional(fs::read(record.join(name))).map_err(|e| failed("read", record.join(name), e));
    if let Some(json) = read(STATE)? {
        let mut state: Value = serde_json::from_slice(&json).map_err(|_| unknown())?;
        // Others have a file of this name with the specification's state in it.
        if !state["config"].is_object() {
            return Err(unknown());
        }
        let wrong = |source| RecordError::Profile { path: record.join(STATE), source };
        narrow_state(&mut state, denied).map_err(wrong)?;
        return Ok(vec![(STATE, state.to_string().into_bytes())]);
    }
    let (Some(status), Some(config)) = (read(STATUS)?, read(CONFIG)?) else { return Err(unknown()) };
    let wrong = |source| RecordError::Program { path: record.join(PROGRAM), source };
    let program = program::narrow(read(PROGRAM)?.as_deref(), denied).map_err(wrong)?;
    Ok(vec![(STATUS, status), (CONFIG, config), (PROGRAM, program)])
}

/// Whether processes can be given these denials in the container that the runtime has this record of.
///
/// # Errors
/// [`RecordError`].
pub fn check(record: &Path, denied: &Denied) -> Result<(), RecordError> {
    narrow(record, denied).map(drop)
}

/// A copy of a runtime's record, for one process; removed when dropped. Accessible to root alone.
#[derive(Debug)]
pub struct Narrowed(PathBuf);

impl Narrowed {
    /// Copies `record`, a directory of the container's name, into a new directory at `root`, where the filter also denies these
    /// calls. What is at `root` is replaced: a shim that was killed has left it.
    ///
    /// # Errors
    /// [`RecordError`]; then nothing is left.
    pub fn copy(record: &Path, root: PathBuf, denied: &Denied) -> Result<Self, RecordError> {
        let files = narrow(record, denied)?;
        optional(fs::remove_dir_all(&root)).map_err(|e| failed("remove", root.clone(), e))?;
        let copy = Self(root);
        let own = copy.0.join(record.file_name().unwrap_or_default());
        for directory in [&copy.0, &own] {
            DirBuilder::new()
                .mode(0o700)
                .create(directory)
                .map_err(|e| failed("make", directory.clone(), e))?;
        }
        for (name, content) in files {
            write_private(&own.join(name), &content)?;
        }
        Ok(copy)
    }

    /// What the runtime is to take for the directory of its records.
    pub fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Narrowed {
    fn drop(&mut self) {
        if let Err(error) = optional(fs::remove_dir_all(&self.0)) {
            // It goes with the bundle, and the next of its name takes its place.
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Nothing for what is not there.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn failed(what: &'static str, path: PathBuf, source: io::Error) -> RecordError {
    RecordError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::denied;
    use super::*;

    fn record(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        for (name, content) in files {
            fs::write(dir.path().join("c").join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn a_copy_denies_and_the_record_stays() {
        let calls = denied(&["mount"]);
        for (files, name) in [
            (&[("state.json", r#"{"config":{"seccomp":null}}"#)][..], "state.json"),
            (&[("status", "{}"), ("config.json", "{}")], "seccomp.bpf"),
            (&[("status", "{}"), ("config.json", "{}"), ("seccomp.bpf", "01234567")], "seccomp.bpf"),
        ] {
            let dir = record(files);
            let root = dir.path().join("copy");
            // Left by a shim that was killed.
            fs::create_dir(&root).unwrap();
            fs::write(root.join("left"), "").unwrap();
            let copy = Narrowed::copy(&dir.path().join("c"), root.clone(), &calls).unwrap();
            let made = copy.root().join("c").join(name);
            let mode = fs::metadata(&made).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode, root.join("left").exists()), (0o600, false));
            for (name, content) in files {
                assert_eq!(fs::read_to_string(dir.path().join("c").join(name)).unwrap(), *content);
            }
            assert_ne!(fs::read(&made).unwrap(), files.last().unwrap().1.as_bytes());
            drop(copy);
            assert!(!root.exists());
        }
    }

    #[test]
    fn what_no_known_runtime_wrote_is_refused_and_leaves_nothing() {
        for files in [
            &[][..],
            &[("state.json", "{")],
            &[("state.json", r#"{"ociVersion":"1.0.2"}"#), ("status", "{}"), ("config.json", "{}")],
            &[("status", "{}")],
            &[("status", "{}"), ("config.json", "{}"), ("seccomp.bpf", "0123")],
            &[("state.json", r#"{"config":{"seccomp":1}}"#)],
            &[("state.json", r#"{"config":{}}"#)],
        ] {
            let dir = record(files);
            assert!(check(&dir.path().join("c"), &denied(&["mount"])).is_err(), "{files:?}");
            let root = dir.path().join("copy");
            let error = Narrowed::copy(&dir.path().join("c"), root.clone(), &denied(&["mount"])).unwrap_err();
            assert!(!root.exists(), "{error}");
        }
    }
}
