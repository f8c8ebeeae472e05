//! Nodes and hooks that devices ask for, of a container that is created as of one that runs: one message, one parser. Pure.

use std::path::{Path, PathBuf};

use capsule_proto::hotplug as wire;
use overlayfs_utils::ContainerPath;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::devices::{Access, Device, DeviceKind, Grant};

/// Something that a device cannot ask for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a device's {field} {value:?} cannot be used: {reason}")]
pub struct InvalidEdit {
    field: &'static str,
    value: String,
    reason: String,
}

impl InvalidEdit {
    /// Of what, its value, and what is wrong.
    pub fn new(field: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Self { field, value: value.to_owned(), reason: reason.into() }
    }
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
    const ALL: [Self; 3] = [Self::Block, Self::Char, Self::Fifo];

    /// As the OCI runtime specification calls it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Block => "b",
            Self::Char => "c",
            Self::Fifo => "p",
        }
    }

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

/// When a hook is run, of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the container's root is changed to, in the namespaces of the runtime.
    Prestart,
    /// The same.
    CreateRuntime,
    /// The same, in those of the container: the one that a live container can be given, too.
    CreateContainer,
    /// In the container, before its process.
    StartContainer,
    /// After its process has started.
    Poststart,
    /// After the container is deleted.
    Poststop,
}

impl Point {
    const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// The name of its list in `hooks`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::CreateContainer);
        }
        Self::ALL.into_iter().find(|point| point.name() == name)
    }
}

/// Whether a process can be given it as a variable, `NAME=VALUE`.
pub fn is_variable(entry: &str) -> bool {
    !entry.contains('\0') && entry.split_once('=').is_some_and(|(name, _)| !name.is_empty())
}

/// Variables, all of which can be given.
///
/// # Errors
/// [`InvalidEdit`] for the first that cannot.
pub fn parse_env(field: &'static str, env: Vec<String>) -> Result<Vec<String>, InvalidEdit> {
    match env.iter().find(|entry| !is_variable(entry)) {
        Some(wrong) => Err(InvalidEdit::new(field, wrong, "it is no NAME=VALUE")),
        None => Ok(env),
    }
}

/// A path in a container that something can be put at.
///
/// # Errors
/// [`InvalidEdit`].
pub fn parse_place(field: &'static str, path: &str) -> Result<ContainerPath, InvalidEdit> {
    let parsed = ContainerPath::parse(path).map_err(|e| InvalidEdit::new(field, path, e.to_string()))?;
    if parsed.is_root() {
        return Err(InvalidEdit::new(field, path, "it is the container's root"));
    }
    Ok(parsed)
}

/// Validates a node.
///
/// # Errors
/// [`InvalidEdit`] for the first thing that is wrong.
pub fn parse_node(node: wire::DeviceNode) -> Result<Node, InvalidEdit> {
    let kind = NodeKind::ALL.into_iter().find(|kind| kind.letter() == node.type_);
    let kind = kind.ok_or_else(|| InvalidEdit::new("type", &node.type_, "it is none of b, c and p"))?;
    let access = Access::parse(&node.access)
        .map_err(|_| InvalidEdit::new("access", &node.access, "it is made of the letters r, w and m"))?;
    if let Some(mode) = node.file_mode.filter(|mode| *mode > 0o7777) {
        return Err(InvalidEdit::new("mode", &format!("{mode:o}"), "it has more than permission bits"));
    }
    Ok(Node {
        path: parse_place("node", &node.path)?,
        kind,
        major: node.major,
        minor: node.minor,
        mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        access,
    })
}

/// Validates a hook, and says when it is to be run.
///
/// # Errors
/// [`InvalidEdit`] for the first thing that is wrong.
pub fn parse_hook(hook: wire::DeviceHook) -> Result<(Point, Hook), InvalidEdit> {
    let point = Point::parse(&hook.point).ok_or_else(|| {
        InvalidEdit::new("hook's point", &hook.point, "this shim knows of none of the name")
    })?;
    if !Path::new(&hook.path).is_absolute() || hook.path.contains('\0') {
        return Err(InvalidEdit::new("hook", &hook.path, "it is no absolute path"));
    }
    if let Some(wrong) = hook.args.iter().find(|arg| arg.contains('\0')) {
        return Err(InvalidEdit::new("hook's argument", wrong, "it has a NUL byte"));
    }
    let env = parse_env("hook's variable", hook.env)?;
    let env = env.iter().filter_map(|entry| entry.split_once('='));
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let timeout = (hook.timeout > 0).then_some(hook.timeout);
    Ok((point, Hook { path: hook.path.into(), args: hook.args, env, timeout }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(point: &str) -> wire::DeviceHook {
        let mut hook = wire::DeviceHook::new();
        (hook.point, hook.path) = (point.to_owned(), "/bin/true".to_owned());
        hook
    }

    #[test]
    fn a_hook_has_a_point_and_one_that_says_none_is_for_live_containers_too() {
        for point in Point::ALL {
            assert_eq!(parse_hook(hook(point.name())).unwrap().0, point);
        }
        assert_eq!(parse_hook(hook("")).unwrap().0, Point::CreateContainer);
        let error = parse_hook(hook("createcontainer")).unwrap_err().to_string();
        assert!(error.contains("hook's point \"createcontainer\""), "{error}");
    }

    #[test]
    fn a_node_is_at_a_place_and_of_a_kind() {
        for kind in NodeKind::ALL {
            let mut node = wire::DeviceNode::new();
            (node.path, node.type_, node.access) = ("/dev//x/".into(), kind.letter().into(), "mr".into());
            let node = parse_node(node).unwrap();
            assert_eq!(
                (node.path.as_str(), node.kind, node.access.to_string().as_str()),
                ("/dev/x", kind, "rm")
            );
        }
        for path in ["", "dev/x", "/dev/../x", "/"] {
            let mut node = wire::DeviceNode::new();
            (node.path, node.type_) = (path.into(), "c".into());
            assert!(parse_node(node).unwrap_err().to_string().contains("a device's node"), "{path}");
        }
    }
}
