//! What devices ask of a live container: plain values, whatever specification they come from. Pure.

use std::path::PathBuf;

use overlayfs_utils::{BindOptions, ContainerPath};
use serde::{Deserialize, Serialize};

use crate::devices::{Grant, Policy};
pub use crate::edits::{Hook, Node};

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

impl Edits {
    /// The devices that are to be allowed.
    #[must_use]
    pub fn grants(&self) -> Vec<Grant> {
        self.nodes.iter().filter_map(Node::grant).collect()
    }
}
