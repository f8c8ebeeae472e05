//! What a device asks of a container, complete: plain values, of which the shim needs to know no specification.

use std::path::Path;

use rustix::{
    fs::{FileType, lstat, major, minor},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// All that devices ask of a container, in the order in which it is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Device nodes.
    pub nodes: Vec<Node>,
    /// Network interfaces of the host.
    pub net_devices: Vec<NetDevice>,
    /// Files and directories of the host.
    pub mounts: Vec<Mount>,
    /// Programs of the host.
    pub hooks: Vec<Hook>,
    /// Groups that the container's process is to be in.
    pub additional_gids: Vec<u32>,
    /// Intel's resource director; the last one counts.
    pub intel_rdt: Option<IntelRdt>,
}

/// The kinds of nodes that a spec can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// `b`.
    Block,
    /// `c`, and `u`.
    Char,
    /// `p`, which has no numbers and no rule.
    Fifo,
}

impl NodeKind {
    /// The letter that the OCI runtime specification has for it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Block => "b",
            Self::Char => "c",
            Self::Fifo => "p",
        }
    }
}

/// A device node. What the spec leaves out was looked up on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is to be in the container.
    pub path: String,
    /// The same device on the host.
    pub host_path: String,
    /// What it is.
    pub kind: NodeKind,
    /// 0 for a FIFO.
    pub major: u32,
    /// 0 for a FIFO.
    pub minor: u32,
    /// Its permission bits; none when neither the spec nor the host says any.
    pub file_mode: Option<u32>,
    /// Its owner; the container's user when unset.
    pub uid: Option<u32>,
    /// Its group; that of the container's user when unset.
    pub gid: Option<u32>,
    /// What the container may do with it: letters of `rwm`, or nothing.
    pub access: String,
}

/// A network interface of the host, moved into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface: String,
    /// Its name in the container.
    pub name: String,
}

/// A file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// As of mount(8) and the OCI runtime specification.
    pub options: Vec<String>,
    /// The filesystem's type; a bind mount when empty.
    pub kind: String,
}

impl Mount {
    /// Whether it is of a file or directory of the host, and of no file system by itself.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        matches!(self.kind.as_str(), "" | "bind" | "none")
    }
}

/// When a hook is to run in a container's life (OCI runtime specification, "POSIX-platform hooks").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookPoint {
    /// Deprecated in favour of the next three.
    Prestart,
    /// In the runtime's namespaces, before the root is changed.
    CreateRuntime,
    /// In the container's namespaces, before the root is changed.
    CreateContainer,
    /// In the container, before its process.
    StartContainer,
    /// In the runtime's namespaces, after the start.
    Poststart,
    /// In the runtime's namespaces, after the end.
    Poststop,
}

impl HookPoint {
    /// The name that specs use.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, point)| *point == self).map_or("", |(name, _)| name)
    }

    /// All, by the names that specs use.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("prestart", Self::Prestart),
        ("createRuntime", Self::CreateRuntime),
        ("createContainer", Self::CreateContainer),
        ("startContainer", Self::StartContainer),
        ("poststart", Self::Poststart),
        ("poststop", Self::Poststop),
    ];
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// When.
    pub point: HookPoint,
    /// The program.
    pub path: String,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// Its environment, and all of it.
    pub env: Vec<String>,
    /// Seconds that it may take; unset: as long as it likes.
    pub timeout: Option<u32>,
}

impl Hook {
    /// Whether it can be run for a container that runs: those of other points belong to a creation.
    #[must_use]
    pub fn is_for_live(&self) -> bool {
        self.point == HookPoint::CreateContainer
    }
}

/// `linux.intelRdt` of the OCI runtime specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntelRdt {
    /// The class of service.
    pub clos_id: Option<String>,
    /// The old way to write a schema.
    pub l3_cache_schema: Option<String>,
    /// The old way to write a schema.
    pub mem_bw_schema: Option<String>,
    /// Lines of a `schemata` file.
    pub schemata: Vec<String>,
    /// Whether the container has a monitoring group.
    pub enable_monitoring: bool,
    /// The old way to ask for one.
    pub enable_cmt: bool,
    /// The old way to ask for one.
    pub enable_mbm: bool,
}

impl Edits {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a node cannot be made as the spec has it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NodeError {
    /// The host has none at the path, and the spec does not say what it would be.
    #[error("cannot look at {path} on this node: {errno}")]
    Stat {
        /// On the host.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// There is something else.
    #[error("{0} is no device node")]
    NoNode(String),
    /// There is another kind of node.
    #[error("{path} is a node of type {found} on this node, and of type {wanted} in the spec")]
    OtherKind {
        /// On the host.
        path: String,
        /// What it is.
        found: &'static str,
        /// What the spec says.
        wanted: &'static str,
    },
}

/// What a spec says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeclaredNode {
    pub(super) path: String,
    pub(super) host_path: String,
    pub(super) kind: Option<NodeKind>,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) access: String,
}

impl DeclaredNode {
    /// Completes it from the host's node as containerd does (CDI's `fillMissingInfo`): a spec that says the type and a major number need not
    /// have one, and is believed; otherwise the host's node says what the spec does not.
    pub(super) fn complete(&self) -> Result<Node, NodeError> {
        let said = self.kind.filter(|kind| self.major != 0 || *kind == NodeKind::Fifo);
        let found = HostNode::read(&self.host_path);
        let of = |kind, major, minor, host_mode| Node {
            path: self.path.clone(),
            host_path: self.host_path.clone(),
            kind,
            major,
            minor,
            file_mode: self.file_mode.or(host_mode),
            uid: self.uid,
            gid: self.gid,
            access: self.access.clone(),
        };
        match (said, found) {
            (Some(kind), found) => Ok(of(kind, self.major, self.minor, found.ok().map(|found| found.mode))),
            (None, Err(error)) => Err(error),
            (None, Ok(found)) => match self.kind {
                Some(kind) if kind != found.kind => Err(NodeError::OtherKind {
                    path: self.host_path.clone(),
                    found: found.kind.letter(),
                    wanted: kind.letter(),
                }),
                _ => Ok(of(found.kind, found.major, found.minor, Some(found.mode))),
            },
        }
    }
}

struct HostNode {
    kind: NodeKind,
    major: u32,
    minor: u32,
    mode: u32,
}

impl HostNode {
    /// Not through a link: whoever can write one would choose the device.
    fn read(path: &str) -> Result<Self, NodeError> {
        let stat =
            lstat(Path::new(path)).map_err(|errno| NodeError::Stat { path: path.to_owned(), errno })?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => NodeKind::Block,
            FileType::CharacterDevice => NodeKind::Char,
            FileType::Fifo => NodeKind::Fifo,
            _ => return Err(NodeError::NoNode(path.to_owned())),
        };
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        Ok(Self { kind, major, minor, mode: stat.st_mode & 0o7777 })
    }
}
