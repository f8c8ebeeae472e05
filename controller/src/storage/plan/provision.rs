//! Volumes for claims. One that is only read is an object and nothing else; of one that is written to, its node makes the directory first.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            CSIPersistentVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            ObjectReference, PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::{Resource as _, ResourceExt as _};

use super::{Facts, Note, Plan, Write};
use crate::{
    api::{VolumeMode, VolumeState, VolumeWanted},
    storage::{
        CONTRACT, DRIVER, FINALIZER, PROVISIONED_BY, TOPOLOGY, VERSION,
        parameters::{Parameters, version_of},
        quantity::bytes,
        slim::Claim,
    },
};

const ACTION: &str = "Provision";
const FAILED: &str = "ProvisioningFailed";

/// Why a claim has no volume.
enum Refusal {
    /// It cannot have one as it is.
    Never(String),
    /// It cannot have one on the node that was chosen.
    NotHere(String),
    /// Something else comes first.
    NotYet,
}

/// What a claim is to have.
struct Demand<'a> {
    claim: &'a Claim,
    class: &'a StorageClass,
    parameters: Parameters,
    size: i64,
    /// The node that has what is written.
    node: Option<&'a str>,
}

/// Plans for all claims.
pub fn plan(facts: &Facts<'_>, plan: &mut Plan) {
    let asked = facts.claims.values().filter(|claim| claim.is_asked && claim.volume.is_empty());
    for claim in asked.filter(|claim| claim.meta().deletion_timestamp.is_none()) {
        if facts.volumes.contains_key(volume_name(claim).as_str()) {
            continue;
        }
        match demand(claim, facts).and_then(|demand| demand.go(facts, plan)) {
            Ok(()) | Err(Refusal::NotYet) => {}
            Err(Refusal::Never(why)) => plan.notes.push(Note::bad(*claim, ACTION, FAILED, why)),
            Err(Refusal::NotHere(why)) => plan.writes.push(reschedule(claim, why)),
        }
    }
}

