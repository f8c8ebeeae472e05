//! `Capsule`: which versions of a capsule nodes have before a pod asks for them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pieces::short;

/// Nodes fetch these versions of the capsule of this name, and know its channels.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "resourcecapsules.io",
    version = "v1alpha1",
    kind = "Capsule",
    status = "CapsuleStatus",
    derive = "PartialEq",
    category = "capsules",
    printcolumn = r#"{"name":"Image", "type":"string", "jsonPath":".spec.image"}"#,
    printcolumn = r#"{"name":"Nodes", "type":"integer", "jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Complete", "type":"integer", "jsonPath":".status.complete"}"#,
    printcolumn = r#"{"name":"Ready", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("!has(self.channels) || self.channels.all(name, self.channels[name] in self.versions && !(name in self.versions))")
        .message("a channel stands for one of the versions, and has the name of none")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapsuleSpec {
    /// The repository that has its images, `HOST[:PORT]/PATH`; their tags are the versions.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$")
    )]
    pub image: String,
    /// What nodes fetch.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub versions: Vec<String>,
    /// Names that move, each with the version that it stands for, as `stable`. Whoever asks for one has another version when it moves, at once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = short)]
    pub channels: BTreeMap<String, String>,
    /// Which nodes; all, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// What a version has to have before a node uses it for a `CapsuleAttachment`; nothing, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
    /// What becomes of versions that a node has fetched for this and that are not listed any more.
    #[serde(default)]
    pub retention: Retention,
}

/// Who has to have signed a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signatures {
    /// Public keys as PEM, as `cosign.pub` is: one of them.
    #[x_kube(validation = Rule::new("self.all(key, key.startsWith('-----BEGIN PUBLIC KEY-----'))").message("keys are public ones, as PEM: they begin with -----BEGIN PUBLIC KEY-----"))]
    #[schemars(length(min = 1, max = 8), inner(length(max = 1024)))]
    pub keys: Vec<String>,
}

/// See [`CapsuleSpec::retention`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Retention {
    /// They stay.
    #[default]
    Keep,
    /// They are removed once nothing on the node needs them.
    Remove,
}

/// What is so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapsuleStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The nodes that are to have it.
    #[serde(default)]
    pub nodes: i32,
    /// Those of them that have all versions and channels.
    #[serde(default)]
    pub complete: i32,
    /// `Ready`: they all do.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
