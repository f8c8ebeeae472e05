//! Which containers of which nodes are to have what. Pure: pods and `CapsuleAttachment`s in, an assignment for each node out.

use std::collections::{BTreeMap, BTreeSet};

use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::pod::Pod;
use crate::api::{Assigned, CapsuleAttachment, Owner, PodRef};

/// What is wrong with a `CapsuleAttachment`, for its condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable(pub String);

/// What nodes are to have, by node.
pub type Assignments = BTreeMap<String, Vec<Assigned>>;

/// The assignments of all nodes, and which attachments cannot be used.
pub fn assign<'a>(
    attachments: impl IntoIterator<Item = &'a CapsuleAttachment>,
    pods: &'a [impl AsRef<Pod>],
) -> (Assignments, BTreeMap<String, Unusable>) {
    let (mut nodes, mut unusable) = (Assignments::new(), BTreeMap::new());
    let mut by_namespace: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
    for pod in pods.iter().map(AsRef::as_ref).filter(|pod| is_served(pod)) {
        by_namespace.entry(pod.namespace().unwrap_or_default()).or_default().push(pod);
    }
    for attachment in attachments.into_iter().filter(|attachment| !is_going(attachment)) {
        let owner = owner_of(attachment);
        let selector: Selector = match attachment.spec.pod_selector.clone().try_into() {
            Ok(selector) => selector,
            Err(error) => {
                unusable.insert(owner.uid, Unusable(format!("podSelector: {error}")));
                continue;
            }
        };
        let pods = by_namespace.get(&owner.namespace).into_iter().flatten();
        for pod in pods.filter(|pod| selector.matches(pod.labels())) {
            nodes.entry(pod.node.to_string()).or_default().extend(of_pod(attachment, &owner, pod));
        }
    }
    for all in nodes.values_mut() {
        all.sort_by(|a, b| key(a).cmp(&key(b)));
    }
    (nodes, unusable)
}

fn key(a: &Assigned) -> (&Owner, &PodRef, &str) {
    (&a.owner, &a.pod, &a.container)
}

/// Whether it is being deleted.
pub fn is_going(attachment: &CapsuleAttachment) -> bool {
    attachment.metadata.deletion_timestamp.is_some()
}

/// It, as assignments name it.
pub fn owner_of(attachment: &CapsuleAttachment) -> Owner {
    Owner {
        namespace: attachment.namespace().unwrap_or_default(),
        name: attachment.name_any(),
        uid: attachment.uid().unwrap_or_default(),
    }
}

/// Whether a pod can have anything: it is on a node and has not ended. One that is being deleted can until then.
fn is_served(pod: &Pod) -> bool {
    !pod.node.is_empty() && !pod.has_ended
}

fn of_pod(attachment: &CapsuleAttachment, owner: &Owner, pod: &Pod) -> Vec<Assigned> {
    let spec = &attachment.spec;
    let wanted: BTreeSet<&str> = spec.containers.iter().map(String::as_str).collect();
    let containers = pod.containers.iter().map(|name| &**name);
    let of_container = |container: &str| Assigned {
        owner: owner.clone(),
        pod: PodRef { name: pod.name_any(), uid: pod.uid().unwrap_or_default() },
        container: container.to_owned(),
        capsule: spec.capsule.clone(),
        version: spec.version.clone(),
        target: spec.target.clone(),
        mode: spec.mode,
        devices: spec.devices.clone(),
        resources: spec.resources.clone(),
        check: None,
    };
    containers.filter(|name| wanted.is_empty() || wanted.contains(name)).map(of_container).collect()
}
