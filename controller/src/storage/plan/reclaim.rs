//! Volumes whose claim is gone, and what was begun for claims that are gone. What was written is removed by its node first; where that is not
//! certain to be nobody's, it stays.

use kube::ResourceExt as _;
use serde_json::json;

use super::{Candidate, Facts, Note, Plan, Write, provision::written_id, removal};
use crate::{
    api::{VolumeMode, VolumeState},
    storage::{
        FINALIZER,
        slim::{Phase, Volume},
    },
};

const ACTION: &str = "Reclaim";

/// Plans for all volumes that were provisioned.
pub fn plan(facts: &Facts<'_>, plan: &mut Plan) {
    for volume in facts.volumes.values().filter(|volume| volume.is_provisioned) {
        let is_free = matches!(volume.phase, Phase::Released | Phase::Failed)
            || (volume.is_going() && volume.phase != Phase::Bound);
        if !is_free {
            continue;
        }
        match volume.is_deleted {
            true if volume.is_written() => remove(volume, facts, plan),
            true => delete(volume, plan),
            // What is written stays, with nobody who looks after it. No node has to be told then that it was begun: without its object that
            // would be taken for nobody's.
            false if volume.is_going() && !is_begun(volume, facts) => let_go(volume, plan),
            false => {}
        }
    }
}

fn is_begun(volume: &Volume, facts: &Facts<'_>) -> bool {
    let told = volume.node.as_deref().and_then(|node| facts.told_at_all(node, &volume.handle));
    told.is_some()
}

/// Has the node remove what was written, then lets the object go.
fn remove(volume: &Volume, facts: &Facts<'_>, plan: &mut Plan) {
    let Some(node) = volume.node.as_deref() else { return done(volume, plan) };
    if !facts.machines.contains_key(node) {
        if facts.gone.contains(node) {
            let why = format!("the node {node} is gone, and what was written to the volume with it");
            plan.notes.push(Note::bad(volume, ACTION, "VolumeLost", why));
            done(volume, plan);
        }
        return;
    }
    if facts.is_removed(node, &volume.handle) {
        done(volume, plan);
    }
    let said = facts.said(node, &volume.handle).filter(|said| said.state == VolumeState::Removing);
    if let Some(why) = said.and_then(|said| said.message.as_deref()) {
        let why = format!("the node {node} could not remove it: {why}");
        plan.notes.push(Note::bad(volume, ACTION, "VolumeFailedDelete", why));
    }
    plan.candidates.push(Candidate {
        node: node.to_owned(),
        wanted: removal(&volume.handle),
        volume: volume.name_any(),
        version: volume.resource_version(),
    });
}

/// Nothing of it is left but the object.
fn done(volume: &Volume, plan: &mut Plan) {
    if volume.is_going() { let_go(volume, plan) } else { delete(volume, plan) }
}

fn delete(volume: &Volume, plan: &mut Plan) {
    if !volume.is_going() {
        let (name, uid, version) = (volume.name_any(), volume.uid(), volume.resource_version());
        plan.writes.push(Write::Delete { name, uid, version });
    }
}

fn let_go(volume: &Volume, plan: &mut Plan) {
    if volume.is_held() {
        let others: Vec<&String> = volume.finalizers().iter().filter(|one| *one != FINALIZER).collect();
        plan.patch(volume, json!({ "metadata": { "finalizers": others } }));
    }
}

/// What nodes were told to make for claims, and that no PersistentVolume is of: it goes where its claim is gone or is for another node, and
/// stays as it was told where the claim may still have it. Removals that were begun are ended. Comes after all who want something.
pub fn plan_unfinished(facts: &Facts<'_>, plan: &mut Plan) {
    for ((node, id), told) in facts.all_told() {
        let volume = id.split_once('/').map(|(_, name)| name).filter(|name| name.starts_with("pvc-"));
        let Some(volume) = volume.filter(|_| told.mode == VolumeMode::Rw && !plan.has(node, id)) else {
            continue;
        };
        let is_here = |one: &&&Volume| &*one.handle == id && one.node.as_deref() == Some(node);
        let is_removed = told.goes && facts.is_removed(node, id);
        if facts.volumes.get(volume).filter(is_here).is_some()
            || is_removed
            || !facts.machines.contains_key(node)
        {
            continue;
        }
        let uid = volume.trim_start_matches("pvc-");
        let claim = facts.claims.get(uid).filter(|claim| written_id(claim) == id);
        let is_wanted = |claim: &&&crate::storage::slim::Claim| {
            !told.goes && (!claim.volume.is_empty() || claim.node.as_deref() == Some(node))
        };
        if claim.filter(is_wanted).is_some() {
            plan.want(node, told.clone());
            continue;
        }
        let version = facts.volumes.get(volume).and_then(|one| one.resource_version());
        plan.candidates.push(Candidate {
            node: node.to_owned(),
            wanted: removal(id),
            volume: volume.to_owned(),
            version,
        });
    }
}
