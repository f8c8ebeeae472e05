//! Why a shim could not be asked, or what it refused.

use std::{io, path::PathBuf};

use tonic::Code;

use super::REGISTRATION_VERSION;
use crate::attachments::model::ContainerKey;

/// A shim that could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The container has no shim of ours.
    #[error("container {0} has no shim of the runtime io.containerd.capsule.v1")]
    NoShim(ContainerKey),
    /// Its registration cannot be read.
    #[error("cannot read the shim's registration {path}: {source}")]
    Registration {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its registration is of another version of the shim.
    #[error(
        "the shim's registration {path} has version {found}, and this capsuled reads {REGISTRATION_VERSION}: install the capsuled of the shim's release"
    )]
    RegistrationVersion {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u32,
    },
    /// It does not answer.
    #[error(
        "the shim of {container} does not answer on {address}: {reason}; if its task is gone, start the container anew"
    )]
    Unreachable {
        /// The container.
        container: ContainerKey,
        /// Its socket.
        address: String,
        /// Why.
        reason: String,
    },
    /// It is as old as its container, and has left out of an attach what it knows nothing of.
    #[error("the shim of {container} is {lacks}{}", if *undone { "" } else { "; what it has attached stays" })]
    Older {
        /// The container.
        container: ContainerKey,
        /// Of what release, and what to do.
        lacks: &'static str,
        /// It is detached again.
        undone: bool,
    },
    /// It answered that it cannot, having changed nothing.
    #[error("{message}")]
    Refused {
        /// Why, as a gRPC code.
        code: Code,
        /// Why, in a line.
        message: String,
    },
}

impl ShimError {
    /// Whether it found no room: in its bundle, or in the container's root.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if crate::full::says(message))
    }
}

/// What a shim answered instead of an answer.
pub(super) fn refused(status: ttrpc::Status) -> ShimError {
    use ttrpc::Code as Theirs;
    let code = match status.code() {
        Theirs::NOT_FOUND => Code::NotFound,
        Theirs::ALREADY_EXISTS => Code::AlreadyExists,
        Theirs::FAILED_PRECONDITION => Code::FailedPrecondition,
        Theirs::INVALID_ARGUMENT => Code::InvalidArgument,
        Theirs::UNIMPLEMENTED => Code::Unimplemented,
        Theirs::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    ShimError::Refused { code, message: status.message }
}
