//! What a container uses, in the metrics messages that containerd's clients read: `io.containerd.cgroups.v1.Metrics` and
//! `v2`, filled as containerd's library does it (containerd/cgroups, `cgroup1` and `cgroup2/manager.go`, version 3.1).
//!
//! `files` reads, `parse` understands lines, `v1` and `v2` say which file becomes which field. Nothing here keeps
//! anything between two calls. The numbers of network interfaces, for which the messages have a field, are in no control
//! group, and containerd's own shim leaves them to others too.

mod files;
mod parse;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf};

use protobuf::well_known_types::any::Any;
use thiserror::Error;

use crate::{
    cgroup::Cgroup,
    message::{self, CGROUPS_V1, CGROUPS_V2},
};

/// Why there are no metrics.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The control group has been removed.
    #[error("control group {} is gone", .0.display())]
    Gone(PathBuf),
    /// A file, or the directory.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file of a kernel that this shim does not know.
    #[error("cannot understand the line {line:?} of {}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: String,
    },
    /// The message cannot be encoded.
    #[error("cannot encode the metrics")]
    Encode(#[source] protobuf::Error),
}

/// The metrics of a container, by the version of its control groups. It may have ended.
///
/// # Errors
/// [`StatsError`].
pub fn collect(cgroup: &Cgroup) -> Result<Any, StatsError> {
    let node = Node::read();
    let metrics = match cgroup {
        Cgroup::Unified(path) => message::wrap(CGROUPS_V2, &v2::read(path, &node)?),
        Cgroup::Legacy(paths) => message::wrap(CGROUPS_V1, &v1::read(paths, &node)?),
    };
    metrics.map_err(StatsError::Encode)
}

/// What the files of the control groups say by numbers, or only for some nodes.
#[derive(Default)]
struct Node {
    /// `/proc/partitions`: the names of block devices.
    partitions: String,
    /// Sizes of huge pages, such as `2MB`, in the kernel's order.
    huge_pages: Vec<String>,
}

impl Node {
    /// A node without huge pages, or without block devices, lacks the files.
    fn read() -> Self {
        let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().filter_map(Result::ok);
        Self {
            partitions: fs::read_to_string("/proc/partitions").unwrap_or_default(),
            huge_pages: sizes.filter_map(|e| parse::huge_page_size(e.file_name().to_str()?)).collect(),
        }
    }
}
