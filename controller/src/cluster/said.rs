//! What is to be written about attachments. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::{
    dones, is_held,
    plan::{Assignments, Unusable, is_going},
    status,
};
use crate::{
    api::{CapsuleAttachment, CapsuleAttachmentStatus, NodeCapsules},
    rollout::Facts,
};

/// See above.
pub struct Said {
    /// How far they are.
    pub statuses: Vec<(Arc<CapsuleAttachment>, CapsuleAttachmentStatus)>,
    /// Nobody has anything of them any more: they may go.
    pub gone: Vec<Arc<CapsuleAttachment>>,
}

/// Says it of all of them. `before` is what nodes were told by the last pass, which may not be seen yet.
pub fn said(
    attachments: &[Arc<CapsuleAttachment>],
    nodes: &[Arc<NodeCapsules>],
    assignments: &Assignments,
    unusable: &BTreeMap<String, Unusable>,
    before: &Assignments,
    facts: &Facts<'_>,
) -> Said {
    let wanted = status::by_owner(assignments);
    let mut done = status::Said::new();
    let of_node = |node| dones(node).filter(|done| !facts.is_others(&node.name_any(), done));
    for one in nodes.iter().map(Arc::as_ref).flat_map(of_node) {
        done.entry(one.owner.uid.as_str()).or_default().push(one);
    }
    let told = nodes.iter().flat_map(|node| &node.spec.attachments).chain(before.values().flatten());
    let told: BTreeSet<&str> = told.map(|one| one.owner.uid.as_str()).collect();
    let mut said = Said { statuses: Vec::new(), gone: Vec::new() };
    for one in attachments {
        let uid = one.uid().unwrap_or_default();
        let wanted = wanted.get(uid.as_str()).map_or(&[][..], Vec::as_slice);
        let done = done.get(uid.as_str()).map_or(&[][..], Vec::as_slice);
        if is_going(one) && done.is_empty() && !told.contains(uid.as_str()) {
            said.gone.extend(is_held(one).then(|| Arc::clone(one)));
            continue;
        }
        let status = status::status(one, unusable.get(&uid), wanted, done, Timestamp::now());
        if one.status.as_ref() != Some(&status) {
            said.statuses.push((Arc::clone(one), status));
        }
    }
    said
}
