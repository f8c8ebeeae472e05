//! `CapsuleRollout`: another version for the pods of a `CapsuleAttachment`, in steps.

use k8s_openapi::{
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attachment::VERSION;
use super::pieces::HealthCheck;

/// Pods of a CapsuleAttachment get another version, some after the other, and the one before again where that is not well. No pod is restarted.
/// When all have it, it is the CapsuleAttachment's version. Deleted before that, all have again what the CapsuleAttachment says.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "resourcecapsules.io",
    version = "v1alpha1",
    kind = "CapsuleRollout",
    namespaced,
    status = "CapsuleRolloutStatus",
    derive = "PartialEq",
    shortname = "croll",
    category = "capsules",
    printcolumn = r#"{"name":"Attachment", "type":"string", "jsonPath":".spec.attachment"}"#,
    printcolumn = r#"{"name":"Version", "type":"string", "jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"Phase", "type":"string", "jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Step", "type":"integer", "jsonPath":".status.step"}"#,
    printcolumn = r#"{"name":"Updated", "type":"integer", "jsonPath":".status.updated"}"#,
    printcolumn = r#"{"name":"Pods", "type":"integer", "jsonPath":".status.pods"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("self.attachment == oldSelf.attachment && self.version == oldSelf.version")
        .message("attachment and version cannot change: make another CapsuleRollout")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapsuleRolloutSpec {
    /// The CapsuleAttachment, of the same namespace. It has to have a version.
    #[schemars(length(min = 1, max = 253))]
    pub attachment: String,
    /// The version that its pods get, or a tag of it, or a range, as of a CapsuleAttachment.
    #[schemars(length(min = 1, max = 128), regex(pattern = VERSION))]
    pub version: String,
    /// One after the other; all pods have it after the last in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub steps: Vec<Step>,
    /// How many of its pods may be on their way to it, or not well with it, at once: a number, or a percentage of them (rounded down, and at least one).
    #[serde(default = "one")]
    #[schemars(extend("minimum" = 1, "maximum" = 1_000_000, "nullable" = false, "pattern" = "^([1-9][0-9]?|100)%$"))]
    pub max_unavailable: IntOrString,
    /// What is to be so of a pod that has it.
    #[serde(default)]
    pub health: Health,
    /// How long, in seconds, until it counts as failed that nothing gets on.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 1, max = 604_800))]
    pub progress_deadline_seconds: i32,
    /// What is done when it fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// No more pods get it for now. Those that have it are looked after.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// How many of the steps with `approval` may be left.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 32))]
    pub approved: i32,
}

/// How far the rollout is to get, and how long it stays there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// How many pods have it: a number, or a percentage of them (rounded up).
    #[schemars(extend("minimum" = 1, "maximum" = 1_000_000, "nullable" = false, "pattern" = "^([1-9][0-9]?|100)%$"))]
    pub pods: IntOrString,
    /// For how long, in seconds, all of them have been well before the next step.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 604_800))]
    pub pause_seconds: i32,
    /// The next step is taken when somebody has approved it: `spec.approved` counts such steps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    /// The pod is ready, as its readiness probes say it.
    #[serde(default = "yes")]
    pub readiness: bool,
    /// For how long, in seconds, a pod has it before it counts as well: long enough for its probes to fail.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 86_400))]
    pub settle_seconds: i32,
    /// For how long, in seconds, one that has it may not be ready.
    #[serde(default = "half_a_minute")]
    #[schemars(range(min = 0, max = 86_400))]
    pub unready_seconds: i32,
    /// A command that is run in each container when it has the version. If it fails, that container has the one before again, at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<HealthCheck>,
    /// A question to the Prometheus that the controller was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Query>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            readiness: true,
            settle_seconds: ten(),
            unready_seconds: half_a_minute(),
            exec: None,
            prometheus: None,
        }
    }
}

/// A question in Prometheus' language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Query {
    /// All is well when it has an answer: `sum(rate(errors[1m])) < 0.1`.
    #[schemars(length(min = 1, max = 1024))]
    pub query: String,
    /// How often it may have none, one time after the other, ten seconds between them.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 1000))]
    pub tolerated: i32,
}

/// See [`CapsuleRolloutSpec::on_failure`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// All pods have the version before again.
    #[default]
    RollBack,
    /// What has it keeps it, and no more gets it, until the rollout is deleted.
    Stop,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapsuleRolloutStatus {
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is.
    #[serde(default)]
    pub phase: Phase,
    /// The version that pods had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The step that it is at, from 1; one more than there are steps is the last, with all pods.
    #[serde(default)]
    pub step: i32,
    /// The pods there are.
    #[serde(default)]
    pub pods: i32,
    /// Those of them that have it in all containers.
    #[serde(default)]
    pub updated: i32,
    /// Those of them that are well.
    #[serde(default)]
    pub healthy: i32,
    /// Since when it is at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub stepped_at: Option<Time>,
    /// Since when this many pods are well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub progressed_at: Option<Time>,
    /// Since when no more pods were told to have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub moved_at: Option<Time>,
    /// When the query had an answer last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub answered_at: Option<Time>,
    /// Since when all that the step wants have it and are well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub settled_at: Option<Time>,
    /// How often the query had no answer, one time after the other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unanswered: i32,
    /// `Complete`: true when all have it; false for the reason that the phase has.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It has not begun.
    #[default]
    Pending,
    /// Pods get it.
    Progressing,
    /// It waits: for somebody who has paused it, or is to approve a step.
    Paused,
    /// It has failed, and all get the version before.
    RollingBack,
    /// They have it.
    RolledBack,
    /// It has failed, and is left as it is.
    Stopped,
    /// All have it.
    Succeeded,
    /// The CapsuleAttachment was given another version, which counts.
    Superseded,
}

impl Phase {
    /// Whether nothing more happens.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::RolledBack | Self::Succeeded | Self::Superseded)
    }
}

/// A time as the API has it: whole seconds.
#[must_use]
pub fn at(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn yes() -> bool {
    true
}

fn one() -> IntOrString {
    IntOrString::Int(1)
}

fn two() -> i32 {
    2
}

fn ten() -> i32 {
    10
}

fn half_a_minute() -> i32 {
    30
}

fn ten_minutes() -> i32 {
    600
}
