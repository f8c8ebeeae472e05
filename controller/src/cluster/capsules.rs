//! Which nodes are to have which versions of a capsule, and what is said of it. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    ResourceExt as _,
    core::{PartialObjectMeta, Selector, SelectorExt as _},
};

use crate::api::{Capsule, CapsuleStatus, FetchState, Fetched, NodeCapsules, Wanted, dated};

const READY: &str = "Ready";
/// How many nodes that do not have it are named.
const NAMED: usize = 3;

/// By node, what it is to have.
pub type Fetches = BTreeMap<String, Vec<Wanted>>;

/// By capsule, why it cannot be used.
pub type Unusable = BTreeMap<String, String>;

/// What each node is to fetch, by name.
pub fn fetches(
    capsules: &[impl AsRef<Capsule>],
    nodes: &[impl AsRef<PartialObjectMeta<Node>>],
) -> (Fetches, Unusable) {
    let (mut fetches, mut unusable) = (Fetches::new(), Unusable::new());
    for capsule in capsules.iter().map(AsRef::as_ref).filter(|one| one.metadata.deletion_timestamp.is_none())
    {
        let selector: Selector = match capsule.spec.node_selector.clone().unwrap_or_default().try_into() {
            Ok(selector) => selector,
            Err(error) => {
                unusable.insert(capsule.name_any(), format!("nodeSelector: {error}"));
                continue;
            }
        };
        for node in nodes.iter().map(AsRef::as_ref).filter(|node| selector.matches(node.labels())) {
            fetches.entry(node.name_any()).or_default().push(Wanted {
                name: capsule.name_any(),
                image: capsule.spec.image.clone(),
                versions: capsule.spec.versions.clone(),
                channels: capsule.spec.channels.clone(),
                keys: capsule.spec.signatures.clone().unwrap_or_default().keys,
                retention: capsule.spec.retention,
            });
        }
    }
    for wanted in fetches.values_mut() {
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
    }
    (fetches, unusable)
}

