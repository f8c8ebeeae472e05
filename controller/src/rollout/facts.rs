//! What rollouts are decided from, as it is in the cluster's objects, and how what was decided gets into what is assigned. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::ResourceExt as _;

use super::plan::{Member, Progress};
use crate::{
    api::{Assigned, CapsuleAttachment, CapsuleRollout, Done},
    cluster::{Assignments, Pod},
};

/// Objects of one moment.
pub struct Facts<'a> {
    attachments: BTreeMap<(String, String), &'a CapsuleAttachment>,
    pods: BTreeMap<String, &'a Pod>,
    /// What nodes were told, and what their agents say, by owner's uid.
    told: BTreeMap<&'a str, Vec<&'a Assigned>>,
    said: BTreeMap<&'a str, Vec<&'a Done>>,
}

/// Where in the assignments is what is of an owner: its node, and its place there. Of owners that a rollout is of alone.
pub(super) type Places = BTreeMap<String, Vec<(String, usize)>>;

/// A container of a pod, by the pod's uid.
type Container<'a> = (&'a str, &'a str);

impl<'a> Facts<'a> {
    /// Of these. What was told later counts; what an agent says of another node's pod does not.
    pub fn new(
        attachments: impl IntoIterator<Item = &'a CapsuleAttachment>,
        pods: impl IntoIterator<Item = &'a Pod>,
        told: impl IntoIterator<Item = &'a Assigned>,
        said: impl IntoIterator<Item = (String, &'a Done)>,
    ) -> Self {
        let name = |one: &CapsuleAttachment| (one.namespace().unwrap_or_default(), one.name_any());
        let mut facts = Self {
            attachments: attachments.into_iter().map(|one| (name(one), one)).collect(),
            pods: pods.into_iter().map(|pod| (pod.uid().unwrap_or_default(), pod)).collect(),
            told: BTreeMap::new(),
            said: BTreeMap::new(),
        };
        for one in told {
            facts.told.entry(one.owner.uid.as_str()).or_default().push(one);
        }
        for (node, one) in said {
            if !facts.is_others(&node, one) {
                facts.said.entry(one.owner.uid.as_str()).or_default().push(one);
            }
        }
        facts
    }

    /// Where what is of these rollouts' attachments is.
    pub(super) fn places(&self, assignments: &Assignments, rollouts: &[Arc<CapsuleRollout>]) -> Places {
        let owners = rollouts.iter().filter_map(|one| self.attachment(one)?.uid());
        let mut places: Places = owners.map(|uid| (uid, Vec::new())).collect();
        if places.is_empty() {
            return places;
        }
        for (node, all) in assignments {
            for (place, one) in all.iter().enumerate() {
                if let Some(of_owner) = places.get_mut(&one.owner.uid) {
                    of_owner.push((node.clone(), place));
                }
            }
        }
        places
    }

    /// Whether a node's agent speaks of a pod that is known to be on another.
    pub fn is_others(&self, node: &str, done: &Done) -> bool {
        self.pods.get(&done.pod.uid).is_some_and(|pod| *pod.node != *node)
    }

    /// The attachment that a rollout is of.
    pub fn attachment(&self, rollout: &CapsuleRollout) -> Option<&'a CapsuleAttachment> {
        let name = (rollout.namespace().unwrap_or_default(), rollout.spec.attachment.clone());
        self.attachments.get(&name).copied().filter(|one| one.metadata.deletion_timestamp.is_none())
    }

    /// The pods that have the attachment, but for those that are on their way out.
    pub(super) fn members(
        &self,
        rollout: &CapsuleRollout,
        assignments: &Assignments,
        places: &Places,
    ) -> BTreeMap<String, Member> {
        let Some(uid) = self.attachment(rollout).and_then(CapsuleAttachment::uid) else {
            return BTreeMap::new();
        };
        let said = self.said.get(uid.as_str()).into_iter().flatten();
        let said: BTreeMap<Container<'_>, &Done> =
            said.map(|done| ((done.pod.uid.as_str(), done.container.as_str()), *done)).collect();
        let told = self.told(&uid);
        let mut members: BTreeMap<String, Member> = BTreeMap::new();
        for (node, place) in places.get(&uid).into_iter().flatten() {
            let Some(wanted) = assignments.get(node).and_then(|all| all.get(*place)) else { continue };
            let pod = self.pods.get(&wanted.pod.uid);
            if pod.is_none_or(|pod| pod.is_going()) {
                continue;
            }
            let key = (wanted.pod.uid.as_str(), wanted.container.as_str());
            let is_told =
                told.get(&key).is_some_and(|told| told.version.as_ref() == Some(&rollout.spec.version));
            let progress = said.get(&key).map_or_else(Progress::default, |done| Progress {
                asked: done.asked.clone(),
                state: Some(done.state),
                message: done.message.clone(),
                since: done.since.as_ref().map(|time| time.0),
            });
            let member = members.entry(wanted.pod.uid.clone()).or_insert_with(|| Member {
                name: wanted.pod.name.clone(),
                is_told: false,
                containers: Vec::new(),
                unready_since: pod.and_then(|pod| pod.unready_since),
            });
            member.is_told |= is_told;
            member.containers.push(progress);
        }
        members
    }

    /// What was told of an owner; the last counts.
    fn told(&self, uid: &str) -> BTreeMap<Container<'_>, &Assigned> {
        let told = self.told.get(uid).into_iter().flatten();
        told.map(|one| ((one.pod.uid.as_str(), one.container.as_str()), *one)).collect()
    }

    /// Gives these pods the rollout's version. A pod that is on its way out keeps what it was told.
    pub(super) fn give(
        &self,
        assignments: &mut Assignments,
        rollout: &CapsuleRollout,
        updated: &BTreeSet<String>,
        places: &Places,
    ) {
        let Some(uid) = self.attachment(rollout).and_then(CapsuleAttachment::uid) else { return };
        let told = self.told(&uid);
        for (node, place) in places.get(&uid).into_iter().flatten() {
            let Some(wanted) = assignments.get_mut(node).and_then(|all| all.get_mut(*place)) else {
                continue;
            };
            let is_going = self.pods.get(&wanted.pod.uid).is_some_and(|pod| pod.is_going());
            let had = told.get(&(wanted.pod.uid.as_str(), wanted.container.as_str()));
            let keeps =
                is_going && had.is_some_and(|had| had.version.as_ref() == Some(&rollout.spec.version));
            if updated.contains(&wanted.pod.uid) || keeps {
                wanted.version = Some(rollout.spec.version.clone());
                wanted.check.clone_from(&rollout.spec.health.exec);
            }
        }
    }
}
