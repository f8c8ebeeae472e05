//! Why a container's limits could not be changed.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::file::File;

/// Why a container's limits could not be changed.
#[derive(Debug, Error)]
pub enum LimitError {
    /// Its control groups are of version 1.
    #[error(
        "the limits of a live container cannot be changed on this node: its control groups are of version 1, and that takes version 2 (the unified hierarchy)"
    )]
    NotUnified,
    /// Its control group is gone, as with its last process.
    #[error("the container's control group is gone")]
    Gone,
    /// The file is not there.
    #[error(
        "the container has no {file}: the {controller} controller is not on for its control group, or the kernel lacks it"
    )]
    Missing {
        /// The file.
        file: File,
        /// What makes it.
        controller: &'static str,
    },
    /// A file that holds what is not known.
    #[error("{file} of the container holds {text:?}, which this shim does not understand")]
    Strange {
        /// The file.
        file: File,
        /// Its text.
        text: String,
    },
    /// No CPU is left.
    #[error("cpuset.cpus: the cap {cap} leaves no CPU of {granted}")]
    NoCpus {
        /// What it would have without.
        granted: String,
        /// The cap.
        cap: String,
    },
    /// More is in use than would be allowed.
    #[error(
        "{file} would become {limit}, and the container uses {used}: end what uses it, then try again (a lazy detach leaves that to the kernel)"
    )]
    InUse {
        /// The file.
        file: File,
        /// The limit.
        limit: u64,
        /// What is in use.
        used: u64,
    },
    /// A group above has less.
    #[error(
        "memory.max would become {wanted}, and {} holds {above} for it and its neighbours together: raise that first (of a pod: its resources), or grant less",
        path.display()
    )]
    Above {
        /// What it would be.
        wanted: u64,
        /// The file of the group above.
        path: PathBuf,
        /// What that holds.
        above: String,
    },
    /// The request of an update cannot be understood, where it is about limits that attachments change.
    #[error("{field} {value} cannot be understood, and attachments change that limit")]
    Request {
        /// The field.
        field: String,
        /// Its value.
        value: String,
    },
    /// A file could not be read or written.
    #[error("cannot {step} {}", path.display())]
    File {
        /// Reading or writing.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel holds another value than it was told.
    #[error("the kernel made {found} of {wanted} in {}", path.display())]
    Ignored {
        /// The file.
        path: PathBuf,
        /// What was written.
        wanted: String,
        /// What is there.
        found: String,
    },
}
