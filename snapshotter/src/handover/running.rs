//! The side of the capsuled that runs.

use std::{
    error::Error,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
};

use rustix::{net::sockopt::socket_peercred, process::geteuid};
use tokio::task::spawn_blocking;

use super::{HandoverError, PATIENCE, Sockets, VERSION, wire};

/// A successor that has the sockets and waits for the stores.
#[derive(Debug)]
pub struct Successor {
    stream: UnixStream,
    /// Its process, for the service manager.
    pub pid: u32,
}

/// Waits for a successor, and gives it the sockets. Ends when it is ready to have the stores.
///
/// # Errors
/// When the hand-over socket itself fails.
pub async fn offer(sockets: &Sockets) -> io::Result<Successor> {
    let listener = sockets.handover.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        let stream = listener.accept().await?.0.into_std()?;
        let sockets = sockets.try_clone()?;
        match spawn_blocking(move || greet(stream, &sockets)).await {
            Ok(Ok(successor)) => return Ok(successor),
            Ok(Err(error)) => {
                let error: &dyn Error = &error;
                tracing::warn!(error, "somebody asked to take over and did not");
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn greet(stream: UnixStream, sockets: &Sockets) -> Result<Successor, HandoverError> {
    let failed = |source| HandoverError::Receive { expected: "take-over", source };
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let peer = socket_peercred(&stream).map_err(|errno| failed(errno.into()))?;
    if peer.uid != geteuid() {
        return Err(HandoverError::NotAllowed { uid: peer.uid.as_raw() });
    }
    let (said, _) = wire::receive(&stream, "take-over")?;
    if said != format!("take-over {VERSION}") {
        wire::send(&stream, &format!("refused: this capsuled hands over by version {VERSION}"))?;
        return Err(HandoverError::Unexpected { expected: "take-over 1", said });
    }
    let descriptors = [sockets.api.as_fd(), sockets.handover.as_fd()];
    wire::send_with(&stream, &format!("sockets {VERSION}"), descriptors)?;
    wire::expect(&stream, "ready")?;
    stream.set_read_timeout(None).map_err(failed)?;
    Ok(Successor { stream, pid: peer.pid.as_raw_nonzero().get().unsigned_abs() })
}

impl Successor {
    /// Tells the successor that the stores are closed, and waits until it serves. However long that takes: as long as it
    /// lives, the stores are its.
    ///
    /// # Errors
    /// When it ended or gave up before.
    pub async fn hand_over(self) -> Result<(), HandoverError> {
        let waited = spawn_blocking(move || {
            wire::send(&self.stream, "yours")?;
            wire::expect(&self.stream, "serving")
        });
        let failed = |error| HandoverError::Receive { expected: "serving", source: io::Error::other(error) };
        waited.await.map_err(failed)?
    }
}
