//! `CapsuleAttachment`: a capsule for containers of the pods that a selector finds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::pieces::{Mode, Resources};

/// A name, or comparisons with names.
pub const VERSION: &str = r"^([A-Za-z0-9_][A-Za-z0-9_.-]*|(>=|<=|[><=^~]) *[A-Za-z0-9_][A-Za-z0-9_.-]*( *, *(>=|<=|[><=^~]) *[A-Za-z0-9_][A-Za-z0-9_.-]*)*)$";
/// By CDI's specification, "Kinds".
const DEVICE: &str = r"^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?=[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$";

/// Pods that match have the capsule, also those that run already; when this is deleted, or a pod does not match any more, it is detached.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "resourcecapsules.io",
    version = "v1alpha1",
    kind = "CapsuleAttachment",
    namespaced,
    status = "CapsuleAttachmentStatus",
    derive = "PartialEq",
    shortname = "catt",
    category = "capsules",
    printcolumn = r#"{"name":"Capsule", "type":"string", "jsonPath":".spec.capsule"}"#,
    printcolumn = r#"{"name":"Version", "type":"string", "jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"Wanted", "type":"integer", "jsonPath":".status.wanted"}"#,
    printcolumn = r#"{"name":"Attached", "type":"integer", "jsonPath":".status.attached"}"#,
    printcolumn = r#"{"name":"Ready", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("self.capsule == oldSelf.capsule && has(self.target) == has(oldSelf.target) && (!has(self.target) || self.target == oldSelf.target) && has(self.mode) == has(oldSelf.mode) && (!has(self.mode) || self.mode == oldSelf.mode) && has(self.devices) == has(oldSelf.devices) && (!has(self.devices) || self.devices == oldSelf.devices)")
        .message("capsule, target, mode and devices cannot change: make another CapsuleAttachment")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapsuleAttachmentSpec {
    /// Which pods of the namespace. An empty selector is all of them.
    pub pod_selector: LabelSelector,
    /// Which of their containers, by name; all, but for init and ephemeral containers, when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub containers: Vec<String>,
    /// The capsule.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"))]
    pub capsule: String,
    /// The version, a channel or another tag of it, or a range as `>=1.2, <2` or `^1.2`: the highest in it that the node has, also when a higher one comes. A change moves all pods at once. When there is none: the newest that the node has when it is attached, and nothing moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = VERSION))]
    pub version: Option<String>,
    /// Where it appears in the containers; the capsule's own target when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == '/' || self.matches('^(/[^/]+)+$') && !self.matches('/[.][.]?(/|$)')").message("an absolute path without //, . and .., and with no / at its end"))]
    #[schemars(length(min = 1, max = 4095))]
    pub target: Option<String>,
    /// The capsule's own mode, or ro, when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Devices that come with it and go with it, by their CDI names, `VENDOR/CLASS=NAME`. The node gives those alone that pods may name (`devices.pods_may_name` of config.toml).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128), regex(pattern = DEVICE)), extend("x-kubernetes-list-type" = "set"))]
    pub devices: Vec<String>,
    /// What it does to limits of the containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What is so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapsuleAttachmentStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Containers that are to have it.
    #[serde(default)]
    pub wanted: i32,
    /// Those of them that have it, in the version that is wanted.
    #[serde(default)]
    pub attached: i32,
    /// Those of them that cannot have it.
    #[serde(default)]
    pub failed: i32,
    /// `Ready`: all containers have it that are to. False for the reason `Detaching` while it is deleted.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
