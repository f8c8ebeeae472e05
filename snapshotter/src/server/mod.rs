//! Serving on unix sockets: where they come from, their modes, and the drain at the end.

mod calls;
mod idle;
mod linger;

use std::{
    fs::{self, DirBuilder, Permissions},
    future::Future,
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use listenfd::ListenFd;
use rustix::net::sockopt;
use tokio::sync::oneshot;
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tonic::service::Routes;

use calls::Telling;
pub use idle::{Activity, Call};
use linger::Connections;

use crate::metrics::Meters;

/// How long calls under way may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket's directory could not be made.
    #[error("make directory {path}")]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process serves there.
    #[error("another process answers on {path}: stop that capsuled first")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is where the socket should be.
    #[error("{path} is in the way and no socket: remove it or configure another socket")]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The socket left by an earlier run could not be replaced.
    #[error("replace socket {path}")]
    Replace {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket could not be made.
    #[error("listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The service manager passed something that cannot be served on.
    #[error(
        "the service manager passed descriptor 3, which is no listening unix stream socket: see ListenStream= of capsuled.socket"
    )]
    Passed(#[source] io::Error),
    /// The service manager passed another number of sockets.
    #[error("the service manager passed {count} sockets: capsuled.socket must have one ListenStream=")]
    PassedCount {
        /// How many.
        count: usize,
    },
    /// The service manager passed a socket that clients do not look for.
    #[error(
        "the service manager passed a socket at {found}, and the configuration says {expected}: make ListenStream= of capsuled.socket and `socket` the same"
    )]
    PassedOther {
        /// Where it is bound.
        found: PathBuf,
        /// Where it should be.
        expected: PathBuf,
    },
    /// The socket cannot be waited for.
    #[error("accept connections")]
    Accept(#[source] io::Error),
    /// The server ended by itself.
    #[error("serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Listens on a unix socket that only its owner may use: mode 0600 in a directory of mode 0700. A socket on which
/// nobody answers is replaced.
///
/// # Errors
/// [`ServerError::InUse`] when somebody answers.
pub fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| ServerError::CreateDir { path: directory.to_owned(), source })?;
    }
    make_way(path)?;
    let listen_error = |source| ServerError::Listen { path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(listen_error)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(listen_error)?;
    Ok(listener)
}

/// The listening socket that the service manager passed to this process (sd_listen_fds(3)), if it did: connections wait
/// in it while capsuled restarts. It must be bound to `path`.
///
/// # Errors
/// When what was passed is not one listening socket at `path`.
pub fn passed(path: &Path) -> Result<Option<UnixListener>, ServerError> {
    let mut passed = ListenFd::from_env();
    match passed.len() {
        0 => return Ok(None),
        1 => {}
        count => return Err(ServerError::PassedCount { count }),
    }
    let Some(listener) = passed.take_unix_listener(0).map_err(ServerError::Passed)? else { return Ok(None) };
    let listens = sockopt::socket_acceptconn(&listener).map_err(|errno| ServerError::Passed(errno.into()))?;
    if !listens {
        return Err(ServerError::Passed(io::Error::other("it does not listen")));
    }
    let found = path_of(&listener);
    if found == path {
        Ok(Some(listener))
    } else {
        Err(ServerError::PassedOther { found, expected: path.to_owned() })
    }
}

/// The path that a listening socket is bound to; empty for none.
pub(crate) fn path_of(listener: &UnixListener) -> PathBuf {
    let address = listener.local_addr().ok();
    address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new("")).to_owned()
}

fn make_way(path: &Path) -> Result<(), ServerError> {
    let replace_error = |source| ServerError::Replace { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(replace_error(source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(replace_error)
        }
        Ok(_) => Err(ServerError::InUse { path: path.to_owned() }),
        Err(source) => Err(replace_error(source)),
    }
}

/// Serves until `stop` ends, then accepts no connection more, tells the clients of those that there are to make their
/// next calls elsewhere (GOAWAY, RFC 9113 section 6.8), and lets calls under way finish, for [`DRAIN`] at most.
///
/// What connects from then on waits in the listening socket for as long as somebody has it open. `activity` is told of calls.
///
/// # Errors
/// [`ServerError::Serve`] when the listener fails.
pub async fn serve(
    listener: UnixListener,
    routes: Routes,
    meters: Meters,
    activity: Activity,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    listener.set_nonblocking(true).map_err(ServerError::Accept)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServerError::Accept)?;
    let (stopped, draining) = oneshot::channel();
    let stop = async move {
        stop.await;
        _ = stopped.send(()); // nobody listens only when the server has ended already
    };
    let deadline = async move {
        match draining.await {
            Ok(()) => tokio::time::sleep(DRAIN).await,
            Err(_) => std::future::pending().await,
        }
    };
    let connections = Connections::new();
    let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(|s| connections.accept(s)));
    let server = tonic::transport::Server::builder()
        .layer(Telling { activity, meters })
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop);
    tokio::select! {
        served = server => served.map_err(ServerError::Serve)?,
        () = deadline => {
            tracing::warn!(seconds = DRAIN.as_secs(), "calls still under way at the end of the drain are dropped");
        }
    }
    connections.ended().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/capsuled.sock");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ServerError::InUse { .. })));
        drop(first);
        let _second = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
