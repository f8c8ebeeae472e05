//! The side of the capsuled that takes over.

use std::{
    error::Error,
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use rustix::net::{AddressFamily, sockopt};

use super::{HandoverError, PATIENCE, Sockets, VERSION, wire};
use crate::server::path_of;

/// How long the running capsuled may take to end its calls and close its stores: longer than its drain.
const CLOSING: Duration = Duration::from_secs(60);

/// The capsuled that this one replaces.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

/// Takes the sockets from the capsuled that listens for successors at `handover`, and serves at `api`. None when no
/// capsuled listens there. The running one stops when this returns; follow with [`Predecessor::wait_until_closed`].
///
/// # Errors
/// The running capsuled serves on, whatever the error.
pub fn take_over(handover: &Path, api: &Path) -> Result<Option<(Sockets, Predecessor)>, HandoverError> {
    let failed = |source| HandoverError::Connect { path: handover.to_owned(), source };
    let stream = match UnixStream::connect(handover) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected.map_err(failed)?,
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    wire::send(&stream, &format!("take-over {VERSION}"))?;
    let (said, descriptors) = wire::receive(&stream, "sockets")?;
    if let Some(reason) = said.strip_prefix("refused: ") {
        return Err(HandoverError::Refused { reason: reason.to_owned() });
    }
    if said != format!("sockets {VERSION}") {
        return Err(HandoverError::Unexpected { expected: "sockets 1", said });
    }
    let sockets = check(descriptors, api)?;
    stream.set_read_timeout(Some(CLOSING)).map_err(failed)?;
    wire::send(&stream, "ready")?;
    Ok(Some((sockets, Predecessor { stream })))
}

fn check(descriptors: Vec<OwnedFd>, api: &Path) -> Result<Sockets, HandoverError> {
    let listens = |fd: &OwnedFd| {
        sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX) && sockopt::socket_acceptconn(fd) == Ok(true)
    };
    let Ok([first, second]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(HandoverError::NoSockets);
    };
    if !listens(&first) || !listens(&second) {
        return Err(HandoverError::NoSockets);
    }
    let sockets = Sockets { api: UnixListener::from(first), handover: UnixListener::from(second) };
    let found = path_of(&sockets.api);
    if found != api {
        return Err(HandoverError::OtherSocket { found, expected: api.to_owned() });
    }
    Ok(sockets)
}

impl Predecessor {
    /// Waits until the running capsuled has ended its calls and closed its stores.
    ///
    /// # Errors
    /// [`HandoverError::NotClosed`] when it takes longer than any drain.
    pub fn wait_until_closed(&mut self) -> Result<(), HandoverError> {
        match wire::expect(&self.stream, "yours") {
            Err(HandoverError::Receive { source, .. }) if is_timeout(&source) => {
                Err(HandoverError::NotClosed { after: CLOSING })
            }
            Err(HandoverError::Receive { source, .. }) => {
                let error: &dyn Error = &source;
                tracing::warn!(
                    error,
                    "the capsuled that ran has ended before it let go: going on without it"
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Tells the capsuled that ran that it may go. If it is gone already, so much the better.
    pub fn dismiss(self) {
        if let Err(error) = wire::send(&self.stream, "serving") {
            let error: &dyn Error = &error;
            tracing::debug!(error, "the capsuled that ran is gone");
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
