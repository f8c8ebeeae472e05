//! A cluster that is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{api::storage::v1::StorageClass, jiff::Timestamp};
use serde_json::{Value, json};

use crate::{
    api::{
        NodeCapsules, NodeCapsulesSpec, NodeCapsulesStatus, StorageContract, VolumeDone, VolumeMode,
        VolumeState, VolumeWanted,
    },
    storage::{
        DRIVER, SELECTED_NODE,
        plan::{Candidate, Facts, Nodes, Note, Plan, Write},
        slim::{Claim, Modifier, Namespace, Volume},
    },
};

/// Objects that can be seen late.
#[derive(Clone, Default)]
pub struct Objects {
    pub claims: BTreeMap<String, Value>,
    pub volumes: BTreeMap<String, Value>,
    pub nodes: BTreeMap<String, NodeCapsules>,
}

/// A volume on the disk of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    pub version: String,
    pub mounts: usize,
    pub written: bool,
}

#[derive(Default)]
pub struct World {
    pub now: Objects,
    /// What the controller has seen.
    pub seen: Objects,
    pub classes: BTreeMap<String, StorageClass>,
    pub modifiers: BTreeMap<String, Modifier>,
    pub contracts: BTreeMap<String, Arc<StorageContract>>,
    pub machines: BTreeMap<String, bool>,
    pub gone: BTreeSet<String>,
    pub before: Nodes,
    pub disks: BTreeMap<(String, String), Disk>,
    /// Nodes that can make nothing.
    pub full: BTreeSet<String>,
    /// What was said.
    pub notes: Vec<Note>,
    /// What was removed from disks.
    pub removed: Vec<(String, Disk)>,
    versions: u64,
}

impl World {
    /// With the StorageClass `fast`, whose volumes are written to, and the nodes `n0` and `n1`.
    pub fn new() -> Self {
        let mut world = Self::default();
        world.class("fast", "WaitForFirstConsumer", json!({}));
        for node in ["n0", "n1"] {
            world.machines.insert(node.to_owned(), true);
        }
        world
    }

    pub fn class(&mut self, name: &str, binding: &str, parameters: Value) {
        let class = json!({
            "metadata": { "name": name }, "provisioner": DRIVER, "parameters": parameters,
            "reclaimPolicy": "Delete", "volumeBindingMode": binding,
        });
        self.classes.insert(name.to_owned(), serde_json::from_value(class).unwrap());
    }

    pub fn modifier(&mut self, name: &str, version: &str) {
        let class = json!({ "metadata": { "name": name }, "driverName": DRIVER, "parameters": { "version": version } });
        self.modifiers.insert(name.to_owned(), read(&class));
    }

    pub fn mount(&mut self, node: &str, id: &str, version: &str) {
        let disk = Disk { version: version.to_owned(), mounts: 1, written: false };
        self.disks.insert((node.to_owned(), id.to_owned()), disk);
    }

    fn version(&mut self) -> Value {
        self.versions += 1;
        json!(self.versions.to_string())
    }

    /// A claim of the namespace shop, which Kubernetes has asked this driver to provision.
    pub fn claim(&mut self, uid: &str, class: &str, mode: &str, node: Option<&str>) {
        let version = self.version();
        let mut claim = json!({
            "metadata": {
                "name": format!("claim-{uid}"), "namespace": "shop", "uid": uid, "resourceVersion": version,
                "annotations": { "volume.kubernetes.io/storage-provisioner": DRIVER },
            },
            "spec": { "storageClassName": class, "accessModes": [mode], "resources": { "requests": { "storage": "1Gi" } } },
        });
        if let Some(node) = node {
            claim["metadata"]["annotations"][SELECTED_NODE] = json!(node);
        }
        self.now.claims.insert(uid.to_owned(), claim);
    }

    pub fn set(&mut self, uid: &str, change: &Value) {
        let version = self.version();
        if let Some(claim) = self.now.claims.get_mut(uid) {
            merge(claim, change);
            claim["metadata"]["resourceVersion"] = version;
        }
    }