/// The PersistentVolume of a claim.
pub fn volume_name(claim: &Claim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// What capsuled calls a claim's written volume.
pub fn written_id(claim: &Claim) -> String {
    format!("{}/{}", claim.namespace().unwrap_or_default(), volume_name(claim))
}

fn reschedule(claim: &Claim, why: String) -> Write {
    Write::Reschedule {
        namespace: claim.namespace().unwrap_or_default(),
        name: claim.name_any(),
        version: claim.resource_version(),
        note: Note::bad(claim, ACTION, FAILED, format!("{why}; the pod is scheduled anew")),
    }
}

fn demand<'a>(claim: &'a Claim, facts: &Facts<'a>) -> Result<Demand<'a>, Refusal> {
    let never = |why: String| Err(Refusal::Never(why));
    let Some(class) = facts.classes.get(&*claim.class).filter(|class| class.provisioner == DRIVER) else {
        return never(format!("there is no StorageClass {} of {DRIVER}", claim.class));
    };
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    if waits && claim.node.is_none() {
        return Err(Refusal::NotYet);
    }
    if let Some(contract) = class.labels().get(CONTRACT) {
        let why = format!(
            "no directory of the StorageClass {} is free for it: list one in the StorageContract {contract}, of its size and access modes",
            claim.class
        );
        return if waits { Err(Refusal::NotHere(why)) } else { never(why) };
    }
    let of_class = |why: String| Refusal::Never(format!("the StorageClass {}: {why}", claim.class));
    let mut parameters = Parameters::read(&class.parameters.clone().unwrap_or_default()).map_err(of_class)?;
    if let Some(capsule) = &parameters.capsule {
        // One that is not seen yet may say anything.
        let namespace = facts.namespaces.get(&*claim.namespace().unwrap_or_default());
        let namespace = namespace.ok_or(Refusal::NotYet)?;
        if let Some(why) = namespace.refuses(capsule) {
            return never(why);
        }
    }
    let other = class.mount_options.iter().flatten().find(|option| *option != "ro");
    if let Some(option) = other {
        return Err(of_class(format!("the mount option {option} is not ro, the only one there is")));
    }
    shape(claim, &parameters).map_err(Refusal::Never)?;
    if parameters.is_written() && claim.node.is_none() {
        return Err(of_class("its volumes are written to, and lie on the node of their pod: it needs volumeBindingMode WaitForFirstConsumer".to_owned()));
    }
    if let Some(name) = &claim.target {
        parameters.version = Some(modified(name, &parameters, facts).map_err(Refusal::Never)?);
    }
    let size = claim.size.as_deref().and_then(bytes);
    let Some(size) = size.filter(|size| *size > 0 || !parameters.is_written()) else {
        let asked = claim.size.as_deref().unwrap_or_default();
        return never(format!("resources.requests.storage, {asked:?}, is no size that a volume can have"));
    };
    let node = claim.node.as_deref().filter(|_| parameters.is_written());
    Ok(Demand { claim, class, parameters, size, node })
}

/// Whether a volume can be of the form that a claim asks for.
fn shape(claim: &Claim, parameters: &Parameters) -> Result<(), String> {
    if claim.is_block {
        return Err("volumeMode Block: there are directories alone, Filesystem".to_owned());
    }
    if claim.has_source {
        return Err("dataSource: volumes are not filled from others; a capsule is named by the StorageClass"
            .to_owned());
    }
    if claim.has_selector {
        return Err("selector: a volume that is made for a claim has no labels to choose by".to_owned());
    }
    let (possible, why): (&[&str], _) = if parameters.is_written() {
        (&["ReadWriteOnce", "ReadWriteOncePod"], "what is written lies on one node")
    } else {
        (&["ReadOnlyMany"], "it is a capsule, which is only read")
    };
    let other = claim.access_modes.iter().find(|mode| !possible.contains(&&***mode));
    match other {
        Some(mode) => Err(format!("accessModes has {mode}: {why}, so it is {}", possible.join(" or "))),
        None => Ok(()),
    }
}

/// The version that a claim's VolumeAttributesClass says.
fn modified(name: &str, parameters: &Parameters, facts: &Facts<'_>) -> Result<String, String> {
    if parameters.capsule.is_none() {
        return Err(format!(
            "volumeAttributesClassName {name}: a directory that is no capsule's has no version"
        ));
    }
    let class =
        facts.modifiers.get(name).ok_or_else(|| format!("there is no VolumeAttributesClass {name}"))?;
    version_of(name, class)
}

impl Demand<'_> {
    /// Has the node make it, or makes the object.
    fn go(&self, facts: &Facts<'_>, plan: &mut Plan) -> Result<(), Refusal> {
        let Some(node) = self.node else {
            plan.writes.push(self.create());
            return Ok(());
        };
        let id = written_id(self.claim);
        match facts.machines.get(node) {
            None => return Err(Refusal::NotHere(format!("there is no node {node} any more"))),
            Some(false) => {
                return Err(Refusal::NotHere(format!(
                    "the node {node} has no {DRIVER}: is capsuled's DaemonSet on it?"
                )));
            }
            Some(true) => {}
        }
        if facts.is_made(node, &id) {
            plan.writes.push(self.create());
        }
        let said =
            facts.said(node, &id).filter(|said| said.state == VolumeState::Failed && facts.is_fresh(node));
        if let Some(said) = said {
            let why = said.message.as_deref().unwrap_or("it does not say why");
            let why = format!("the node {node} could not make it: {why}");
            if said.full {
                return Err(Refusal::NotHere(why));
            }
            plan.notes.push(Note::bad(self.claim, ACTION, FAILED, why));
        }
        plan.want(node, self.wanted(id));
        Ok(())
    }

    fn wanted(&self, id: String) -> VolumeWanted {
        let Parameters { capsule, version, owner, permissions, .. } = self.parameters.clone();
        let (mode, size) = (VolumeMode::Rw, Some(self.size));
        VolumeWanted { id, capsule, version, mode, size, owner, permissions, goes: false }
    }

    fn create(&self) -> Write {
        let name = volume_name(self.claim);
        let handle = if self.node.is_some() { written_id(self.claim) } else { name.clone() };
        let mut annotations = BTreeMap::from([(PROVISIONED_BY.to_owned(), DRIVER.to_owned())]);
        annotations.extend(self.parameters.version.clone().map(|version| (VERSION.to_owned(), version)));
        let size = self.claim.size.as_deref().unwrap_or("0").to_owned();
        let spec = PersistentVolumeSpec {
            access_modes: Some(self.claim.access_modes.iter().map(ToString::to_string).collect()),
            capacity: Some([("storage".to_owned(), Quantity(size))].into()),
            claim_ref: Some(claim_ref(self.claim)),
            mount_options: self.class.mount_options.clone(),
            persistent_volume_reclaim_policy: self.class.reclaim_policy.clone(),
            storage_class_name: Some(self.claim.class.to_string()),
            volume_attributes_class_name: self.claim.target.as_deref().map(str::to_owned),
            ..source(handle, self.parameters.attributes(self.size), !self.parameters.is_written(), self.node)
        };
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations),
            finalizers: self.node.map(|_| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        };
        let volume = PersistentVolume { metadata, spec: Some(spec), status: None };
        let note =
            Note::good(self.claim, ACTION, "ProvisioningSucceeded", format!("it has the volume {name}"));
        Write::Create(Box::new(volume), note)
    }
}

fn claim_ref(claim: &Claim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.namespace(),
        name: Some(claim.name_any()),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        ..ObjectReference::default()
    }
}

/// What mounts a volume, and where: anywhere, when there is no node.
pub fn source(
    volume_handle: String,
    attributes: BTreeMap<String, String>,
    is_read: bool,
    node: Option<&str>,
) -> PersistentVolumeSpec {
    let of_node = |node: &str| NodeSelectorRequirement {
        key: TOPOLOGY.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = |node| NodeSelectorTerm { match_expressions: Some(vec![of_node(node)]), match_fields: None };
    PersistentVolumeSpec {
        csi: Some(CSIPersistentVolumeSource {
            driver: DRIVER.to_owned(),
            volume_handle,
            read_only: is_read.then_some(true),
            volume_attributes: Some(attributes),
            ..CSIPersistentVolumeSource::default()
        }),
        node_affinity: node.map(|node| VolumeNodeAffinity {
            required: Some(NodeSelector { node_selector_terms: vec![term(node)] }),
        }),
        volume_mode: Some("Filesystem".to_owned()),
        ..PersistentVolumeSpec::default()
    }
}
