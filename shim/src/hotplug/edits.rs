//! What devices ask of a container: plain values, whatever specification they come from. Pure.

use std::path::PathBuf;

use overlayfs_utils::{BindOptions, ContainerPath};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::devices::{Access, Device, DeviceKind, Grant, Policy};

/// All that the devices of one attachment ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edits {
    /// Nodes to be made.
    pub nodes: Vec<Node>,
    /// Files and directories of the node.
    pub mounts: Vec<Bind>,
    /// `NAME=VALUE`, for processes that are started later.
    pub env: Vec<String>,
    /// Programs to run once all that is there.
    pub hooks: Vec<Hook>,
    /// Groups of processes that are started later.
    pub additional_gids: Vec<u32>,
    /// What is done about others' device programs.
    pub policy: Policy,
}

/// The kinds of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// `b`.
    Block,
    /// `c`.
    Char,
    /// `p`, which nobody has to be allowed.
    Fifo,
}

impl NodeKind {
    /// As the kernel names it.
    #[must_use]
    pub fn file_type(self) -> FileType {
        match self {
            Self::Block => FileType::BlockDevice,
            Self::Char => FileType::CharacterDevice,
            Self::Fifo => FileType::Fifo,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// In the container.
    pub path: ContainerPath,
    /// What it is.
    pub kind: NodeKind,
    /// 0 for a FIFO.
    pub major: u32,
    /// 0 for a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: Option<u32>,
    /// The container's user when unset.
    pub uid: Option<u32>,
    /// The container's group when unset.
    pub gid: Option<u32>,
    /// What the container may do with the device.
    pub access: Access,
}

impl Node {
    /// The device, and what is allowed; none for a FIFO.
    #[must_use]
    pub fn grant(&self) -> Option<Grant> {
        let kind = match self.kind {
            NodeKind::Block => DeviceKind::Block,
            NodeKind::Char => DeviceKind::Char,
            NodeKind::Fifo => return None,
        };
        let device = Device { kind, major: self.major, minor: self.minor };
        Some(Grant { device, access: self.access })
    }
}

/// A file or directory of the node, bound into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub target: ContainerPath,
    /// What it cannot be used for.
    pub options: BindOptions,
}

/// A program of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// Its environment, and all of it.
    pub env: Vec<(String, String)>,
    /// Seconds that it may take; the shim's own limit when none.
    pub timeout: Option<u32>,
}

impl Edits {
    /// The devices that are to be allowed.
    #[must_use]
    pub fn grants(&self) -> Vec<Grant> {
        self.nodes.iter().filter_map(Node::grant).collect()
    }
}
