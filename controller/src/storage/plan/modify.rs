//! Other versions in volumes that are there, by the VolumeAttributesClass of their claims: as external-resizer does it for other drivers. It
//! is said before it is done; whatever is mounted meanwhile has the new version, so nodes are told after the PersistentVolume is.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{Facts, Note, Plan, Write};
use crate::{
    api::{VolumeDone, VolumeState, VolumeWanted, at},
    storage::{
        VERSION,
        parameters::version_of,
        slim::{Claim, Modifying, Phase, Volume},
    },
};

/// The conditions of a claim whose volume is being modified, and where that is not possible.
pub const CONDITIONS: [&str; 2] = [MODIFYING, ERROR];
const MODIFYING: &str = "ModifyingVolume";
const ERROR: &str = "ModifyVolumeError";
const ACTION: &str = "Modify";

/// Plans for all claims, then for all volumes that have another version than they were made with.
pub fn plan(facts: &Facts<'_>, plan: &mut Plan) {
    let mut moving = BTreeSet::new();
    for claim in facts.claims.values() {
        let volume = facts.volumes.get(&*claim.volume).filter(|volume| is_of(volume, claim));
        moving.extend(
            volume.filter(|volume| modify(claim, volume, facts, plan)).map(|volume| volume.name_any()),
        );
    }
    for (name, volume) in facts.volumes.iter().filter(|(_, volume)| volume.contract.is_none()) {
        let is_modified = volume.modifier.is_some() || moving.contains(*name);
        let Some(version) = volume.version.as_deref() else { continue };
        for (node, said) in with_volume(volume, facts) {
            let is_begun =
                facts.told(node, &volume.handle).is_some() && !has(node, said, version, volume, facts);
            let is_there = said.is_some() || volume.node.is_none();
            if (is_modified || is_begun) && is_there && !plan.has(node, &volume.handle) {
                plan.want(node, wanted(volume, version));
            }
        }
    }
}

fn is_of(volume: &Volume, claim: &Claim) -> bool {
    let is_same = |of: &crate::storage::slim::ClaimRef| of.uid.as_deref() == claim.uid().as_deref();
    volume.phase == Phase::Bound && volume.claim.as_ref().is_some_and(is_same)
}

/// The nodes that have it mounted, by what they say, and those with pods that mount it, which may have done so since; where it is written to,
/// the one that has it.
fn with_volume<'a>(volume: &'a Volume, facts: &'a Facts<'_>) -> Vec<(&'a str, Option<&'a VolumeDone>)> {
    match volume.node.as_deref() {
        Some(node) => vec![(node, facts.said(node, &volume.handle))],
        None => {
            let mounted = facts.having(&volume.handle).filter(|(_, said)| said.mounts > 0);
            let claim = volume.claim.as_ref().map(|claim| (&*claim.namespace, &*claim.name));
            let users = claim.and_then(|claim| facts.users.get(&claim)).into_iter().flatten();
            let nodes: BTreeSet<&str> = mounted.map(|(node, _)| node).chain(users.copied()).collect();
            nodes.into_iter().map(|node| (node, facts.said(node, &volume.handle))).collect()
        }
    }
}

/// Whether a node has it in this version; where it is only read and not mounted, whether the node has looked since it was told: who mounts it
/// from then on has the version that the PersistentVolume says.
fn has(node: &str, said: Option<&VolumeDone>, version: &str, volume: &Volume, facts: &Facts<'_>) -> bool {
    match said {
        Some(said) => said.state == VolumeState::Made && said.asked.as_deref() == Some(version),
        None => {
            let told = facts.told(node, &volume.handle).and_then(|told| told.version.as_deref());
            volume.node.is_none() && told == Some(version) && facts.is_fresh(node)
        }
    }
}

fn wanted(volume: &Volume, version: &str) -> VolumeWanted {
    VolumeWanted {
        id: volume.handle.to_string(),
        capsule: volume.attributes.get("capsule").cloned(),
        version: Some(version.to_owned()),
        mode: volume.mode(),
        size: None,
        owner: None,
        permissions: None,
        goes: false,
    }
}

/// Why a volume has not what its claim asks for.
enum Problem {
    /// Something may come that makes it possible.
    Pending(String),
    /// It is not possible.
    Infeasible(String),
}

