//! What is known of one moment, and what follows from it: pure. Each of the parts below adds to one [`Plan`].

pub mod contract;
pub mod modify;
pub mod provision;
pub mod reclaim;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PersistentVolume},
        storage::v1::StorageClass,
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt as _};
use serde_json::Value;

use super::slim::{Claim, Modifier, Namespace, Volume};
use crate::api::{
    NodeCapsules, StorageContract, StorageContractStatus, VolumeDone, VolumeMode, VolumeState, VolumeWanted,
};

/// What nodes are to do about volumes, by node and id. A node with nothing is one whose agent is to say what it has.
pub type Nodes = BTreeMap<String, BTreeMap<String, VolumeWanted>>;

/// Objects of one moment.
pub struct Facts<'a> {
    /// By name.
    pub classes: BTreeMap<&'a str, &'a StorageClass>,
    /// By name.
    pub modifiers: BTreeMap<&'a str, &'a Modifier>,
    /// Those that are of use, by uid.
    pub claims: BTreeMap<&'a str, &'a Claim>,
    /// Ours, by name.
    pub volumes: BTreeMap<&'a str, &'a Volume>,
    /// All of them, by name.
    pub namespaces: BTreeMap<&'a str, &'a Namespace>,
    /// All of them.
    pub contracts: Vec<&'a Arc<StorageContract>>,
    /// By name.
    pub nodes: BTreeMap<&'a str, &'a NodeCapsules>,
    /// Machines that are there, and whether the driver is on them.
    pub machines: BTreeMap<&'a str, bool>,
    /// Nodes with pods that mount a claim's volume, or are about to: by namespace and name of the claim.
    pub users: BTreeMap<(&'a str, &'a str), BTreeSet<&'a str>>,
    /// Nodes that are not there, since they were not seen for long enough to be gone for good.
    pub gone: BTreeSet<&'a str>,
    /// What the last pass told nodes, which may not be seen yet.
    pub before: &'a Nodes,
    /// Now.
    pub now: Timestamp,
    /// What agents say, by volume and node.
    said: BTreeMap<(&'a str, &'a str), &'a VolumeDone>,
    /// What nodes were told by what the API server has, likewise.
    told: BTreeMap<(&'a str, &'a str), &'a VolumeWanted>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// By nodes.
    pub nodes: Nodes,
    /// What nodes are to remove once it is certain that nobody has it.
    pub candidates: Vec<Candidate>,
    /// By the API server.
    pub writes: Vec<Write>,
    /// What is said of objects, once for as long as it is so.
    pub notes: Vec<Note>,
}

/// A volume that seems to be nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node that has it.
    pub node: String,
    /// What it is to do.
    pub wanted: VolumeWanted,
    /// Its PersistentVolume.
    pub volume: String,
    /// The state of it that this follows from; that there is none, where there is none.
    pub version: Option<String>,
}

/// Something to be written.
#[derive(Debug, Clone)]
pub enum Write {
    /// A PersistentVolume is made; then this is said.
    Create(Box<PersistentVolume>, Note),
    /// One is patched, in the state that the patch names.
    Patch(String, Value),
    /// One is deleted, in this state.
    Delete {
        /// Its name.
        name: String,
        /// Of all of its name, this one.
        uid: Option<String>,
        /// In this state.
        version: Option<String>,
    },
    /// A claim is to be scheduled anew; then this is said.
    Reschedule {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// In this state.
        version: Option<String>,
        /// Why.
        note: Note,
    },
    /// What is said of a claim's modification; then this.
    Claim {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its status, as far as it is ours.
        status: Value,
        /// In this state.
        version: Option<String>,
        /// What is said.
        note: Option<Note>,
    },
    /// A StorageClass is made.
    CreateClass(Box<StorageClass>),
    /// One of a contract's is deleted.
    DeleteClass(String, Option<String>),
    /// A contract is kept from going, or let go; then this is said.
    Hold(Arc<StorageContract>, bool, Option<Note>),
    /// How far a contract is.
    Contract(Arc<StorageContract>, Box<StorageContractStatus>),
}

/// Something that is said of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Which.
    pub object: ObjectReference,
    /// What was tried.
    pub action: &'static str,
    /// What came of it.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// Whether it is bad.
    pub is_bad: bool,
}

impl Note {
    /// Something bad.
    pub fn bad(
        of: &impl Resource<DynamicType = ()>,
        action: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { object: of.object_ref(&()), action, reason, message, is_bad: true }
    }

    /// Something good.
    pub fn good(
        of: &impl Resource<DynamicType = ()>,
        action: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { is_bad: false, ..Self::bad(of, action, reason, message) }
    }
}

impl<'a> Facts<'a> {
    /// Of what nodes say, and the last pass told them.
    pub fn new(
        nodes: impl IntoIterator<Item = &'a NodeCapsules>,
        machines: BTreeMap<&'a str, bool>,
        before: &'a Nodes,
        now: Timestamp,
    ) -> Self {
        let nodes: BTreeMap<&str, &NodeCapsules> =
            nodes.into_iter().filter_map(|one| Some((one.metadata.name.as_deref()?, one))).collect();
        let said = nodes.iter().flat_map(|(name, node)| {
            node.status.iter().flat_map(|status| &status.volumes).map(|one| ((one.id.as_str(), *name), one))
        });
        let told = nodes
            .iter()
            .flat_map(|(name, node)| node.spec.volumes.iter().map(|one| ((one.id.as_str(), *name), one)));
        Self {
            said: said.collect(),
            told: told.collect(),
            classes: BTreeMap::new(),
            modifiers: BTreeMap::new(),
            claims: BTreeMap::new(),
            volumes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            contracts: Vec::new(),
            users: BTreeMap::new(),
            gone: BTreeSet::new(),
            nodes,
            machines,
            before,
            now,
        }
    }

