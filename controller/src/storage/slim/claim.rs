//! A PersistentVolumeClaim.

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::{identity, resource};
use crate::storage::{CONDITIONS, DRIVER, SELECTED_NODE};

/// Who is to provision it, by Kubernetes' controller of volumes: once no volume that is there suits.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// What `spec.storageClassName` was called once; it counts still.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// See above.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Whole")]
pub struct Claim {
    metadata: ObjectMeta,
    /// It is this driver's to provision.
    pub is_asked: bool,
    /// The node that the scheduler has chosen.
    pub node: Option<Box<str>>,
    /// Its StorageClass.
    pub class: Box<str>,
    /// `ReadWriteOnce`, and so on.
    pub access_modes: Box<[Box<str>]>,
    /// How much it asks for.
    pub size: Option<Box<str>>,
    /// `Filesystem`, or not.
    pub is_block: bool,
    /// It is to be filled from something.
    pub has_source: bool,
    /// It chooses volumes by labels.
    pub has_selector: bool,
    /// The volume that it has; empty where it has none.
    pub volume: Box<str>,
    /// The VolumeAttributesClass that it is to have.
    pub target: Option<Box<str>>,
    /// The one that it has.
    pub current: Option<Box<str>>,
    /// How far it is on the way from this to that.
    pub modifying: Option<Modifying>,
}

/// What a claim says of a modification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modifying {
    /// `Pending`, `InProgress` or `Infeasible`.
    pub status: Box<str>,
    /// The class that it is to have.
    pub target: Box<str>,
    /// Why it is not there yet, as its condition says it.
    pub message: Option<Box<str>>,
}

impl Claim {
    /// Whether it is of use: it is to be provisioned, or it has a class of attributes.
    pub fn is_of_use(&self) -> bool {
        self.is_asked || self.target.is_some() || self.modifying.is_some()
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
    storage_class_name: Option<Box<str>>,
    access_modes: Vec<Box<str>>,
    resources: Resources,
    volume_mode: Option<Box<str>>,
    data_source: Option<serde::de::IgnoredAny>,
    data_source_ref: Option<serde::de::IgnoredAny>,
    selector: Option<serde::de::IgnoredAny>,
    volume_name: Box<str>,
    volume_attributes_class_name: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: Requests,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requests {
    storage: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    current_volume_attributes_class_name: Option<Box<str>>,
    modify_volume_status: Option<ModifyStatus>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModifyStatus {
    status: Box<str>,
    #[serde(default)]
    target_volume_attributes_class_name: Box<str>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    #[serde(default)]
    message: Box<str>,
}

impl From<Whole> for Claim {
    fn from(Whole { metadata, spec, status }: Whole) -> Self {
        let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name));
        let some = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        let said = status.conditions.into_iter().find(|one| CONDITIONS.contains(&one.r#type.as_str()));
        let message = said.map(|one| one.message);
        Self {
            is_asked: PROVISIONER.iter().any(|name| annotation(name).is_some_and(|who| who == DRIVER)),
            node: annotation(SELECTED_NODE).filter(|node| !node.is_empty()).map(|node| node.as_str().into()),
            class: annotation(CLASS)
                .map(|class| class.as_str().into())
                .or(spec.storage_class_name)
                .unwrap_or_default(),
            access_modes: spec.access_modes.into(),
            size: spec.resources.requests.storage,
            is_block: spec.volume_mode.as_deref() == Some("Block"),
            has_source: spec.data_source.is_some() || spec.data_source_ref.is_some(),
            has_selector: spec.selector.is_some(),
            volume: spec.volume_name,
            target: some(spec.volume_attributes_class_name),
            current: some(status.current_volume_attributes_class_name),
            modifying: status.modify_volume_status.map(|one| Modifying {
                status: one.status,
                target: one.target_volume_attributes_class_name,
                message,
            }),
            metadata: identity(metadata),
        }
    }
}

resource!(Claim, NamespaceResourceScope, "", "PersistentVolumeClaim", "persistentvolumeclaims");

#[cfg(test)]
mod tests {
    use kube::{Resource as _, ResourceExt as _};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_of_use_is_kept() {
        let claim: Claim = serde_json::from_value(json!({
            "metadata": {
                "name": "db", "namespace": "shop", "uid": "u", "labels": { "app": "db" },
                "annotations": { SELECTED_NODE: "n", PROVISIONER[0]: DRIVER, "other": "long" },
            },
            "spec": {
                "storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "resources": { "requests": { "storage": "1Gi" } }, "volumeAttributesClassName": "", "dataSource": null,
            },
            "status": { "phase": "Pending" },
        }))
        .unwrap();
        assert_eq!(
            (claim.name_any().as_str(), &*claim.class, claim.node.as_deref()),
            ("db", "fast", Some("n"))
        );
        assert_eq!((claim.size.as_deref(), &*claim.access_modes[0]), (Some("1Gi"), "ReadWriteOnce"));
        assert!(claim.is_asked && !claim.is_block && !claim.has_source && claim.target.is_none());
        assert!(claim.is_of_use() && claim.labels().is_empty() && claim.annotations().is_empty());
        assert_eq!(Claim::url_path(&(), Some("shop")), "/api/v1/namespaces/shop/persistentvolumeclaims");
        let other: Claim =
            serde_json::from_value(json!({ "metadata": { "name": "x" }, "spec": {} })).unwrap();
        assert!(!other.is_of_use() && other.volume.is_empty());
    }

    #[test]
    fn how_far_a_modification_is() {
        let claim: Claim = serde_json::from_value(json!({
            "metadata": { "name": "db" },
            "spec": { "volumeName": "pvc-u", "volumeAttributesClassName": "two" },
            "status": {
                "currentVolumeAttributesClassName": "one",
                "modifyVolumeStatus": { "status": "InProgress", "targetVolumeAttributesClassName": "two" },
                "conditions": [{ "type": "Resizing", "status": "True" }, { "type": "ModifyingVolume", "status": "True", "message": "why" }],
            },
        }))
        .unwrap();
        let modifying = claim.modifying.unwrap();
        assert_eq!((&*modifying.status, &*modifying.target), ("InProgress", "two"));
        assert_eq!((modifying.message.as_deref(), claim.current.as_deref()), (Some("why"), Some("one")));
    }
}
