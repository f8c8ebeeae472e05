//! The files by which capsuled finds the shim of a container, `/run/capsule/tasks/NAMESPACE/CONTAINER.json`, and by which
//! the shim knows what to ask of capsuled, `/run/capsule/kept/NAMESPACE/CONTAINER`.
//!
//! Directories are 0700 and files 0600; a file appears whole, by rename, and is gone before the container is.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::bundle::{BundleError, write_private};

/// Everything at run time that is Resource Capsules' own.
pub const RUN: &str = "/run/capsule";

/// A registration that could not be written or removed.
#[derive(Debug, Error)]
pub enum RegistrationError {
    /// The directory.
    #[error("cannot create {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// The file's content.
    #[error("cannot write the registration")]
    Write(#[source] BundleError),
    /// The rename that makes it visible.
    #[error("cannot publish {}", .0.display())]
    Publish(PathBuf, #[source] io::Error),
    /// The removal.
    #[error("cannot remove {}", .0.display())]
    Remove(PathBuf, #[source] io::Error),
}

#[derive(Serialize)]
struct Record<'a> {
    version: u32,
    address: &'a Path,
    bundle: &'a Path,
    shim_pid: u32,
}

/// Where a group's hot-plug service listens: one socket per shim.
pub fn hotplug_socket(containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{containerd}/{namespace}/{group}"));
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Path::new(RUN).join("s").join(name + ".sock")
}

fn path(run: &Path, namespace: &str, id: &str) -> PathBuf {
    run.join("tasks").join(namespace).join(format!("{id}.json"))
}

/// Says that this process serves the container, whose hot-plug service listens at `address`.
///
/// # Errors
/// [`RegistrationError`], by step.
pub fn register(
    run: &Path,
    namespace: &str,
    id: &str,
    address: &Path,
    bundle: &Path,
) -> Result<(), RegistrationError> {
    let path = path(run, namespace, id);
    let dir = path.parent().unwrap_or(run);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| RegistrationError::Directory(dir.to_owned(), e))?;
    let record = Record { version: 1, address, bundle, shim_pid: std::process::id() };
    let temporary = dir.join(format!(".{id}.tmp"));
    let json = serde_json::to_vec(&record)
        .map_err(|e| RegistrationError::Write(BundleError::Json(temporary.clone(), e)))?;
    write_private(&temporary, &json).map_err(RegistrationError::Write)?;
    fs::rename(&temporary, &path).map_err(|e| RegistrationError::Publish(path, e))
}

/// Takes the registration back. Not an error when there is none.
///
/// # Errors
/// When the file is there and stays.
pub fn unregister(run: &Path, namespace: &str, id: &str) -> Result<(), RegistrationError> {
    let path = path(run, namespace, id);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RegistrationError::Remove(path, e)),
        _ => Ok(()),
    }
}

/// Whether capsuled has records of what an earlier task of the container had attached. It writes this file before the
/// first of them, and takes it away after the last.
pub fn has_kept(run: &Path, namespace: &str, id: &str) -> bool {
    run.join("kept").join(namespace).join(id).exists()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_registration_is_private_whole_and_removable() {
        let run = tempfile::tempdir().unwrap();
        let socket = hotplug_socket("/run/containerd/containerd.sock", "default", "c1");
        register(run.path(), "default", "c1", &socket, Path::new("/b")).unwrap();
        let file = run.path().join("tasks/default/c1.json");
        let record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let expected = serde_json::json!({
            "version": 1, "address": socket, "bundle": "/b", "shim_pid": std::process::id(),
        });
        assert_eq!(record, expected);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        unregister(run.path(), "default", "c1").unwrap();
        unregister(run.path(), "default", "c1").unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn sockets_differ_by_containerd_namespace_and_group() {
        let socket = hotplug_socket("/a.sock", "default", "c1");
        assert_eq!(socket.parent(), Some(Path::new("/run/capsule/s")));
        assert_eq!(socket.file_name().unwrap().len(), "0123456789abcdef.sock".len());
        for (containerd, namespace, group) in
            [("/b.sock", "default", "c1"), ("/a.sock", "k8s.io", "c1"), ("/a.sock", "default", "c2")]
        {
            assert_ne!(hotplug_socket(containerd, namespace, group), socket);
        }
    }
}
