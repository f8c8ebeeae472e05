//! What shims report, as this daemon works with it.

use std::{path::PathBuf, time::SystemTime};

/// A process that uses files of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// In the node's PID namespace.
    pub pid: i32,
    /// Its name.
    pub command: String,
    /// The file, as the process names it.
    pub path: String,
    /// "fd 5", "cwd", "root", "exe" or "mmap".
    pub how: String,
}

/// What a shim has mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The attachment's id.
    pub id: String,
    /// Digest of the content mounted.
    pub digest: String,
    /// The kernel's mount table confirms it.
    pub confirmed: bool,
}

/// Content that left its path and is still used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// The attachment it was.
    pub id: String,
    /// The capsule.
    pub capsule: String,
    /// The version.
    pub version: String,
    /// Its identity.
    pub digest: String,
    /// Its directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Where it was.
    pub target: String,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// Who uses it, where that was asked.
    pub users: Vec<User>,
}

/// What a shim has noticed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Grows with each of a container.
    pub number: u64,
    /// The attachment that it is about.
    pub attachment: String,
    /// When.
    pub at: SystemTime,
    /// What.
    pub kind: capsule_proto::hotplug::NoticeKind,
    /// For people.
    pub text: String,
}

/// A shim's report on one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is mounted.
    pub mounted: Vec<Mounted>,
    /// What is draining.
    pub draining: Vec<Draining>,
    /// Limits that no attachment changes any more are still to be put back.
    pub limits_left: bool,
}

/// What came of a look at a container, by its shim.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// What the shim has noticed.
    pub notices: Vec<Notice>,
    /// As of [`Report`].
    pub limits_left: bool,
}