/// Goes on with one; whether nodes are to have the version that the volume says now.
fn modify(claim: &Claim, volume: &Volume, facts: &Facts<'_>, plan: &mut Plan) -> bool {
    let Some(target) = claim.target.as_deref().filter(|target| Some(*target) != claim.current.as_deref())
    else {
        return claim.modifying.is_some() && take_back(claim, volume, facts, plan);
    };
    let version = match asked(target, volume, facts) {
        Ok(version) => version,
        Err(Problem::Pending(why)) => {
            say(claim, target, "Pending", Some(why), facts, plan);
            return false;
        }
        Err(Problem::Infeasible(why)) => {
            say(claim, target, "Infeasible", Some(why), facts, plan);
            return false;
        }
    };
    let is_begun =
        claim.modifying.as_ref().is_some_and(|one| (&*one.status, &*one.target) == ("InProgress", target));
    if volume.version.as_deref() != Some(version.as_str()) {
        say(claim, target, "InProgress", None, facts, plan);
        if is_begun {
            plan.patch(volume, json!({ "metadata": { "annotations": { VERSION: version } } }));
        }
        return false;
    }
    let is_left = |(node, said): &(&str, Option<&VolumeDone>)| !has(node, *said, &version, volume, facts);
    match with_volume(volume, facts).into_iter().find(is_left) {
        Some((node, said)) => {
            let of_now = said.filter(|said| said.asked.as_deref() == Some(version.as_str()));
            let why = of_now.and_then(|said| said.message.as_deref());
            say(claim, target, "InProgress", why.map(|why| format!("the node {node}: {why}")), facts, plan);
        }
        None if volume.modifier.as_deref() != Some(target) => {
            plan.patch(volume, json!({ "spec": { "volumeAttributesClassName": target } }));
        }
        None => {
            let said = format!("it has the VolumeAttributesClass {target}, version {version}");
            let note = Note::good(claim, ACTION, "VolumeModifySuccessful", said);
            let status = json!({ "currentVolumeAttributesClassName": target });
            plan.writes.push(write(claim, status, Some(note)));
        }
    }
    true
}

/// The version that a volume is asked to have.
fn asked(target: &str, volume: &Volume, facts: &Facts<'_>) -> Result<String, Problem> {
    if let Some(contract) = &volume.contract {
        return Err(Problem::Infeasible(format!("its version is what the StorageContract {contract} says")));
    }
    if !volume.attributes.contains_key("capsule") {
        return Err(Problem::Infeasible("a directory that is no capsule's has no version".to_owned()));
    }
    let class = facts.modifiers.get(target);
    let class =
        class.ok_or_else(|| Problem::Pending(format!("there is no VolumeAttributesClass {target}")))?;
    version_of(target, class).map_err(Problem::Infeasible)
}

/// Nobody asks for it any more: the volume has the version that it had before, then nothing more is said. Whether that is still to come: until
/// then nodes are told what they were, so that it is known which of them have to go back.
fn take_back(claim: &Claim, volume: &Volume, facts: &Facts<'_>, plan: &mut Plan) -> bool {
    let modifier = claim.current.as_deref().and_then(|name| Some((name, facts.modifiers.get(name)?)));
    let before = modifier.and_then(|(name, class)| version_of(name, class).ok());
    let before = before.or_else(|| volume.attributes.get("version").cloned());
    // Where the class that it has is gone, what it was is not known.
    let is_known = claim.current.is_none() || modifier.is_some();
    if is_known && volume.contract.is_none() && volume.version.as_deref() != before.as_deref() {
        plan.patch(volume, json!({ "metadata": { "annotations": { VERSION: before } } }));
        return true;
    }
    let mut status = json!({});
    if let Some(current) = &claim.current {
        status["currentVolumeAttributesClassName"] = json!(current);
    }
    plan.writes.push(write(claim, status, None));
    false
}

/// Says how far it is, unless it is said.
fn say(claim: &Claim, target: &str, status: &str, why: Option<String>, facts: &Facts<'_>, plan: &mut Plan) {
    let message = why.clone().unwrap_or_else(|| format!("it gets the VolumeAttributesClass {target}"));
    let said =
        Modifying { status: status.into(), target: target.into(), message: Some(message.as_str().into()) };
    if claim.modifying.as_ref() == Some(&said) {
        return;
    }
    let is_bad = why.is_some();
    let (kind, reason) = if is_bad { (ERROR, "VolumeModifyFailed") } else { (MODIFYING, "VolumeModify") };
    let Time(now) = at(facts.now);
    let mut all = json!({
        "modifyVolumeStatus": { "status": status, "targetVolumeAttributesClassName": target },
        "conditions": [{
            "type": kind, "status": "True", "reason": status, "message": message, "lastTransitionTime": now.to_string(),
        }],
    });
    if let Some(current) = &claim.current {
        all["currentVolumeAttributesClassName"] = json!(current);
    }
    let note = Note { is_bad, ..Note::good(claim, ACTION, reason, message) };
    plan.writes.push(write(claim, all, Some(note)));
}

fn write(claim: &Claim, status: Value, note: Option<Note>) -> Write {
    Write::Claim {
        namespace: claim.namespace().unwrap_or_default(),
        name: claim.name_any(),
        version: claim.resource_version(),
        status,
        note,
    }
}
