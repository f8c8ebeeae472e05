//! Nodes elsewhere: the client file that names them, and the connection to one (docs/remote.md).

mod connect;
mod file;

use std::io;
use std::path::{Path, PathBuf};

use capsule_certificates::CertificateError;

pub use self::connect::connect;
pub use self::file::{Address, ClientFile, Entry, Node, replace};

/// Where capsuled is.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this machine, at this socket.
    Socket(PathBuf),
    /// Elsewhere.
    Node(Box<Node>),
}

impl Place {
    /// As the command line says it: the socket, unless a client file or a node is named.
    ///
    /// # Errors
    /// When the file cannot be used, or has no such node.
    pub fn chosen(socket: PathBuf, file: Option<&Path>, node: Option<&str>) -> Result<Self, RemoteError> {
        let file = match (file, node) {
            (None, None) => return Ok(Self::Socket(socket)),
            (Some(file), _) => file.to_owned(),
            (None, Some(_)) => default_file().ok_or(RemoteError::NoHome)?,
        };
        Ok(Self::Node(Box::new(ClientFile::read(&file)?.node(&file, node)?)))
    }
}

fn default_file() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".capsule/client.yml"))
}

/// Why a node elsewhere cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody knows where the file is.
    #[error("HOME is not set: say with --config which client file is meant")]
    NoHome,
    /// The client file cannot be read.
    #[error("cannot read the client file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The client file cannot be written.
    #[error("cannot write the client file {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others can read the keys.
    #[error(
        "others than its owner may read {}, which holds keys (mode {mode:04o}): chmod 600, and ask for a new one if somebody has read it",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The client file is wrong.
    #[error("{} is no client file: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// There is no such node.
    #[error("{} has no node `{node}`: it has {known}", path.display())]
    NoNode {
        /// The file.
        path: PathBuf,
        /// Which was asked for.
        node: String,
        /// Which there are.
        known: String,
    },
    /// Which node is meant is not said.
    #[error("{} does not say which node is meant: choose one with --node: {known}", path.display())]
    WhichNode {
        /// The file.
        path: PathBuf,
        /// Which there are.
        known: String,
    },
    /// A certificate of the file cannot be used.
    #[error("node `{node}` of {}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The node.
        node: String,
        /// Why.
        source: CertificateError,
    },
    /// The client's certificate is of the past, or of the future.
    #[error("your certificate for node `{node}` in {} {what}", path.display())]
    Time {
        /// The file.
        path: PathBuf,
        /// The node.
        node: String,
        /// When.
        what: String,
    },
    /// The node cannot be reached.
    #[error(
        "cannot reach node `{node}` at {address}: {source}; does capsule-remote run there, and is the port open?"
    )]
    Unreachable {
        /// The node.
        node: String,
        /// Its address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// One does not believe the other.
    #[error("node `{node}` at {address}: {what}")]
    Refused {
        /// The node.
        node: String,
        /// Its address.
        address: Address,
        /// Who, and what to do.
        what: String,
    },
    /// It answers, and does not speak HTTP/2.
    #[error("node `{node}` at {address} is no capsule-remote: {source}")]
    Handshake {
        /// The node.
        node: String,
        /// Its address.
        address: Address,
        /// What tonic said.
        source: tonic::transport::Error,
    },
}
