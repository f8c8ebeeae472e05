//! `StorageContract`: directories of one node that outlive whoever uses them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::volume::VolumeOwner;

/// Directories of a node, in the stack of this name, each with a PersistentVolume. What is written to them stays, whatever becomes of pods,
/// claims, PersistentVolumes, this object and the cluster: the same contract in another cluster finds it again.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "resourcecapsules.io",
    version = "v1alpha1",
    kind = "StorageContract",
    status = "StorageContractStatus",
    derive = "PartialEq",
    shortname = "scontract",
    category = "capsules",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')")
        .message("its name is that of the stack: lower-case letters, digits and -, 63 at most"),
    printcolumn = r#"{"name":"Node", "type":"string", "jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"Directories", "type":"integer", "jsonPath":".status.wanted"}"#,
    printcolumn = r#"{"name":"Usable", "type":"integer", "jsonPath":".status.usable"}"#,
    printcolumn = r#"{"name":"Ready", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Ready\")].reason", "priority":1}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("self.nodeName == oldSelf.nodeName && has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("nodeName and storageClassName cannot change: the data is on that node. Delete the contract, which keeps the data, and make another")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageContractSpec {
    /// The node that has the directories.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// The StorageClass of the volumes, which is made when there is none; the contract's name when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// The directories.
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, (has(other.path) ? other.path : other.name) == (has(one.path) ? one.path : one.name)))").message("each directory has a path of its own"))]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub directories: Vec<Directory>,
}

/// One of them. A directory that is not listed any more keeps its data.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(has(self.path) ? self.path : self.name) == (has(oldSelf.path) ? oldSelf.path : oldSelf.name) && self.size == oldSelf.size && has(self.capsule) == has(oldSelf.capsule) && (!has(self.capsule) || self.capsule.name == oldSelf.capsule.name)")
        .message("path, size and capsule.name cannot change: list another directory, of another name and path"),
    validation = Rule::new("self.accessModes == oldSelf.accessModes && has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("accessModes and storageClassName cannot change: its PersistentVolume has them"),
    validation = Rule::new("!(has(self.path) ? self.path : self.name).startsWith('pvc-')")
        .message("paths that begin with pvc- are those of claims")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Directory {
    /// Its name in the contract.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Its name on the node, below the contract's; `name` when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub path: Option<String>,
    /// How much it can hold, as `10Gi`.
    #[schemars(length(max = 24), regex(pattern = r"^[1-9][0-9]*(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub size: String,
    /// How claims may use it. All of its pods are on one node, so it can be written by several.
    #[serde(default = "once")]
    #[x_kube(validation = Rule::new("size(self) == 1 || !('ReadWriteOncePod' in self)").message("ReadWriteOncePod stands alone"))]
    #[schemars(length(min = 1, max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub access_modes: Vec<AccessMode>,
    /// Another StorageClass than the contract's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// Whose it is when it is made; as in the capsule, and root's, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<VolumeOwner>,
    /// Its mode when it is made, in octal; as in the capsule, and 0755, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 5), regex(pattern = r"^0?[0-7]{3,4}$"))]
    pub permissions: Option<String>,
    /// A capsule that it lies over: what is written is kept here, and the capsule stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capsule: Option<Below>,
    /// The claim that it is for; any of the StorageClass when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claimant>,
}

impl Directory {
    /// Its name on the node.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(&self.name)
    }
}

/// How a claim uses a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// Pods of one node write to it.
    ReadWriteOnce,
    /// It is only read.
    ReadOnlyMany,
    /// All pods write to it.
    ReadWriteMany,
    /// One pod writes to it.
    ReadWriteOncePod,
}

/// The capsule below a directory.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Below {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"))]
    pub name: String,
    /// The version, or a tag of it; the newest that the node has when there is none. Another one is had when nothing has the directory mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub version: Option<String>,
}

/// A PersistentVolumeClaim.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claimant {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What is so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageContractStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many directories there are to be.
    #[serde(default)]
    pub wanted: i32,
    /// Those of them that a claim has or can have.
    #[serde(default)]
    pub usable: i32,
    /// `Ready`: all are usable. `StorageClasses`: they are as the contract makes them.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// One for each directory, in their order; then those that are not listed any more and whose PersistentVolume stays.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["volume"]))]
    pub directories: Vec<DirectoryStatus>,
}

/// How a directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryStatus {
    /// Its name in the contract; its path where it is not listed any more.
    pub name: String,
    /// Its PersistentVolume.
    pub volume: String,
    /// How far.
    pub state: DirectoryState,
    /// The claim that has it, or had it, `NAMESPACE/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Why it is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`DirectoryStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DirectoryState {
    /// It is being made.
    Pending,
    /// It could not be made; it is tried again.
    Failed,
    /// A claim can have it.
    Available,
    /// A claim has it.
    Bound,
    /// The claim that had it is gone.
    Released,
    /// It has a PersistentVolume, and the node does not have it any more.
    Lost,
    /// It is not listed any more.
    Unlisted,
}

fn once() -> Vec<AccessMode> {
    vec![AccessMode::ReadWriteOnce]
}