/// What is said of a capsule, by what its nodes say.
fn status(
    capsule: &Capsule,
    unusable: Option<&String>,
    fetches: &Fetches,
    nodes: &BTreeMap<String, &NodeCapsules>,
    now: Timestamp,
) -> CapsuleStatus {
    let name = capsule.name_any();
    let wanted =
        fetches.iter().filter_map(|(node, all)| Some((node, all.iter().find(|one| one.name == name)?)));
    let (mut count, mut complete, mut failures) = (0, 0, Vec::new());
    for (node, wanted) in wanted {
        count += 1;
        let status = nodes.get(node).and_then(|node| node.status.as_ref());
        let said = status.map_or(&[][..], |status| &status.capsules).iter();
        let said: Vec<&Fetched> = said.filter(|one| one.name == name).collect();
        complete += i32::from(is_complete(wanted, &said));
        let failed = said.iter().find(|one| one.state == FetchState::Failed);
        failures.extend(failed.map(|one| {
            format!("{node}: {}@{}: {}", one.name, one.version, one.message.as_deref().unwrap_or_default())
        }));
    }
    let (ready, reason, message) = match unusable {
        Some(why) => (false, "Unusable", why.clone()),
        None if !failures.is_empty() => (false, "Failed", listed(&failures)),
        None if complete < count => {
            (false, "Fetching", format!("{complete} of {count} nodes have all of it"))
        }
        None => (true, "Present", format!("{count} nodes have all of it")),
    };
    let generation = capsule.metadata.generation;
    let before = capsule.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let condition = Condition {
        type_: READY.to_owned(),
        status: if ready { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    CapsuleStatus {
        observed_generation: generation,
        nodes: count,
        complete,
        conditions: vec![dated(condition, before)],
    }
}

/// The first of them, and how many more there are.
fn listed(failures: &[String]) -> String {
    let more = failures.len().saturating_sub(NAMED);
    let mut message = failures[..failures.len() - more].join("; ");
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    message
}

/// Of those of which something else is to be said than before, what.
pub fn statuses(
    capsules: &[Arc<Capsule>],
    unusable: &Unusable,
    fetches: &Fetches,
    nodes: &BTreeMap<String, &NodeCapsules>,
) -> Vec<(Arc<Capsule>, CapsuleStatus)> {
    let now = Timestamp::now();
    let said = capsules
        .iter()
        .map(|one| (Arc::clone(one), status(one, unusable.get(&one.name_any()), fetches, nodes, now)));
    said.filter(|(one, status)| one.status.as_ref() != Some(status)).collect()
}

/// All versions are there, and each channel stands for the one that it is to.
fn is_complete(wanted: &Wanted, said: &[&Fetched]) -> bool {
    let of = |version: &String| {
        said.iter().find(|one| one.version == *version && one.state == FetchState::Present)
    };
    wanted.versions.iter().all(|version| of(version).is_some())
        && wanted
            .channels
            .iter()
            .all(|(channel, version)| of(version).is_some_and(|one| one.channels.contains(channel)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CapsuleSpec, NodeCapsulesSpec, NodeCapsulesStatus, Retention};

    fn capsule(versions: &[&str]) -> Capsule {
        let spec = CapsuleSpec {
            image: "localhost/tz".into(),
            versions: versions.iter().map(ToString::to_string).collect(),
            channels: [("stable".to_owned(), versions[0].to_owned())].into(),
            node_selector: Some(
                serde_json::from_value(serde_json::json!({ "matchLabels": { "gpu": "yes" } })).unwrap(),
            ),
            signatures: None,
            retention: Retention::Keep,
        };
        Capsule::new("tz", spec)
    }

    fn node(name: &str, gpu: &str) -> Arc<PartialObjectMeta<Node>> {
        let text = serde_json::json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "gpu": gpu } } });
        Arc::new(serde_json::from_value(text).unwrap())
    }

    fn said(version: &str, state: FetchState, channels: &[&str]) -> Fetched {
        Fetched {
            name: "tz".into(),
            version: version.into(),
            state,
            own: true,
            goes: false,
            channels: channels.iter().map(ToString::to_string).collect(),
            message: (state == FetchState::Failed).then(|| "no such image".to_owned()),
        }
    }

    #[test]
    fn nodes_are_chosen_by_their_labels_and_counted_by_what_they_say() {
        let one = Arc::new(capsule(&["1", "2"]));
        let (fetches, unusable) =
            fetches(&[Arc::clone(&one)], &[node("a", "yes"), node("b", "no"), node("c", "yes")]);
        assert_eq!(fetches.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert!(unusable.is_empty());
        let told = |fetched: Vec<Fetched>| {
            let mut node = NodeCapsules::new("a", NodeCapsulesSpec::default());
            node.status = Some(NodeCapsulesStatus { capsules: fetched, ..NodeCapsulesStatus::default() });
            let nodes = [("a".to_owned(), &node)].into();
            let status = status(&one, None, &fetches, &nodes, Timestamp::UNIX_EPOCH);
            let condition = &status.conditions[0];
            (
                status.nodes,
                status.complete,
                format!("{} {} {}", condition.status, condition.reason, condition.message),
            )
        };
        let present = FetchState::Present;
        assert_eq!(told(vec![]), (2, 0, "False Fetching 0 of 2 nodes have all of it".to_owned()));
        assert_eq!(told(vec![said("1", present, &[]), said("2", present, &[])]).1, 0);
        assert_eq!(told(vec![said("1", present, &["stable"]), said("2", present, &[])]).1, 1);
        let failed = told(vec![said("1", FetchState::Failed, &[])]);
        assert_eq!(failed.2, "False Failed a: tz@1: no such image");
    }

    #[test]
    fn a_selector_that_is_none_is_told() {
        let mut one = capsule(&["1"]);
        let wrong =
            serde_json::json!({ "matchExpressions": [{ "key": "a", "operator": "Like", "values": ["b"] }] });
        one.spec.node_selector = Some(serde_json::from_value(wrong).unwrap());
        let (fetches, unusable) = fetches(&[Arc::new(one)], &[node("a", "yes")]);
        assert!(fetches.is_empty() && unusable["tz"].starts_with("nodeSelector: "), "{unusable:?}");
    }
}