    /// All that there is is seen.
    pub fn see(&mut self) {
        self.seen = self.now.clone();
    }

    /// What Kubernetes does with volumes and claims.
    pub fn kubernetes(&mut self) {
        for name in self.now.volumes.keys().cloned().collect::<Vec<_>>() {
            let volume = self.now.volumes[&name].clone();
            let of = &volume["spec"]["claimRef"];
            let uid = of["uid"].as_str().unwrap_or_default().to_owned();
            let phase = match (of.is_null() || uid.is_empty(), self.now.claims.contains_key(&uid)) {
                (true, _) => "Available",
                (false, true) => "Bound",
                (false, false) => "Released",
            };
            if volume["status"]["phase"] != phase {
                let version = self.version();
                let change =
                    json!({ "status": { "phase": phase }, "metadata": { "resourceVersion": version } });
                merge(self.now.volumes.get_mut(&name).unwrap(), &change);
            }
            if phase == "Bound" && self.now.claims[&uid]["spec"]["volumeName"].is_null() {
                self.set(&uid, &json!({ "spec": { "volumeName": name } }));
            }
        }
    }

    /// What a node's agent does.
    pub fn agent(&mut self, name: &str) {
        let Some(mut node) = self.now.nodes.get(name).cloned() else { return };
        let mut failed = Vec::new();
        for wanted in &node.spec.volumes {
            let key = (name.to_owned(), wanted.id.clone());
            let is_there = self.disks.contains_key(&key);
            let is_mounted = self.disks.get(&key).is_some_and(|disk| disk.mounts > 0);
            match (wanted.goes, wanted.mode) {
                (true, _) if is_there && !is_mounted => {
                    let disk = self.disks.remove(&key).unwrap();
                    self.removed.push((wanted.id.clone(), disk));
                }
                (true, _) => {}
                (false, VolumeMode::Rw) if !is_there && self.full.contains(name) => {
                    failed.push(wanted.clone())
                }
                (false, VolumeMode::Rw) if !is_there => {
                    let version = wanted.version.clone().unwrap_or_default();
                    self.disks.insert(key, Disk { version, ..Disk::default() });
                }
                (false, _) => {
                    if let (Some(disk), Some(version)) = (self.disks.get_mut(&key), &wanted.version) {
                        disk.version.clone_from(version);
                    }
                }
            }
        }
        let volumes = self.listed(name, &node.spec.volumes, &failed);
        let status = NodeCapsulesStatus {
            volumes,
            observed_generation: node.metadata.generation,
            ..Default::default()
        };
        if node.status.as_ref() != Some(&status) {
            (node.status, node.metadata.resource_version) =
                (Some(status), self.version().as_str().map(str::to_owned));
            self.now.nodes.insert(name.to_owned(), node);
        }
    }

    fn listed(&self, name: &str, wanted: &[VolumeWanted], failed: &[VolumeWanted]) -> Vec<VolumeDone> {
        let of = |id: &str, state, version: &str, mounts: usize| VolumeDone {
            id: id.to_owned(),
            state,
            asked: wanted.iter().find(|one| one.id == id).and_then(|one| one.version.clone()),
            version: Some(version.to_owned()),
            digest: None,
            mounts: i32::try_from(mounts).unwrap(),
            full: state == VolumeState::Failed,
            message: (state == VolumeState::Failed).then(|| "the disk is full".to_owned()),
        };
        let own = self.disks.iter().filter(|((node, _), _)| node == name);
        let there = own.map(|((_, id), disk)| {
            let goes = wanted.iter().any(|one| one.id == *id && one.goes);
            of(id, if goes { VolumeState::Removing } else { VolumeState::Made }, &disk.version, disk.mounts)
        });
        there.chain(failed.iter().map(|one| of(&one.id, VolumeState::Failed, "", 0))).collect()
    }

