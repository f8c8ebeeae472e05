//! What can go wrong, as the one line that a person reads.
//!
//! Every message says what failed, for which object, and what to do. capsuled's own messages already do, so a
//! refusal is passed on as it is; here are added the failures that capsuled cannot report about itself.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::archive;
use crate::commands::CertsError;
use crate::declaration::Mistake;
use crate::profile::ProfileError;
use crate::remote::RemoteError;
use crate::setup::SetupError;
use crate::text::escape_control;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line contradicts itself; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No device of the node has this name.
    #[error("this node has no device {0}: see `capsulectl devices`")]
    NoDevice(String),
    /// The command's span cannot be exported.
    #[error("cannot export traces: {}", innermost(.0))]
    Traces(#[source] capsule_telemetry::ExporterError),
    /// Nobody answers at the socket.
    #[error("cannot reach capsuled at {}: {source}; {}", address.display(), connect_hint(source))]
    Connect {
        /// The socket.
        address: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The socket answers and hangs up, or does not speak HTTP/2.
    #[error("no capsuled at {}: {}; see `systemctl status capsuled`, and check --address", address.display(), innermost(source))]
    Handshake {
        /// The socket.
        address: PathBuf,
        /// What tonic said.
        source: tonic::transport::Error,
    },
    /// capsuled refused the call, or it failed there.
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    /// An answer lacks what the API promises.
    #[error("capsuled's answer to {0} is incomplete; capsuled and capsulectl are of different versions")]
    Answer(&'static str),
    /// The tree cannot be made into a version.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// `capsule.toml` cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    ReadDeclaration {
        /// The file.
        path: PathBuf,
        /// What open(2) or read(2) said.
        source: io::Error,
    },
    /// `capsule.toml` is wrong.
    #[error("`{}` line {}: {}", path.display(), mistake.line, mistake.what)]
    Declaration {
        /// The file.
        path: PathBuf,
        /// The first mistake.
        mistake: Mistake,
    },
    /// A lock file cannot be written.
    #[error("cannot write the lock file {}: {source}", path.display())]
    WriteLock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A key is none.
    #[error("`{}`: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: capsule_signatures::SignatureError,
    },
    /// A new key cannot be written.
    #[error("cannot write the key {}: {source}", path.display())]
    WriteKey {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A node elsewhere cannot be asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// No certificate was made.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// containerd's configuration is left as it is.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The services are not as asked for.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Capsules do not work on this machine as it is.
    #[error("of {checks} checks, {errors} found an error: see above what to do")]
    Unfit {
        /// How many.
        errors: usize,
        /// Of how many.
        checks: usize,
    },
    /// No signature is good.
    #[error("{what} has no good signature by {by}: of {signatures}, none is")]
    Unsigned {
        /// The version.
        what: String,
        /// Whose it should be.
        by: &'static str,
        /// How many there are.
        signatures: usize,
    },
    /// An archive cannot be written.
    #[error("cannot write the archive {}: {source}", path.display())]
    WriteArchive {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A manual page cannot be written.
    #[error("cannot write the manual page {}: {source}", path.display())]
    WritePage {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The password cannot be read.
    #[error("cannot read the password from standard input: {source}")]
    Stdin {
        /// What the kernel said.
        source: io::Error,
    },
    /// TOML cannot be written.
    #[error("cannot write the lock file: {0}")]
    Toml(#[source] toml::ser::Error),
    /// The archiving thread is gone.
    #[error("the archive was not finished: {0}")]
    Archiver(#[source] tokio::task::JoinError),
    /// The runtime did not start.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    /// An address that cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("cannot write the result: {0}")]
    Print(#[source] io::Error),
    /// JSON cannot be written.
    #[error("cannot write the result: {0}")]
    Json(#[source] serde_json::Error),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl Error {
    /// The exit code: 2 for wrong usage, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// The message on one line, with nothing in it that a terminal would obey.
    pub fn line(&self) -> String {
        let lines: Vec<String> = self.to_string().lines().map(|l| l.trim().to_owned()).collect();
        escape_control(&lines.join(" "))
    }
}

/// The cause at the bottom: tonic's own error says no more than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may use this socket: run capsulectl as root",
        _ => "is it running? See `systemctl status capsuled`",
    }
}

/// capsuled's message, and what to do where capsuled did not live to say it.
fn describe(status: &Status) -> String {
    let message = status.message();
    // A status that capsuled sent has no source: one with a source was made here, of a broken connection.
    if let Some(source) = std::error::Error::source(status) {
        return format!(
            "capsuled went away during the call ({}); see `systemctl status capsuled`, then \
             what became of it with `capsulectl ps` or `capsulectl ls`",
            innermost(source)
        );
    }
    match status.code() {
        Code::Unimplemented => {
            "capsuled does not know this call: it is older than this capsulectl".to_owned()
        }
        Code::PermissionDenied if message.is_empty() => {
            "capsuled does not allow this: run capsulectl as root".to_owned()
        }
        code if message.is_empty() => format!("capsuled refused: {}", code.description()),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_refusal_is_passed_on() {
        for code in [
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::InvalidArgument,
            Code::Internal,
            Code::DataLoss,
            Code::Aborted,
            Code::ResourceExhausted,
            Code::OutOfRange,
            Code::DeadlineExceeded,
            Code::Unavailable,
            Code::Cancelled,
            Code::Unknown,
        ] {
            let error = Error::from(Status::new(code, "no capsule `x`; see `capsulectl ls`"));
            assert_eq!(error.line(), "no capsule `x`; see `capsulectl ls`", "{code:?}");
            assert_eq!(error.exit_code(), 1);
        }
    }

    #[test]
    fn what_capsuled_cannot_say_is_said_here() {
        for (code, want) in [
            (Code::Unimplemented, "older than this capsulectl"),
            (Code::PermissionDenied, "as root"),
            (Code::NotFound, "entity was not found"),
        ] {
            let line = Error::from(Status::new(code, "")).line();
            assert!(line.contains(want), "{code:?}: {line}");
        }
    }

    #[test]
    fn a_broken_connection_is_told_from_a_refusal() {
        let mut status = Status::unavailable("transport error");
        status.set_source(Arc::new(io::Error::from_raw_os_error(104)));
        let line = Error::from(status).line();
        assert!(line.contains("went away") && line.contains("os error 104"), "{line}");
        assert!(line.contains("systemctl status capsuled"), "{line}");
    }

    #[test]
    fn one_line_without_terminal_controls() {
        let line = Error::from(Status::failed_precondition("in use:\n  pid 7 \x1b[31mred")).line();
        assert_eq!(line, "in use: pid 7 \\x1b[31mred");
    }

    #[test]
    fn an_unreachable_daemon_names_socket_errno_and_unit() {
        let line = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            Error::Connect { address: "/run/x.sock".into(), source }.line()
        };
        let absent = line(2);
        assert!(absent.contains("/run/x.sock") && absent.contains("os error 2"), "{absent}");
        assert!(absent.contains("systemctl status capsuled"), "{absent}");
        assert!(line(13).contains("as root"));
    }

    #[test]
    fn usage_has_its_own_code() {
        assert_eq!(Error::Usage("x".into()).exit_code(), 2);
    }
}
