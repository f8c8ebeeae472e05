//! Volumes of a node, as `NodeCapsules` names them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the node is to do about a volume: make it, have another version in it, or remove it. Of a volume that is as it should be nothing is
/// said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeWanted {
    /// capsuled's name for it, `[STACK/]NAME`.
    pub id: String,
    /// The capsule; none for a directory that is no capsule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capsule: Option<String>,
    /// The version, or a tag of it. None: when it is made the newest, and then any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it is written to.
    pub mode: VolumeMode,
    /// Bytes that it can hold, of one that is written to; the node's default when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Whose its root is, when it is made; as in the capsule, and root's, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<VolumeOwner>,
    /// Its root's mode, when it is made, in octal; as in the capsule, and 0755, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// It is to be removed, with what was written to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes: bool,
}

/// Whether a volume is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeMode {
    /// It is only read.
    Ro,
    /// It is written to, and what is written is kept until it is removed.
    Rw,
}

/// Whose the root of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeOwner {
    /// The user, by number.
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub user: i64,
    /// The group, by number.
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub group: i64,
}

/// How a volume is that the node has, or could not make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeDone {
    /// As of the spec.
    pub id: String,
    /// How far.
    pub state: VolumeState,
    /// The version that was asked for when this was so; none where any is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// The version that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The digest of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// At how many paths of the node it is mounted.
    #[serde(default)]
    pub mounts: i32,
    /// It could not be made because the node has no room for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Why it is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`VolumeDone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum VolumeState {
    /// It is there, as it should be.
    Made,
    /// It cannot be as it should be; it is tried again.
    Failed,
    /// It is there and is to go.
    Removing,
}
