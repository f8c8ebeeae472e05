//! A PersistentVolume.

use std::collections::BTreeMap;

use k8s_openapi::{ClusterResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::ResourceExt as _;
use serde::Deserialize;

use super::{identity, resource};
use crate::{
    api::VolumeMode,
    storage::{CONTRACT, DRIVER, FINALIZER, PROVISIONED_BY, TOPOLOGY, VERSION},
};

/// See above.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Whole")]
pub struct Volume {
    metadata: ObjectMeta,
    /// It is of this driver.
    pub is_ours: bool,
    /// It was provisioned for a claim, by this driver.
    pub is_provisioned: bool,
    /// capsuled's name for it.
    pub handle: Box<str>,
    /// What its StorageClass said of it, or its contract.
    pub attributes: BTreeMap<String, String>,
    /// The node that has what is written to it.
    pub node: Option<Box<str>>,
    /// Where it is in its life.
    pub phase: Phase,
    /// The claim that has it, or is to have it.
    pub claim: Option<ClaimRef>,
    /// What is written goes with the claim.
    pub is_deleted: bool,
    /// Its StorageClass.
    pub class: Box<str>,
    /// Its VolumeAttributesClass.
    pub modifier: Option<Box<str>>,
    /// The version that it is to have now.
    pub version: Option<Box<str>>,
    /// The StorageContract that it is of.
    pub contract: Option<Box<str>>,
}

/// Where a PersistentVolume is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Phase {
    /// Nobody has looked at it yet.
    #[default]
    Pending,
    /// A claim can have it.
    Available,
    /// A claim has it.
    Bound,
    /// Its claim is gone.
    Released,
    /// Its claim is gone, and Kubernetes could not reclaim it.
    Failed,
}

/// A claim, as a volume names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClaimRef {
    /// Its namespace.
    #[serde(default)]
    pub namespace: Box<str>,
    /// Its name.
    #[serde(default)]
    pub name: Box<str>,
    /// Of all of its name, this one; any where there is none.
    #[serde(default)]
    pub uid: Option<Box<str>>,
}

impl Volume {
    /// Whether it is written to.
    pub fn is_written(&self) -> bool {
        self.mode() == VolumeMode::Rw
    }

    /// Whether it is written to.
    pub fn mode(&self) -> VolumeMode {
        let is_capsule = self.attributes.contains_key("capsule");
        let is_read = self.attributes.get("mode").map_or(is_capsule, |mode| mode == "ro");
        if is_read { VolumeMode::Ro } else { VolumeMode::Rw }
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether it stays until what was written is gone.
    pub fn is_held(&self) -> bool {
        self.finalizers().iter().any(|one| one == FINALIZER)
    }
}

#[derive(Deserialize)]
struct Whole {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    csi: Option<Source>,
    claim_ref: Option<ClaimRef>,
    node_affinity: Affinity,
    persistent_volume_reclaim_policy: Option<String>,
    storage_class_name: Box<str>,
    volume_attributes_class_name: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    driver: String,
    volume_handle: Box<str>,
    #[serde(default)]
    volume_attributes: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Affinity {
    required: Required,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Required {
    node_selector_terms: Vec<Term>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Term {
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    key: String,
    #[serde(default)]
    values: Vec<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<Phase>,
}

impl From<Whole> for Volume {
    fn from(Whole { metadata, spec, status }: Whole) -> Self {
        let (driver, handle, attributes) = spec.csi.map_or_else(Default::default, |source| {
            (source.driver, source.volume_handle, source.volume_attributes)
        });
        let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name));
        let label = |name: &str| metadata.labels.as_ref().and_then(|all| all.get(name));
        let terms = spec.node_affinity.required.node_selector_terms.into_iter();
        let mut expressions = terms.flat_map(|term| term.match_expressions);
        let node = expressions.find(|one| one.key == TOPOLOGY).and_then(|one| one.values.into_iter().next());
        Self {
            is_ours: driver == DRIVER,
            is_provisioned: annotation(PROVISIONED_BY).is_some_and(|who| who == DRIVER),
            handle,
            attributes,
            node,
            phase: status.phase.unwrap_or_default(),
            claim: spec.claim_ref,
            is_deleted: spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete"),
            class: spec.storage_class_name,
            modifier: spec.volume_attributes_class_name.filter(|name| !name.is_empty()),
            version: annotation(VERSION).filter(|text| !text.is_empty()).map(|text| text.as_str().into()),
            contract: label(CONTRACT).map(|text| text.as_str().into()),
            metadata: ObjectMeta { finalizers: metadata.finalizers.clone(), ..identity(metadata) },
        }
    }
}

resource!(Volume, ClusterResourceScope, "", "PersistentVolume", "persistentvolumes");
