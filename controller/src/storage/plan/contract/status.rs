//! What is said of a contract.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::{classes_of, is_lost, is_made};
use crate::{
    api::{
        Directory, DirectoryState, DirectoryStatus, StorageContract, StorageContractStatus, VolumeDone,
        VolumeState, at, dated,
    },
    storage::{
        DRIVER,
        plan::{Facts, Plan, Write},
        quantity::bytes,
        slim::{ClaimRef, Phase, Volume},
    },
};

/// How many are named in a condition.
const NAMED: usize = 3;

/// A directory, and what is known of it.
pub struct Looked<'a> {
    /// It.
    pub directory: &'a Directory,
    /// Its PersistentVolume.
    pub name: String,
    /// What there is of that name.
    pub there: Option<&'a Volume>,
    /// What the node says of it.
    pub said: Option<&'a VolumeDone>,
}

/// Says it, where it is not said.
pub fn plan(
    contract: &Arc<StorageContract>,
    looked: Vec<Looked<'_>>,
    unlisted: &[&Volume],
    facts: &Facts<'_>,
    plan: &mut Plan,
) {
    let mut directories: Vec<DirectoryStatus> =
        looked.iter().map(|one| of_directory(contract, one, facts)).collect();
    let is_usable =
        |one: &&DirectoryStatus| matches!(one.state, DirectoryState::Available | DirectoryState::Bound);
    let usable = directories.iter().filter(is_usable).count();
    let ready = ready(&directories, usable);
    directories.extend(unlisted.iter().map(|volume| of_unlisted(volume)));
    let generation = contract.metadata.generation;
    let before = contract.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let condition = |kind: &str, (is, reason, message): (bool, &str, String)| {
        let condition = Condition {
            type_: kind.to_owned(),
            status: if is { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: at(facts.now),
        };
        dated(condition, before)
    };
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let status = StorageContractStatus {
        observed_generation: generation,
        wanted: number(looked.len()),
        usable: number(usable),
        conditions: vec![condition("Ready", ready), condition("StorageClasses", classes(contract, facts))],
        directories,
    };
    if contract.status.as_ref() != Some(&status) {
        plan.writes.push(Write::Contract(Arc::clone(contract), Box::new(status)));
    }
}

fn ready(directories: &[DirectoryStatus], usable: usize) -> (bool, &'static str, String) {
    let bad: Vec<String> = directories
        .iter()
        .filter(|one| {
            matches!(one.state, DirectoryState::Failed | DirectoryState::Lost | DirectoryState::Released)
        })
        .map(|one| format!("{}: {}", one.name, one.message.as_deref().unwrap_or("it is released")))
        .collect();
    let all = directories.len();
    match bad.len() {
        0 if usable == all => (true, "Provided", format!("{all} directories are there")),
        0 => (false, "Pending", format!("{usable} of {all} directories are there")),
        count => {
            let more = if count > NAMED { format!("; and {} more", count - NAMED) } else { String::new() };
            let has_lost = directories.iter().any(|one| one.state == DirectoryState::Lost);
            let has_failed = directories.iter().any(|one| one.state == DirectoryState::Failed);
            let reason = match (has_lost, has_failed) {
                (true, _) => "Lost",
                (_, true) => "Failed",
                _ => "Released",
            };
            (false, reason, format!("{}{more}", bad[..count.min(NAMED)].join("; ")))
        }
    }
}

fn classes(contract: &StorageContract, facts: &Facts<'_>) -> (bool, &'static str, String) {
    let mut missing = Vec::new();
    for name in classes_of(contract) {
        match facts.classes.get(name.as_str()) {
            Some(class) if is_made(class) => {}
            Some(class) => {
                let why = format!(
                    "the StorageClass {name} is there, of {} and not made by a contract: it is left as it is; claims get directories by it, and what its provisioner makes",
                    if class.provisioner == DRIVER { "this driver" } else { &class.provisioner }
                );
                return (false, "NotOurs", why);
            }
            None => missing.push(name),
        }
    }
    match &missing[..] {
        [] => (true, "Made", "they are there".to_owned()),
        missing => (false, "Pending", format!("{} is being made", missing.join(", "))),
    }
}

fn named(claim: &ClaimRef) -> String {
    format!("{}/{}", claim.namespace, claim.name)
}

fn of_directory(contract: &StorageContract, looked: &Looked<'_>, facts: &Facts<'_>) -> DirectoryStatus {
    let (state, message) = state(contract, looked, facts);
    DirectoryStatus {
        name: looked.directory.name.clone(),
        volume: looked.name.clone(),
        state,
        claim: looked.there.and_then(|volume| volume.claim.as_ref()).map(named),
        message,
    }
}

fn state(
    contract: &StorageContract,
    looked: &Looked<'_>,
    facts: &Facts<'_>,
) -> (DirectoryState, Option<String>) {
    let node = &contract.spec.node_name;
    let id = format!("{}/{}", contract.name_any(), looked.directory.path());
    let Some(volume) = looked.there else { return before(node, looked, facts) };
    if &*volume.handle != id.as_str() {
        let why = format!(
            "the PersistentVolume {} is there, and is {}: delete it, or choose another path",
            looked.name, volume.handle
        );
        return (DirectoryState::Failed, Some(why));
    }
    if volume.is_going() {
        return (
            DirectoryState::Pending,
            Some(format!("the PersistentVolume {} is being deleted", looked.name)),
        );
    }
    if is_lost(looked, node, facts) {
        let why = format!(
            "the node {node} has no {id} any more: bring it back to the node, or delete the PersistentVolume {} to have an empty one",
            looked.name
        );
        return (DirectoryState::Lost, Some(why));
    }
    let why =
        looked.said.filter(|said| said.state == VolumeState::Failed).and_then(|said| said.message.clone());
    match volume.phase {
        Phase::Bound => (DirectoryState::Bound, why.or_else(|| others(looked))),
        Phase::Released | Phase::Failed => (DirectoryState::Released, Some(released(looked))),
        Phase::Available => (DirectoryState::Available, why),
        Phase::Pending => (DirectoryState::Pending, why),
    }
}

/// Before it has a PersistentVolume.
fn before(node: &str, looked: &Looked<'_>, facts: &Facts<'_>) -> (DirectoryState, Option<String>) {
    let size = &looked.directory.size;
    if bytes(size).is_none() {
        return (DirectoryState::Failed, Some(format!("size {size} is more than any disk has")));
    }
    match (facts.machines.get(node), looked.said) {
        (None, _) => (DirectoryState::Failed, Some(format!("there is no node {node}"))),
        (_, Some(said)) if said.state == VolumeState::Failed => {
            (DirectoryState::Failed, said.message.clone())
        }
        (Some(false), None) => {
            let why = format!("the node {node} has no {DRIVER}: is capsuled's DaemonSet on it?");
            (DirectoryState::Pending, Some(why))
        }
        _ => (DirectoryState::Pending, None),
    }
}

/// Another claim has it than the one that it is for.
fn others(looked: &Looked<'_>) -> Option<String> {
    let (has, wanted) = (looked.there?.claim.as_ref()?, looked.directory.claim.as_ref()?);
    let is_other = (&*has.namespace, &*has.name) != (wanted.namespace.as_str(), wanted.name.as_str());
    is_other.then(|| {
        format!(
            "it is for {}/{}, which has it when {} is gone and its PersistentVolume is deleted",
            wanted.namespace,
            wanted.name,
            named(has)
        )
    })
}

fn released(looked: &Looked<'_>) -> String {
    let had = looked.there.and_then(|volume| volume.claim.as_ref()).map(named).unwrap_or_default();
    let name = &looked.name;
    format!(
        "its claim {had} is gone: delete the PersistentVolume {name} to give the directory, with its data, to whoever claims it next"
    )
}

fn of_unlisted(volume: &Volume) -> DirectoryStatus {
    let path = volume.handle.split_once('/').map_or(&*volume.handle, |(_, path)| path);
    DirectoryStatus {
        name: path.to_owned(),
        volume: volume.name_any(),
        state: DirectoryState::Unlisted,
        claim: volume.claim.as_ref().map(named),
        message: Some("it is not listed any more, and a claim has it: its PersistentVolume goes when the claim has gone; the data stays".to_owned()),
    }
}