    /// What a node says of a volume.
    pub fn said(&self, node: &str, id: &str) -> Option<&'a VolumeDone> {
        self.said.get(&(id, node)).copied()
    }

    /// The nodes that say something of a volume.
    pub fn having<'s>(&'s self, id: &'s str) -> impl Iterator<Item = (&'a str, &'a VolumeDone)> + 's {
        self.said
            .range((id, "")..)
            .take_while(move |((of, _), _)| *of == id)
            .map(|((_, node), one)| (*node, *one))
    }

    /// What a node was told of a volume, by what the API server has.
    pub fn told(&self, node: &str, id: &str) -> Option<&'a VolumeWanted> {
        self.told.get(&(id, node)).copied()
    }

    /// Whether what a node says is of what it was told last.
    pub fn is_fresh(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| {
            let observed = node.status.as_ref().and_then(|status| status.observed_generation);
            observed.is_some() && observed == node.metadata.generation
        })
    }

    /// Whether a node has made what it was told to.
    pub fn is_made(&self, node: &str, id: &str) -> bool {
        self.is_fresh(node)
            && self.told(node, id).is_some_and(|told| !told.goes)
            && self.said(node, id).is_some_and(|said| said.state == VolumeState::Made)
    }

    /// Whether a node has removed what it was told to.
    pub fn is_removed(&self, node: &str, id: &str) -> bool {
        self.is_fresh(node)
            && self.told(node, id).is_some_and(|told| told.goes)
            && self.said(node, id).is_none()
    }

    /// The same, by what the API server has and by the last pass.
    pub fn told_at_all(&self, node: &str, id: &str) -> Option<&'a VolumeWanted> {
        self.told(node, id).or_else(|| self.before.get(node)?.get(id))
    }

    /// All that nodes were told, by what the API server has and by the last pass.
    fn all_told(&self) -> BTreeMap<(&'a str, &'a str), &'a VolumeWanted> {
        let before =
            self.before.iter().flat_map(|(node, all)| all.values().map(move |one| (node.as_str(), one)));
        let told = self.told.iter().map(|((_, node), one)| (*node, *one));
        before.chain(told).map(|(node, one)| ((node, one.id.as_str()), one)).collect()
    }
}

impl Plan {
    /// All that follows.
    pub fn of(facts: &Facts<'_>) -> Self {
        let mut plan = Self::default();
        provision::plan(facts, &mut plan);
        reclaim::plan(facts, &mut plan);
        modify::plan(facts, &mut plan);
        contract::plan(facts, &mut plan);
        reclaim::plan_unfinished(facts, &mut plan);
        plan.listen(facts);
        plan
    }

    /// A node is to do something.
    pub fn want(&mut self, node: &str, wanted: VolumeWanted) {
        self.nodes.entry(node.to_owned()).or_default().insert(wanted.id.clone(), wanted);
    }

    /// Whether a node is to do something about a volume.
    pub fn has(&self, node: &str, id: &str) -> bool {
        self.nodes.get(node).is_some_and(|all| all.contains_key(id))
            || self.candidates.iter().any(|one| one.node == node && one.wanted.id == id)
    }

    /// Has a node remove what is certain to be nobody's. What is not stays as it was told.
    pub fn settle(
        &mut self,
        Candidate { node, wanted, .. }: Candidate,
        told: Option<&VolumeWanted>,
        is_certain: bool,
    ) {
        match (is_certain, told) {
            (true, _) => self.want(&node, wanted),
            (false, Some(told)) => self.want(&node, told.clone()),
            (false, None) => {}
        }
    }

    fn patch(&mut self, volume: &Volume, mut patch: Value) {
        patch["metadata"]["resourceVersion"] = volume.resource_version().into();
        self.writes.push(Write::Patch(volume.name_any(), patch));
    }

    /// Agents say what is mounted where there is something of ours that may be.
    fn listen(&mut self, facts: &Facts<'_>) {
        let is_anywhere = facts.volumes.values().any(|one| one.node.is_none());
        let with_driver = facts.machines.iter().filter(|(_, has_driver)| **has_driver).map(|(name, _)| *name);
        let all = with_driver.filter(|_| is_anywhere);
        let own = facts.volumes.values().filter_map(|one| one.node.as_deref());
        for node in all.chain(own).filter(|node| facts.machines.contains_key(node)) {
            if !self.nodes.contains_key(node) {
                self.nodes.insert(node.to_owned(), BTreeMap::new());
            }
        }
    }
}

/// To be removed.
fn removal(id: &str) -> VolumeWanted {
    VolumeWanted {
        id: id.to_owned(),
        capsule: None,
        version: None,
        mode: VolumeMode::Rw,
        size: None,
        owner: None,
        permissions: None,
        goes: true,
    }
}
