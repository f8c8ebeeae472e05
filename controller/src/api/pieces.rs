//! What several resources have in common.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How a capsule appears at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The capsule alone.
    Ro,
    /// The capsule over what the target holds already.
    Union,
}

/// What an attachment does to limits of its container, by the kernel's names (`memory.max`), amounts as people write them (`512MiB`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What it adds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = short)]
    pub grants: BTreeMap<String, String>,
    /// What a limit is not above while it is attached.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = short)]
    pub caps: BTreeMap<String, String>,
}

/// A command that is to succeed in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// The program and its arguments.
    #[schemars(length(min = 1, max = 16), inner(length(max = 1024)))]
    pub command: Vec<String>,
    /// How long, in seconds, until it succeeds: it is run again until then.
    #[serde(default = "half_a_minute")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: i32,
}

fn half_a_minute() -> i32 {
    30
}

/// Few entries, none of them long: what one namespace asks for is copied to nodes that others share.
pub fn short(schema: &mut Schema) {
    schema.insert("maxProperties".to_owned(), 16.into());
    schema.insert("additionalProperties".to_owned(), json!({ "type": "string", "maxLength": 128 }));
    let rule =
        json!([{ "rule": "self.all(name, size(name) <= 64)", "message": "names of 64 characters at most" }]);
    schema.insert("x-kubernetes-validations".to_owned(), rule);
}

/// A condition, with the time of its last change.
pub fn dated(condition: Condition, before: &[Condition]) -> Condition {
    let last =
        before.iter().find(|last| (&last.type_, &last.status) == (&condition.type_, &condition.status));
    match last {
        Some(last) => Condition { last_transition_time: last.last_transition_time.clone(), ..condition },
        None => condition,
    }
}
