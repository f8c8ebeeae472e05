//! Contracts: what is to be there for each of their directories. Nothing that is planned here removes what was written.
//!
//! A directory is made by its node when there is no PersistentVolume of it yet. Where there is one and the node has no such directory, it is
//! lost, and is said to be: an empty one in its place would be taken for the data.

mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeSpec},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use self::status::Looked;
use super::{Facts, Note, Plan, Write, provision::source};
use crate::{
    api::{Claimant, Directory, StorageContract, VolumeMode, VolumeState, VolumeWanted},
    storage::{
        CONTRACT, DRIVER,
        parameters::Parameters,
        quantity::bytes,
        slim::{Phase, Volume},
    },
};

/// Plans for all contracts.
pub fn plan(facts: &Facts<'_>, plan: &mut Plan) {
    let mut made = BTreeSet::new();
    for contract in &facts.contracts {
        match (is_going(contract), is_held(contract)) {
            (true, true) => end(contract, facts, plan),
            (true, false) => {}
            (false, false) => plan.writes.push(Write::Hold(Arc::clone(contract), true, None)),
            (false, true) => {
                plan_classes(contract, facts, &mut made, plan);
                let looked = contract
                    .spec
                    .directories
                    .iter()
                    .map(|one| plan_directory(contract, one, facts, plan))
                    .collect();
                let unlisted = plan_unlisted(contract, facts, plan);
                status::plan(contract, looked, &unlisted, facts, plan);
            }
        }
    }
}

fn is_going(contract: &StorageContract) -> bool {
    contract.metadata.deletion_timestamp.is_some()
}

fn is_held(contract: &StorageContract) -> bool {
    contract.finalizers().iter().any(|one| one == CONTRACT)
}

/// The StorageClass of a directory.
fn class_of(contract: &StorageContract, directory: &Directory) -> String {
    let named = directory.storage_class_name.as_ref().or(contract.spec.storage_class_name.as_ref());
    named.cloned().unwrap_or_else(|| contract.name_any())
}

fn classes_of(contract: &StorageContract) -> BTreeSet<String> {
    contract.spec.directories.iter().map(|one| class_of(contract, one)).collect()
}

/// The PersistentVolume of a directory.
fn volume_name(contract: &StorageContract, path: &str) -> String {
    format!("{}-{path}", contract.name_any())
}

/// Whether a StorageClass was made for a contract.
fn is_made(class: &StorageClass) -> bool {
    class.provisioner == DRIVER && class.labels().contains_key(CONTRACT)
}

fn plan_classes(contract: &StorageContract, facts: &Facts<'_>, made: &mut BTreeSet<String>, plan: &mut Plan) {
    for name in classes_of(contract) {
        if facts.classes.contains_key(name.as_str()) || !made.insert(name.clone()) {
            continue;
        }
        let metadata =
            ObjectMeta { labels: Some(label(contract)), name: Some(name), ..ObjectMeta::default() };
        plan.writes.push(Write::CreateClass(Box::new(StorageClass {
            metadata,
            provisioner: DRIVER.to_owned(),
            reclaim_policy: Some("Retain".to_owned()),
            volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
            ..StorageClass::default()
        })));
    }
}

fn label(contract: &StorageContract) -> BTreeMap<String, String> {
    [(CONTRACT.to_owned(), contract.name_any())].into()
}

/// What is to be done for a directory, and how it is.
fn plan_directory<'a>(
    contract: &'a StorageContract,
    directory: &'a Directory,
    facts: &'a Facts<'_>,
    plan: &mut Plan,
) -> Looked<'a> {
    let node = contract.spec.node_name.as_str();
    let name = volume_name(contract, directory.path());
    let id = format!("{}/{}", contract.name_any(), directory.path());
    let there = facts.volumes.get(name.as_str()).copied();
    let said = facts.said(node, &id).filter(|_| facts.is_fresh(node));
    let looked = Looked { directory, name, there, said };
    let Some(volume) = there else {
        if bytes(&directory.size).is_none() {
            return looked;
        }
        plan.want(node, wanted(directory, id.clone()));
        if facts.is_made(node, &id) {
            plan.writes.push(create(contract, directory, id));
        }
        return looked;
    };
    if &*volume.handle != id.as_str() || volume.is_going() {
        return looked;
    }
    let has_version = directory.capsule.as_ref().is_some_and(|capsule| capsule.version.is_some());
    // It is there: it is only moved, where that is asked for.
    if has_version && facts.said(node, &id).is_some() {
        plan.want(node, wanted(directory, id));
    }
    if let Some(patch) = claim_of(volume, directory.claim.as_ref()) {
        plan.patch(volume, patch);
    }
    looked
}

fn wanted(directory: &Directory, id: String) -> VolumeWanted {
    VolumeWanted {
        id,
        capsule: directory.capsule.as_ref().map(|capsule| capsule.name.clone()),
        version: directory.capsule.as_ref().and_then(|capsule| capsule.version.clone()),
        mode: VolumeMode::Rw,
        size: bytes(&directory.size),
        owner: directory.owner,
        permissions: directory.permissions.clone(),
        goes: false,
    }
}