    /// What the controller does with what it has seen.
    pub fn pass(&mut self) {
        let claims: Vec<Claim> = self.seen.claims.values().map(read).collect();
        let claims: Vec<&Claim> = claims.iter().filter(|claim| claim.is_of_use()).collect();
        let volumes: Vec<Volume> = self.seen.volumes.values().map(read).collect();
        let before = std::mem::take(&mut self.before);
        let nodes = self.seen.nodes.clone();
        let machines = self.machines.iter().map(|(name, has)| (name.as_str(), *has)).collect();
        let mut facts = Facts::new(nodes.values(), machines, &before, Timestamp::UNIX_EPOCH);
        let shop = Namespace::default();
        facts.namespaces = [("shop", &shop)].into();
        facts.classes = self.classes.iter().map(|(name, one)| (name.as_str(), one)).collect();
        facts.modifiers = self.modifiers.iter().map(|(name, one)| (name.as_str(), one)).collect();
        facts.claims = claims
            .iter()
            .filter_map(|one| Some((kube::Resource::meta(*one).uid.as_deref()?, *one)))
            .collect();
        facts.volumes = volumes
            .iter()
            .filter_map(|one| Some((kube::Resource::meta(one).name.as_deref()?, one)))
            .collect();
        let contracts: Vec<Arc<StorageContract>> = self.contracts.values().cloned().collect();
        facts.contracts = contracts.iter().collect();
        let gone = self.gone.clone();
        facts.gone = gone.iter().map(String::as_str).collect();
        let mut plan = Plan::of(&facts);
        for candidate in std::mem::take(&mut plan.candidates) {
            let told = facts.told_at_all(&candidate.node, &candidate.wanted.id);
            let is_certain = told.is_some_and(|told| told.goes) || self.is_certain(&candidate);
            plan.settle(candidate, told, is_certain);
        }
        self.notes.append(&mut plan.notes);
        for write in plan.writes {
            self.write(write);
        }
        self.tell(&plan.nodes);
        self.before = plan.nodes;
    }

    fn is_certain(&self, candidate: &Candidate) -> bool {
        let there = self.now.volumes.get(&candidate.volume);
        let version = there.and_then(|one| one["metadata"]["resourceVersion"].as_str());
        version == candidate.version.as_deref()
    }

