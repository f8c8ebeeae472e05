//! A pod, as far as it is of use here. A cluster has 100,000 of them, and a `Pod` of the API takes 6 KB where nothing is set.

use std::borrow::Cow;

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::Resource;
use serde::Deserialize;

/// See above.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Whole")]
pub struct Pod {
    metadata: ObjectMeta,
    /// The node that it is on; empty where it is on none.
    pub node: Box<str>,
    /// Its containers, but for init and ephemeral ones.
    pub containers: Box<[Box<str>]>,
    /// The claims whose volumes it mounts.
    pub claims: Box<[Box<str>]>,
    /// It has ended.
    pub has_ended: bool,
    /// Since when it is not ready; none where it is.
    pub unready_since: Option<Timestamp>,
}

impl Pod {
    /// Whether it is on its way out.
    pub fn is_going(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}

impl AsRef<Self> for Pod {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// It as the API has it, without what is of no use.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: Box<str>,
    #[serde(default)]
    containers: Vec<Container>,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    #[serde(default)]
    name: Box<str>,
    persistent_volume_claim: Option<ClaimSource>,
    /// A claim is made for it, of the pod's name and its own.
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSource {
    claim_name: Box<str>,
}

#[derive(Deserialize)]
struct Container {
    name: Box<str>,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<Time>,
}

impl From<Whole> for Pod {
    fn from(Whole { metadata, spec, status }: Whole) -> Self {
        let metadata = ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            labels: metadata.labels,
            resource_version: metadata.resource_version,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            ..ObjectMeta::default()
        };
        let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
        // Where nobody has said that it is ready it is not since it was made.
        let since = ready
            .and_then(|ready| ready.last_transition_time.as_ref())
            .or(metadata.creation_timestamp.as_ref());
        let unready_since = since.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let name = metadata.name.clone().unwrap_or_default();
        let claims = spec.volumes.into_iter().filter_map(|volume| match volume.persistent_volume_claim {
            Some(claim) => Some(claim.claim_name),
            None => volume.ephemeral.map(|_| format!("{name}-{}", volume.name).into()),
        });
        Self {
            node: spec.node_name,
            containers: spec.containers.into_iter().map(|container| container.name).collect(),
            claims: claims.collect(),
            has_ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            unready_since: ready.is_none_or(|ready| ready.status != "True").then_some(unready_since),
            metadata,
        }
    }
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        <v1::Pod as Resource>::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        <v1::Pod as Resource>::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        <v1::Pod as Resource>::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        <v1::Pod as Resource>::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_of_use_is_kept() {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "uid": "u", "labels": { "app": "web" }, "annotations": { "a": "long" } },
            "spec": { "nodeName": "n", "containers": [{ "name": "app", "image": "i" }], "initContainers": [{ "name": "init" }] },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:09Z" },
                { "type": "Initialized", "status": "True", "lastTransitionTime": null },
            ] },
        }))
        .unwrap();
        assert_eq!((pod.name_any().as_str(), &*pod.node, pod.labels()["app"].as_str()), ("web", "n", "web"));
        assert_eq!(pod.containers.iter().map(|name| &**name).collect::<Vec<_>>(), ["app"]);
        assert_eq!(pod.unready_since, Timestamp::from_second(9).ok());
        assert!(!pod.has_ended && !pod.is_going() && pod.annotations().is_empty());
        let new: Pod = serde_json::from_value(json!({ "metadata": { "name": "new" } })).unwrap();
        assert_eq!((&*new.node, new.unready_since), ("", Some(Timestamp::UNIX_EPOCH)));
        assert_eq!(<Pod as Resource>::url_path(&(), None), "/api/v1/pods");
    }
}
