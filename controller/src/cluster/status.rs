//! What is said of a `CapsuleAttachment`. Pure: what nodes were told and what their agents say, in; its status, out.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::plan::{Assignments, Unusable, is_going};
use crate::api::{Assigned, CapsuleAttachment, CapsuleAttachmentStatus, Done, State, dated};

const READY: &str = "Ready";
/// How many containers that cannot have it are named.
const NAMED: usize = 3;

/// What the agents say, by owner.
pub type Said<'a> = BTreeMap<&'a str, Vec<&'a Done>>;

/// What is assigned, by owner.
pub type Wanted<'a> = BTreeMap<&'a str, Vec<&'a Assigned>>;

/// By owner, of all nodes.
pub fn by_owner(assignments: &Assignments) -> Wanted<'_> {
    let mut all = Wanted::new();
    for one in assignments.values().flatten() {
        all.entry(one.owner.uid.as_str()).or_default().push(one);
    }
    all
}

/// The status of one. The time of a condition is that of its last change.
pub fn status(
    attachment: &CapsuleAttachment,
    unusable: Option<&Unusable>,
    wanted: &[&Assigned],
    said: &[&Done],
    now: Timestamp,
) -> CapsuleAttachmentStatus {
    let by_place: BTreeMap<_, &&Done> =
        said.iter().map(|done| ((&done.pod, done.container.as_str()), done)).collect();
    let of = |wanted: &Assigned| {
        let done = by_place.get(&(&wanted.pod, wanted.container.as_str())).copied();
        done.filter(|done| done.asked == wanted.version)
    };
    let states: Vec<Option<&&Done>> = wanted.iter().map(|wanted| of(wanted)).collect();
    let count = |state: State| states.iter().flatten().filter(|done| done.state == state).count();
    let (attached, failed) = (count(State::Attached), count(State::Failed));
    let (ready, reason, message) = match unusable {
        _ if is_going(attachment) => (false, "Detaching", format!("{} containers have it still", said.len())),
        Some(Unusable(why)) => (false, "Unusable", why.clone()),
        None if failed > 0 => (false, "Failed", failures(&states, failed)),
        None if attached < wanted.len() => {
            (false, "Attaching", format!("{attached} of {} containers have it", wanted.len()))
        }
        None if wanted.is_empty() => (true, "NoContainers", "no container is to have it".to_owned()),
        None => (true, "Attached", format!("{attached} containers have it")),
    };
    let before = attachment.status.as_ref().map_or(&[][..], |before| &before.conditions);
    let condition = Condition {
        type_: READY.to_owned(),
        status: if ready { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: attachment.metadata.generation,
        last_transition_time: Time(now),
    };
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    CapsuleAttachmentStatus {
        observed_generation: attachment.metadata.generation,
        wanted: number(wanted.len()),
        attached: number(attached),
        failed: number(failed),
        conditions: vec![dated(condition, before)],
    }
}

fn failures(states: &[Option<&&Done>], failed: usize) -> String {
    let lines = states.iter().flatten().filter(|done| done.state == State::Failed).take(NAMED).map(|done| {
        let why = done.message.as_deref().unwrap_or("capsuled does not answer");
        format!("{}/{}: {why}", done.pod.name, done.container)
    });
    let mut said = lines.collect::<Vec<_>>().join("; ");
    if failed > NAMED {
        said.push_str(&format!("; and {} more", failed - NAMED));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CapsuleAttachmentSpec, Owner, PodRef};

    fn attachment() -> CapsuleAttachment {
        let mut one = CapsuleAttachment::new("a", CapsuleAttachmentSpec { capsule: "tz".into(), ..spec() });
        one.metadata.generation = Some(4);
        one
    }

    fn spec() -> CapsuleAttachmentSpec {
        CapsuleAttachmentSpec {
            pod_selector: Default::default(),
            containers: vec![],
            capsule: String::new(),
            version: Some("2".into()),
            target: None,
            mode: None,
            devices: vec![],
            resources: None,
        }
    }

    fn assigned(pod: &str) -> Assigned {
        Assigned {
            owner: Owner { namespace: "shop".into(), name: "a".into(), uid: "u".into() },
            pod: PodRef { name: pod.into(), uid: format!("uid-{pod}") },
            container: "app".into(),
            capsule: "tz".into(),
            version: Some("2".into()),
            target: None,
            mode: None,
            devices: vec![],
            resources: None,
            check: None,
        }
    }

    fn done(pod: &str, state: State, asked: &str, message: Option<&str>) -> Done {
        let Assigned { owner, pod, container, capsule, .. } = assigned(pod);
        let (version, target) = (Some(asked.to_owned()), Some("/tz".to_owned()));
        let message = message.map(str::to_owned);
        Done {
            owner,
            pod,
            container,
            capsule,
            state,
            since: None,
            asked: version.clone(),
            version,
            target,
            devices: vec![],
            found: false,
            message,
        }
    }

    fn told(wanted: &[&str], said: &[Done]) -> (CapsuleAttachmentStatus, String) {
        let wanted: Vec<Assigned> = wanted.iter().map(|pod| assigned(pod)).collect();
        let now = Timestamp::UNIX_EPOCH;
        let made = status(
            &attachment(),
            None,
            &wanted.iter().collect::<Vec<_>>(),
            &said.iter().collect::<Vec<_>>(),
            now,
        );
        let Condition { status, reason, message, .. } = made.conditions[0].clone();
        (made, format!("{status} {reason} {message}"))
    }

    #[test]
    fn it_is_ready_when_all_have_the_version_that_is_asked_for() {
        let (status, line) = told(&["w0", "w1"], &[done("w0", State::Attached, "2", None)]);
        assert_eq!((status.wanted, status.attached, status.failed), (2, 1, 0));
        assert_eq!(
            (status.observed_generation, line.as_str()),
            (Some(4), "False Attaching 1 of 2 containers have it")
        );
        // What an agent has said of another version is of before.
        let both = [done("w0", State::Attached, "2", None), done("w1", State::Attached, "1", None)];
        assert_eq!(told(&["w0", "w1"], &both).0.attached, 1);
        assert_eq!(told(&["w0"], &both).1, "True Attached 1 containers have it");
        assert_eq!(told(&[], &both).1, "True NoContainers no container is to have it");
    }

    #[test]
    fn who_cannot_have_it_is_named_with_why() {
        let said: Vec<Done> =
            (0..5).map(|n| done(&format!("w{n}"), State::Failed, "2", Some("no room"))).collect();
        let (status, line) = told(&["w0", "w1", "w2", "w3", "w4"], &said);
        assert_eq!(status.failed, 5);
        assert_eq!(line, "False Failed w0/app: no room; w1/app: no room; w2/app: no room; and 2 more");
    }

    #[test]
    fn a_condition_has_the_time_of_its_last_change() {
        let mut one = attachment();
        let later = Timestamp::from_second(60).unwrap();
        one.status = Some(status(&one, None, &[], &[], Timestamp::UNIX_EPOCH));
        let same = status(&one, None, &[], &[], later);
        assert_eq!(same.conditions[0].last_transition_time, Time(Timestamp::UNIX_EPOCH));
        let other = status(&one, Some(&Unusable("podSelector: x".into())), &[], &[], later);
        assert_eq!(other.conditions[0].last_transition_time, Time(later));
    }
}