    fn tell(&mut self, plan: &Nodes) {
        let names: BTreeSet<&String> = plan.keys().chain(self.seen.nodes.keys()).collect();
        for name in
            names.into_iter().filter(|name| self.machines.contains_key(*name)).cloned().collect::<Vec<_>>()
        {
            let volumes: Vec<VolumeWanted> =
                plan.get(&name).into_iter().flat_map(|all| all.values().cloned()).collect();
            let seen = self.seen.nodes.get(&name);
            let there = self.now.nodes.get(&name);
            let version =
                |node: Option<&NodeCapsules>| node.and_then(|node| node.metadata.resource_version.clone());
            let is_told = seen.is_some_and(|node| node.spec.volumes == volumes);
            if is_told || version(seen) != version(there) {
                continue;
            }
            let mut node =
                there.cloned().unwrap_or_else(|| NodeCapsules::new(&name, NodeCapsulesSpec::default()));
            if node.spec.volumes != volumes || node.metadata.generation.is_none() {
                node.metadata.generation = Some(node.metadata.generation.unwrap_or_default() + 1);
            }
            node.spec.volumes = volumes;
            node.metadata.resource_version = self.version().as_str().map(str::to_owned);
            self.now.nodes.insert(name, node);
        }
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Create(volume, note) => {
                let name = volume.metadata.name.clone().unwrap();
                if self.now.volumes.contains_key(&name) {
                    return;
                }
                let mut volume = serde_json::to_value(*volume).unwrap();
                let version = self.version();
                merge(
                    &mut volume,
                    &json!({ "metadata": { "uid": format!("uid-{name}"), "resourceVersion": version } }),
                );
                self.now.volumes.insert(name, volume);
                self.notes.push(note);
            }
            Write::Patch(name, patch) => self.patch(&name, patch),
            Write::Delete { name, version, .. } => self.delete(&name, version),
            Write::Reschedule { name, version, note, .. } => {
                let uid = name.trim_start_matches("claim-").to_owned();
                let there = self.now.claims.get(&uid).map(|one| one["metadata"]["resourceVersion"].clone());
                if there == version.map(Value::from) {
                    self.set(&uid, &json!({ "metadata": { "annotations": { SELECTED_NODE: null } } }));
                    self.notes.push(note);
                }
            }
            Write::Claim { name, status, version, note, .. } => {
                let uid = name.trim_start_matches("claim-").to_owned();
                let there = self.now.claims.get(&uid).map(|one| one["metadata"]["resourceVersion"].clone());
                if there == version.map(Value::from) {
                    let none = json!({ "status": { "modifyVolumeStatus": null, "conditions": null } });
                    self.set(&uid, &none);
                    self.set(&uid, &json!({ "status": status }));
                    self.notes.extend(note);
                }
            }
            Write::CreateClass(class) => {
                drop(self.classes.insert(class.metadata.name.clone().unwrap(), *class))
            }
            Write::DeleteClass(name, _) => drop(self.classes.remove(&name)),
            Write::Hold(contract, is_held, note) => self.hold(&contract, is_held, note),
            Write::Contract(contract, status) => {
                let mut contract = contract.as_ref().clone();
                contract.status = Some(*status);
                self.contracts.insert(contract.metadata.name.clone().unwrap(), Arc::new(contract));
            }
        }
    }

    fn hold(&mut self, contract: &StorageContract, is_held: bool, note: Option<Note>) {
        let name = contract.metadata.name.clone().unwrap();
        self.notes.extend(note);
        if is_held {
            let mut contract = contract.clone();
            contract.metadata.finalizers = Some(vec![crate::storage::CONTRACT.to_owned()]);
            self.contracts.insert(name, Arc::new(contract));
        } else {
            self.contracts.remove(&name);
        }
    }

    fn patch(&mut self, name: &str, patch: Value) {
        let version = self.version();
        let Some(volume) = self.now.volumes.get_mut(name) else { return };
        if volume["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"] {
            return;
        }
        merge(volume, &patch);
        volume["metadata"]["resourceVersion"] = version;
        let is_going = !volume["metadata"]["deletionTimestamp"].is_null();
        let is_held = volume["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if is_going && !is_held {
            self.now.volumes.remove(name);
        }
    }

    /// Deletes a PersistentVolume of this state; of any where there is none.
    pub fn delete(&mut self, name: &str, of: Option<String>) {
        let version = self.version();
        let Some(volume) = self.now.volumes.get_mut(name) else { return };
        if of.is_some() && volume["metadata"]["resourceVersion"].as_str() != of.as_deref() {
            return;
        }
        if volume["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.now.volumes.remove(name);
        } else {
            volume["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
            volume["metadata"]["resourceVersion"] = version;
        }
    }

    /// Everybody does what he does, until nothing changes any more.
    pub fn settle(&mut self) {
        for _ in 0..8 {
            self.kubernetes();
            self.see();
            self.pass();
            for node in self.machines.keys().cloned().collect::<Vec<_>>() {
                self.agent(&node);
            }
        }
        self.see();
    }

    pub fn volume(&self, name: &str) -> Volume {
        read(&self.now.volumes[name])
    }

    /// What was said, the last first.
    pub fn said(&self, reason: &str) -> Option<&str> {
        self.notes.iter().rev().find(|note| note.reason == reason).map(|note| note.message.as_str())
    }
}

fn read<K: serde::de::DeserializeOwned>(value: &Value) -> K {
    serde_json::from_value(value.clone()).unwrap()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
