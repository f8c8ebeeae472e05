//! `NodeCapsules`: what the containers of one node are to have, and what they have. People need not look at it: it is how the
//! controller tells a node's agent, which follows this one object and no other node's.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    capsule::Retention,
    pieces::{HealthCheck, Mode, Resources},
    volume::{VolumeDone, VolumeWanted},
};

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
    #[schemars(length(max = 5000))]
    pub attachments: Vec<Assigned>,
    /// What the node is to fetch, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub capsules: Vec<Wanted>,
    /// What the node is to do about volumes, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub volumes: Vec<VolumeWanted>,
}

/// A capsule that the node is to have: as of `Capsule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// As of `Capsule`.
    pub image: String,
    /// Likewise.
    pub versions: Vec<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub channels: BTreeMap<String, String>,
    /// Public keys, of which one has to have signed a version; none where it need not be signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// As of `Capsule`.
    #[serde(default)]
    pub retention: Retention,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What is to succeed when it was moved to this version; else it has the one before again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
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
    /// One for each version that is to be there, and for each that was fetched and is to go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capsules: Vec<Fetched>,
    /// One for each volume that capsuled has, but for ephemeral ones, and for each that it could not make, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeDone>,
}

/// How far a version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// The capsule.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How far.
    pub state: FetchState,
    /// The agent has fetched it, or is about to: it was not there before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// It is to go when nobody lists it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goes: bool,
    /// The channels that stand for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// Why it is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`Fetched`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FetchState {
    /// It is there.
    Present,
    /// It comes.
    Fetching,
    /// It could not be fetched; it is tried again.
    Failed,
    /// It is there and is to go.
    Removing,
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
    /// Since when it is in this state with this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub since: Option<Time>,
    /// The version that is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Those of its devices that came with it, or are about to: they go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
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
