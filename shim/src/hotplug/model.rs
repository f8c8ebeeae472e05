//! What hot-plug works on: validated once, where the wire ends.

use std::path::{Path, PathBuf};

use overlayfs_utils::{ContainerPath, InvalidPath};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    edits::{InvalidEdit, is_variable},
    seccomp::Denied,
};

/// Longest source that a mount may be given: the kernel takes 256 bytes with the NUL (`fsconfig(2)`).
const MAX_SOURCE: usize = 255;

/// Why a request is not understood. Nothing was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidRequest {
    /// A field is empty.
    #[error("the request's {0} is empty")]
    Empty(&'static str),
    /// A layer is given by a path that depends on who reads it.
    #[error("the layer {0:?} is not an absolute path without NUL and \"..\"")]
    Layer(String),
    /// The target is no path in a container.
    #[error("the target cannot be used")]
    Target(#[from] InvalidPath),
    /// A capsule alone at "/" would hide the whole container.
    #[error("mode ro cannot have the target \"/\": use mode union, or a target below it")]
    RoAtRoot,
    /// The mode is none that this shim knows.
    #[error("the mode {0} is unknown to this shim: is capsuled newer?")]
    Mode(i32),
    /// An upper that is nowhere, or by a path that depends on who reads it.
    #[error("the place {0:?} for what is written is not an absolute path without NUL and \"..\"")]
    Upper(String),
    /// Something that devices ask for.
    #[error(transparent)]
    Edit(#[from] InvalidEdit),
    /// A change of a limit.
    #[error("the {what} {file} {value:?} cannot be used: {reason}")]
    Limit {
        /// A grant, or a cap.
        what: &'static str,
        /// The file.
        file: String,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A variable that is none.
    #[error("the variable {0:?} is not NAME=VALUE")]
    Variable(String),
    /// A system call that is none, of a capsuled with newer tables.
    #[error("this shim knows of no system call {0:?}: recreate the container, and its shim is a newer one")]
    Call(String),
    /// A name would not fit on a line of a table.
    #[error("the {field} {value:?} has control characters")]
    Control {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// Id of an attachment: capsuled's, unique in a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachmentId(String);

impl AttachmentId {
    /// Validates an id.
    ///
    /// # Errors
    /// [`InvalidRequest`] when it is empty or has control characters.
    pub fn parse(id: String) -> Result<Self, InvalidRequest> {
        checked("attachment_id", id).map(Self)
    }
}

impl std::fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One capsule version: its layers on the node, topmost first, and how to name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The capsule's name.
    pub capsule: String,
    /// The version.
    pub version: String,
    /// Digest of the image.
    pub digest: String,
    /// Directories on the node, topmost first.
    pub layers: Vec<PathBuf>,
    /// Variables of processes that are started later, as `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// System calls that processes are denied that are started later.
    #[serde(default, skip_serializing_if = "Denied::is_empty")]
    pub denied: Denied,
}

impl Content {
    /// Validates a content.
    ///
    /// # Errors
    /// [`InvalidRequest`] for an empty or multi-line name, no layers, or a layer that is no absolute path.
    pub fn new(
        capsule: String,
        version: String,
        digest: String,
        layers: Vec<String>,
    ) -> Result<Self, InvalidRequest> {
        if layers.is_empty() {
            return Err(InvalidRequest::Empty("content.layers"));
        }
        let layers = layers.into_iter().map(parse_layer).collect::<Result<_, _>>()?;
        Ok(Self {
            capsule: checked("content.capsule", capsule)?,
            version: checked("content.version", version)?,
            digest,
            layers,
            env: Vec::new(),
            denied: Denied::default(),
        })
    }

    /// With these variables.
    ///
    /// # Errors
    /// [`InvalidRequest::Variable`].
    pub fn with_env(self, env: Vec<String>) -> Result<Self, InvalidRequest> {
        match env.iter().find(|entry| !is_variable(entry)) {
            Some(entry) => Err(InvalidRequest::Variable(entry.clone())),
            None => Ok(Self { env, ..self }),
        }
    }

    /// With these system calls denied.
    ///
    /// # Errors
    /// [`InvalidRequest::Call`].
    pub fn with_denied(self, names: Vec<String>) -> Result<Self, InvalidRequest> {
        let denied = Denied::parse(names).map_err(InvalidRequest::Call)?;
        Ok(Self { denied, ..self })
    }

    /// What the mount table shows as the mount's source.
    #[must_use]
    pub fn source(&self) -> String {
        let mut source = format!("capsule:{self}");
        let mut end = source.len().min(MAX_SOURCE);
        while !source.is_char_boundary(end) {
            end -= 1;
        }
        source.truncate(end);
        source
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.capsule, self.version)
    }
}

fn checked(field: &'static str, value: String) -> Result<String, InvalidRequest> {
    match value {
        value if value.is_empty() => Err(InvalidRequest::Empty(field)),
        value if value.contains(char::is_control) => Err(InvalidRequest::Control { field, value }),
        value => Ok(value),
    }
}

fn parse_layer(layer: String) -> Result<PathBuf, InvalidRequest> {
    if is_plain(&layer) { Ok(layer.into()) } else { Err(InvalidRequest::Layer(layer)) }
}

/// Whether a path of the node means the same whoever reads it.
pub fn is_plain(path: &str) -> bool {
    Path::new(path).is_absolute() && !path.contains('\0') && !path.split('/').any(|c| c == "..")
}

/// Where the writes to an attachment go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpperPlace {
    /// A directory on the node.
    Directory(PathBuf),
    /// A file on the node with an ext4 file system.
    Image(PathBuf),
}

impl UpperPlace {
    /// Validates a place: `make` is which of the two it is.
    ///
    /// # Errors
    /// [`InvalidRequest::Upper`].
    pub fn parse(path: String, make: fn(PathBuf) -> Self) -> Result<Self, InvalidRequest> {
        if is_plain(&path) { Ok(make(path.into())) } else { Err(InvalidRequest::Upper(path)) }
    }
}

/// How a capsule appears at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The capsule alone.
    Ro,
    /// The capsule over what the target holds already.
    Union,
}

/// An attachment as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its id.
    pub id: AttachmentId,
    /// What to attach.
    pub content: Content,
    /// Where, in the container.
    pub target: ContainerPath,
    /// How.
    pub mode: Mode,
    /// Where writes go; none for an attachment that is read-only.
    #[serde(default)]
    pub upper: Option<UpperPlace>,
}