fn create(contract: &StorageContract, directory: &Directory, id: String) -> Write {
    let name = volume_name(contract, directory.path());
    let VolumeWanted { capsule, version, mode, size, owner, permissions, .. } = wanted(directory, id.clone());
    let attributes =
        Parameters { capsule, version, mode, owner, permissions }.attributes(size.unwrap_or_default());
    let spec = PersistentVolumeSpec {
        access_modes: Some(directory.access_modes.iter().map(|mode| format!("{mode:?}")).collect()),
        capacity: Some([("storage".to_owned(), Quantity(directory.size.clone()))].into()),
        claim_ref: directory.claim.as_ref().map(reference),
        persistent_volume_reclaim_policy: Some("Retain".to_owned()),
        storage_class_name: Some(class_of(contract, directory)),
        ..source(id, attributes, false, Some(&contract.spec.node_name))
    };
    let metadata =
        ObjectMeta { name: Some(name.clone()), labels: Some(label(contract)), ..ObjectMeta::default() };
    let volume = PersistentVolume { metadata, spec: Some(spec), status: None };
    let said = format!("the directory {} is the volume {name}", directory.name);
    Write::Create(Box::new(volume), Note::good(contract, "Provide", "DirectoryProvided", said))
}

fn reference(claim: &Claimant) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: Some(claim.namespace.clone()),
        name: Some(claim.name.clone()),
        ..ObjectReference::default()
    }
}

/// How a volume gets to the claim that it is for. One that no claim has is given to it; one whose claim is gone is given to the next of its
/// name, and of that name alone: to anybody else's claim the data is not promised.
fn claim_of(volume: &Volume, wanted: Option<&Claimant>) -> Option<Value> {
    let is_wanted = |of: &crate::storage::slim::ClaimRef| {
        wanted.is_some_and(|wanted| {
            (&*of.namespace, &*of.name) == (wanted.namespace.as_str(), wanted.name.as_str())
        })
    };
    let had = volume.claim.as_ref();
    match volume.phase {
        Phase::Released if had.is_some_and(is_wanted) => {
            Some(json!({ "spec": { "claimRef": { "uid": null, "resourceVersion": null } } }))
        }
        Phase::Available if had.is_none_or(|had| had.uid.is_none()) => {
            let is_so = had.map_or(wanted.is_none(), is_wanted);
            (!is_so).then(|| json!({ "spec": { "claimRef": wanted.map(reference) } }))
        }
        _ => None,
    }
}

/// Volumes of the contract whose directories are not listed any more: those that no claim has go, the others stay. All that stay.
fn plan_unlisted<'a>(contract: &StorageContract, facts: &Facts<'a>, plan: &mut Plan) -> Vec<&'a Volume> {
    let listed: BTreeSet<String> =
        contract.spec.directories.iter().map(|one| volume_name(contract, one.path())).collect();
    let of_contract = volumes_of(contract, facts);
    let (bound, free): (Vec<&Volume>, Vec<&Volume>) = of_contract
        .filter(|volume| !listed.contains(&volume.name_any()))
        .partition(|volume| volume.phase == Phase::Bound);
    plan.writes.extend(free.into_iter().filter(|volume| !volume.is_going()).map(delete));
    bound
}

fn volumes_of<'a>(contract: &StorageContract, facts: &Facts<'a>) -> impl Iterator<Item = &'a Volume> {
    let name = contract.name_any();
    let is_of = move |volume: &&'a Volume| volume.contract.as_deref() == Some(name.as_str());
    facts.volumes.values().copied().filter(is_of)
}

/// The object alone: it is Retained, and capsuled is not asked for anything.
fn delete(volume: &Volume) -> Write {
    Write::Delete { name: volume.name_any(), uid: volume.uid(), version: volume.resource_version() }
}

/// What is left of a contract that is deleted: volumes that claims have, and classes that others use.
fn end(contract: &Arc<StorageContract>, facts: &Facts<'_>, plan: &mut Plan) {
    let (bound, free): (Vec<&Volume>, Vec<&Volume>) =
        volumes_of(contract, facts).partition(|volume| volume.phase == Phase::Bound);
    let leaving: Vec<&Volume> = free.into_iter().filter(|volume| !volume.is_going()).collect();
    if !leaving.is_empty() {
        // Let go once they are seen to go.
        plan.writes.extend(leaving.into_iter().map(delete));
        return;
    }
    let others = facts.contracts.iter().filter(|other| !is_going(other));
    let used: BTreeSet<String> = others.flat_map(|other| classes_of(other)).collect();
    let kept: BTreeSet<&str> = bound.iter().map(|volume| &*volume.class).collect();
    for name in
        classes_of(contract).iter().filter(|name| !used.contains(*name) && !kept.contains(name.as_str()))
    {
        if let Some(class) = facts.classes.get(name.as_str()).filter(|class| is_made(class)) {
            plan.writes.push(Write::DeleteClass(name.clone(), class.uid()));
        }
    }
    let stay: Vec<String> = bound.iter().map(|volume| volume.name_any()).collect();
    let note = (!stay.is_empty()).then(|| {
        let said = format!(
            "claims have {}: these volumes and their StorageClasses stay, and the data of all",
            stay.join(", ")
        );
        Note::bad(contract.as_ref(), "Delete", "VolumesStay", said)
    });
    plan.writes.push(Write::Hold(Arc::clone(contract), false, note));
}

/// Whether a node has a directory, by what it says now.
fn is_lost(looked: &Looked<'_>, node: &str, facts: &Facts<'_>) -> bool {
    looked.there.is_some()
        && facts.is_fresh(node)
        && looked.said.is_none_or(|said| said.state == VolumeState::Removing)
}
