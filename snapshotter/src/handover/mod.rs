//! Handing the listening sockets over to the capsuled that replaces this one, so that an upgrade loses no call.
//!
//! The running capsuled listens on a second socket, `handover.sock` in the run directory. Its successor
//! (`capsuled --take-over`) connects there when it knows that it can run, and they speak one line at a time:
//!
//! | who | line | what it means |
//! | --- | --- | --- |
//! | successor | `take-over 1` | the version of this protocol |
//! | running | `sockets 1`, with two descriptors | the listening sockets: calls wait in them from now on, whoever dies |
//! | successor | `ready` | they are what its configuration names; stop |
//! | running | `yours` | no call is under way, the stores are closed |
//! | successor | `serving` | the running one may go |
//!
//! `refused: REASON` may come in place of `sockets`. A successor that ends before it says `serving` has not taken over:
//! the running capsuled, which keeps the sockets until then, opens its stores and serves again. A running capsuled that ends
//! before it says `yours` has let go of everything, and the successor goes on.
//!
//! Lives here: the protocol. Calls block, and have deadlines where the other side may hang.

mod running;
mod successor;
mod wire;

use std::{io, os::unix::net::UnixListener, path::PathBuf, time::Duration};

pub use self::{
    running::{Successor, offer},
    successor::{Predecessor, take_over},
};

/// The hand-over socket, in the run directory.
pub const SOCKET: &str = "handover.sock";

/// The version of the protocol.
const VERSION: u32 = 1;

/// How long the other side may take for an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sockets that clients and successors connect to. A connection waits in them until somebody accepts it.
#[derive(Debug)]
pub struct Sockets {
    /// Where the API is served.
    pub api: UnixListener,
    /// Where a successor asks for both.
    pub handover: UnixListener,
}

impl Sockets {
    /// More descriptors of the same sockets.
    ///
    /// # Errors
    /// When this process has too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { api: self.api.try_clone()?, handover: self.handover.try_clone()? })
    }
}

/// Why sockets were not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The running capsuled could not be reached.
    #[error("connect to the running capsuled at {path}")]
    Connect {
        /// The hand-over socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody who is not this process's user.
    #[error("user {uid} may not take over")]
    NotAllowed {
        /// Who asked.
        uid: u32,
    },
    /// A line could not be sent.
    #[error("send {line:?}")]
    Send {
        /// The line.
        line: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line could not be received.
    #[error("wait for {expected:?}")]
    Receive {
        /// What was to come.
        expected: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another line than the one that was to come.
    #[error("the other capsuled said {said:?} in place of {expected:?}")]
    Unexpected {
        /// What was to come.
        expected: &'static str,
        /// What came.
        said: String,
    },
    /// The running capsuled keeps its sockets.
    #[error("the running capsuled refuses: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// What came is not two listening unix sockets.
    #[error("the running capsuled sent something else than its listening sockets")]
    NoSockets,
    /// The running capsuled serves somewhere else.
    #[error(
        "the running capsuled serves on {found}, and the configuration says {expected}: a socket can only be changed by a restart"
    )]
    OtherSocket {
        /// Where it serves.
        found: PathBuf,
        /// Where this one should.
        expected: PathBuf,
    },
    /// The running capsuled did not let go in time.
    #[error("the running capsuled has not closed its stores after {} s", .after.as_secs())]
    NotClosed {
        /// How long was waited.
        after: Duration,
    },
}