impl Spec {
    /// Validates what goes together.
    ///
    /// # Errors
    /// [`InvalidRequest::RoAtRoot`].
    pub fn new(
        id: AttachmentId,
        content: Content,
        target: ContainerPath,
        mode: Mode,
    ) -> Result<Self, InvalidRequest> {
        if mode == Mode::Ro && target.is_root() {
            return Err(InvalidRequest::RoAtRoot);
        }
        Ok(Self { id, content, target, mode, upper: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(version: &str, layers: &[&str]) -> Result<Content, InvalidRequest> {
        let layers = layers.iter().map(|l| (*l).to_owned()).collect();
        Content::new("tz".into(), version.into(), String::new(), layers)
    }

    #[test]
    fn contents_are_validated() {
        assert_eq!(content("1", &["/a", "/b c:d"]).unwrap().source(), "capsule:tz@1");
        for bad in [&["a"][..], &["/a/../b"], &["/a\0"], &[]] {
            assert!(content("1", bad).is_err(), "{bad:?}");
        }
        assert!(content("", &["/a"]).is_err() && content("a\nb", &["/a"]).is_err());
        let env = |entry: &str| content("1", &["/a"]).unwrap().with_env(vec![entry.to_owned()]);
        assert_eq!(env("A=b=c\nd").unwrap().env, ["A=b=c\nd"]);
        assert!(env("=a").is_err() && env("A").is_err() && env("A=\0").is_err());
    }

    #[test]
    fn a_long_name_makes_no_source_that_the_kernel_refuses() {
        let source = content(&"ü".repeat(300), &["/a"]).unwrap().source();
        assert!(source.len() <= MAX_SOURCE && source.starts_with("capsule:tz@ü"));
    }

    #[test]
    fn ro_at_the_root_is_refused() {
        let spec = |mode| {
            let id = AttachmentId::parse("x".into()).unwrap();
            Spec::new(id, content("1", &["/a"]).unwrap(), ContainerPath::parse("/").unwrap(), mode)
        };
        assert_eq!(spec(Mode::Ro).unwrap_err(), InvalidRequest::RoAtRoot);
        assert!(spec(Mode::Union).is_ok());
    }
}
