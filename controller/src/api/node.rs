//! `NodeCapsules`: what the containers of one node are to have, and what they have. People need not look at it: it is how the
//! controller tells a node's agent, which sees this one object and no other node's.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pieces::{Mode, Resources};

/// What the containers of the node of this name are to have.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "resourcecapsules.io",
    version = "v1alpha1",
    kind = "NodeCapsules",
    plural = "nodecapsules",
    status = "NodeCapsulesStatus",
    derive = "PartialEq",
    derive = "Default",
    category = "capsules",
    printcolumn = r#"{"name":"Generation", "type":"integer", "jsonPath":".metadata.generation"}"#,
    printcolumn = r#"{"name":"Observed", "type":"integer", "jsonPath":".status.observedGeneration"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeCapsulesSpec {
    /// In the order of their keys: owner, pod, container.
    #[serde(default)]
    pub attachments: Vec<Assigned>,
}

/// One attachment that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    /// Who wants it.
    pub owner: Owner,
    /// In which pod.
    pub pod: PodRef,
    /// In which of its containers.
    pub container: String,
    /// The capsule.
    pub capsule: String,
    /// As of `CapsuleAttachment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// A `CapsuleAttachment`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Its namespace, which is the pod's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Of all of its name, this one.
    pub uid: String,
}

/// A pod of the owner's namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Of all of its name, this one.
    pub uid: String,
}

/// What the agent has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCapsulesStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One for each that is assigned, and for each that is still there and is to go.
    #[serde(default)]
    pub attachments: Vec<Done>,
}

/// How far an attachment is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// As of the spec.
    pub owner: Owner,
    /// Likewise.
    pub pod: PodRef,
    /// Likewise.
    pub container: String,
    /// Likewise.
    pub capsule: String,
    /// How far.
    pub state: State,
    /// The version that was asked for when this was so; none where any is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// The version that is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Somebody else had attached it before: it stays when its owner goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found: bool,
    /// Why it is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// It is there, in the version that is wanted.
    Attached,
    /// Its container does not run yet, or not any more.
    Waiting,
    /// It cannot be as it should be; it is tried again.
    Failed,
    /// It is there and is to go.
    Detaching,
}
