//! Unix sockets that are served, each for root alone.
//!
//! A socket is bound by another name, given its mode, and then renamed: who finds it can connect, and nobody else could before. The other
//! name begins with a dot, which the kubelet's watcher of plugins passes over.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use tokio::net::{UnixListener, UnixStream};

/// A socket whose file goes when this is dropped.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Gone already: nobody misses it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, in place of what a process left there that is gone.
///
/// # Errors
/// Somebody listens there; something else than a socket is there; it cannot be made.
pub async fn listen(path: &Path) -> anyhow::Result<(UnixListener, Served)> {
    let name = path.file_name().with_context(|| format!("{}: not the path of a socket", path.display()))?;
    free(path).await?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let hidden = path.with_file_name(hidden);
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", hidden.display()));
        }
        _ => (),
    }
    let listener = UnixListener::bind(&hidden).with_context(|| format!("listen on {}", hidden.display()))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", hidden.display()))?;
    fs::rename(&hidden, path)
        .with_context(|| format!("rename {} to {}", hidden.display(), path.display()))?;
    Ok((listener, Served { path: path.to_owned() }))
}

async fn free(path: &Path) -> anyhow::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.with_context(|| format!("look at {}", path.display()))?.file_type(),
    };
    if !kind.is_socket() {
        bail!("{} is there and is no socket: remove it", path.display());
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another process serves {}: end it, or serve another path", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look who serves {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "it is left behind");
        let (listener, served) = listen(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        connected.and(accepted.map(drop)).unwrap();
        let error = listen(&path).await.unwrap_err();
        assert!(error.to_string().contains("another process serves"), "{error}");
        UnixStream::connect(&path).await.unwrap();
        drop(served);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        fs::write(&path, "mine").unwrap();
        let error = listen(&path).await.unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let error = listen(&folder.path().join("none/csi.sock")).await.unwrap_err();
        assert!(error.to_string().contains("listen on"), "{error}");
    }
}
