//! What an agent does next. Pure: what is assigned, what it has done, and what capsuled has, in; steps, and what to say of them, out.
//!
//! An attachment is the agent's own from the moment at which it has said that it will make it. What is there without that somebody else
//! has attached: it is counted, and neither moved nor detached.

use std::collections::{BTreeMap, BTreeSet};

use super::devices::{self, Held};
use crate::api::{Assigned, Done, HealthCheck, Owner, PodRef, State};

/// An attachment that capsuled has in a container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The pod's uid.
    pub pod: String,
    /// The container's name in the pod.
    pub container: String,
    /// The capsule.
    pub capsule: String,
    /// Its version.
    pub version: String,
    /// Where it is.
    pub target: String,
    /// It comes back with the container's next task.
    pub waits: bool,
}

/// What versions are asked for stand for on this node: a version's own name, or why there is none. By capsule and version; an empty one is
/// the newest.
pub type Versions = BTreeMap<(String, String), Result<String, String>>;

/// What is to be done about one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Attach it.
    Attach(Box<Assigned>),
    /// Attach these devices, which the container lacks.
    Devices(Vec<String>),
    /// Move what is there to another version.
    Move {
        /// The version.
        version: String,
        /// What is to succeed then.
        check: Option<HealthCheck>,
    },
    /// Detach it; processes that use it keep what they have.
    Detach {
        /// The capsule too, and not the devices alone.
        capsule: bool,
        /// What came with it.
        devices: Vec<String>,
    },
}

/// An attachment, what is said of it before the step, and the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// To be said before the step is taken.
    pub done: Done,
    /// What is to be done.
    pub step: Step,
}

/// Plans for all of them: those that are assigned first, in their order.
///
/// Of several that are of one place, the first decides what is there.
pub fn plan(
    assigned: &[Assigned],
    before: &[Done],
    present: &[Present],
    held: &[Held],
    versions: &Versions,
) -> Vec<Planned> {
    let mut coming = Coming::new();
    let wanted = assigned.iter().enumerate().map(|(index, wanted)| {
        let planned = plan_wanted(wanted, before, present, versions);
        let planned = match assigned[..index].iter().find(|first| is_same_place(first, wanted)) {
            Some(first) => follow(planned, first, wanted),
            None => planned,
        };
        with_devices(planned, wanted, before, held, &mut coming)
    });
    let gone = before.iter().filter(|done| !assigned.iter().any(|wanted| key_of(wanted) == key(done)));
    let leaving = gone.filter_map(|done| plan_leaving(done, assigned, before, present, held));
    wanted.chain(leaving).collect()
}

fn is_same_place(one: &Assigned, other: &Assigned) -> bool {
    let is_one_free = one.target.is_none() || other.target.is_none();
    (&one.pod, &one.container, &one.capsule) == (&other.pod, &other.container, &other.capsule)
        && (is_one_free || one.target == other.target)
}

/// What is planned for one that does not decide: nothing is done for it.
fn follow(planned: Planned, first: &Assigned, wanted: &Assigned) -> Planned {
    let Planned { mut done, .. } = planned;
    let devices = |one: &Assigned| one.devices.iter().cloned().collect::<BTreeSet<_>>();
    let is_same = (&first.version, first.mode, &first.resources)
        == (&wanted.version, wanted.mode, &wanted.resources)
        && devices(first) == devices(wanted);
    if !is_same {
        let Owner { namespace, name, .. } = &first.owner;
        done.state = State::Failed;
        done.message = Some(format!("the CapsuleAttachment {namespace}/{name} asks for another of it"));
    }
    Planned { done, step: Step::Rest }
}

fn key(done: &Done) -> (&Owner, &PodRef, &str) {
    (&done.owner, &done.pod, &done.container)
}

fn key_of(assigned: &Assigned) -> (&Owner, &PodRef, &str) {
    (&assigned.owner, &assigned.pod, &assigned.container)
}

fn is_at(present: &Present, pod: &PodRef, container: &str, capsule: &str, target: Option<&str>) -> bool {
    present.pod == pod.uid
        && present.container == container
        && present.capsule == capsule
        && target.is_none_or(|target| target == present.target)
}

fn plan_wanted(wanted: &Assigned, before: &[Done], present: &[Present], versions: &Versions) -> Planned {
    let own = before.iter().find(|done| key(done) == key_of(wanted));
    let target = wanted.target.as_deref().or_else(|| own.and_then(|done| done.target.as_deref()));
    let there = present.iter().find(|p| is_at(p, &wanted.pod, &wanted.container, &wanted.capsule, target));
    // What another owner has made, and does not want any more, is this one's.
    let made = |there: &Present| {
        before.iter().any(|done| {
            !done.found && is_at(there, &done.pod, &done.container, &done.capsule, done.target.as_deref())
        })
    };
    let found = there.is_some_and(|there| own.map_or(!made(there), |own| own.found));
    let done = |state, message: Option<String>| Done {
        owner: wanted.owner.clone(),
        pod: wanted.pod.clone(),
        container: wanted.container.clone(),
        capsule: wanted.capsule.clone(),
        state,
        asked: wanted.version.clone(),
        since: None,
        version: there.map(|there| there.version.clone()),
        // Said before it is there: whoever takes over knows which one it is.
        target: there.map(|there| there.target.clone()).or_else(|| wanted.target.clone()),
        devices: Vec::new(),
        found,
        message,
    };
    let planned = |state, message, step| Planned { done: done(state, message), step };
    let asked = wanted.version.as_ref();
    let version = versions.get(&(wanted.capsule.clone(), asked.cloned().unwrap_or_default()));
    match (there, version) {
        (_, Some(Err(why))) if asked.is_some() || there.is_none() => {
            planned(State::Failed, Some(why.clone()), Step::Rest)
        }
        (None, found) => {
            // A channel, a range and the newest are what they stand for now, and were looked at.
            let version = found.and_then(|found| found.as_ref().ok()).cloned();
            let version = version.or_else(|| wanted.version.clone());
            planned(State::Waiting, None, Step::Attach(Box::new(Assigned { version, ..wanted.clone() })))
        }
        (Some(there), _) if there.waits => planned(State::Waiting, None, Step::Rest),
        (Some(there), Some(Ok(version))) if asked.is_some() && there.version != *version => {
            if found {
                let Present { capsule, version, target, .. } = there;
                let why = format!(
                    "the container has {capsule}@{version} at {target}, which was attached otherwise: detach it, or ask for that version"
                );
                planned(State::Failed, Some(why), Step::Rest)
            } else {
                let (version, check) = (version.clone(), wanted.check.clone());
                planned(State::Waiting, None, Step::Move { version, check })
            }
        }
        (Some(_), _) => planned(State::Attached, None, Step::Rest),
    }
}

/// Devices of containers of pods that steps before this one attach: the pod's uid, the container, the device.
type Coming = BTreeSet<(String, String, String)>;

/// Its devices come with the capsule, or after it where it is there without them. Nothing is claimed that is not about to be attached: who
/// attaches that meanwhile keeps it.
fn with_devices(
    planned: Planned,
    wanted: &Assigned,
    before: &[Done],
    held: &[Held],
    coming: &mut Coming,
) -> Planned {
    let Planned { mut done, mut step } = planned;
    let missing = devices::missing(wanted, held);
    let is_first =
        |device: &String| coming.insert((wanted.pod.uid.clone(), wanted.container.clone(), device.clone()));
    done.devices = devices::made(wanted, before);
    let claim = |done: &mut Done, missing: &[String]| {
        done.devices.extend(missing.iter().cloned());
        done.devices.sort();
        done.devices.dedup();
    };
    match &mut step {
        Step::Attach(attached) => {
            claim(&mut done, &missing);
            attached.devices = missing.into_iter().filter(is_first).collect();
        }
        Step::Rest if done.state == State::Attached && !missing.is_empty() => {
            claim(&mut done, &missing);
            let first: Vec<String> = missing.into_iter().filter(is_first).collect();
            done.state = State::Waiting;
            step = if first.is_empty() { Step::Rest } else { Step::Devices(first) };
        }
        _ => {}
    }
    Planned { done, step }
}

/// What becomes of a capsule that its owner does not want any more.
enum Leaving {
    /// It stays, or is gone.
    Nothing,
    /// It goes, from here.
    Goes(Option<String>),
    /// It cannot be said which one it is.
    Unclear,
}

fn plan_leaving(
    done: &Done,
    assigned: &[Assigned],
    before: &[Done],
    present: &[Present],
    held: &[Held],
) -> Option<Planned> {
    let devices = devices::leaving(done, assigned, held);
    let leaving = |target: Option<String>, message: Option<String>, step| {
        Some(Planned { done: Done { state: State::Detaching, target, message, ..done.clone() }, step })
    };
    match leaving_capsule(done, assigned, before, present) {
        Leaving::Nothing if devices.is_empty() => None,
        Leaving::Nothing => leaving(done.target.clone(), None, Step::Detach { capsule: false, devices }),
        Leaving::Goes(target) => leaving(target, None, Step::Detach { capsule: true, devices }),
        // It stays on record, and its devices with it.
        Leaving::Unclear => {
            let why = "the container has the capsule at several targets, and it is not known which one is meant: detach it by hand";
            leaving(None, Some(why.to_owned()), Step::Rest)
        }
    }
}

fn leaving_capsule(done: &Done, assigned: &[Assigned], before: &[Done], present: &[Present]) -> Leaving {
    let target = done.target.as_deref();
    let there: Vec<&Present> =
        present.iter().filter(|p| is_at(p, &done.pod, &done.container, &done.capsule, target)).collect();
    if done.found || there.iter().any(|there| is_wanted(there, assigned, before)) {
        return Leaving::Nothing;
    }
    match there[..] {
        // What was begun may still be on its way: capsuled ends that first, and then has nothing of it.
        [] if done.state != State::Attached => Leaving::Goes(done.target.clone()),
        [] => Leaving::Nothing,
        [there] => Leaving::Goes(Some(there.target.clone())),
        _ => Leaving::Unclear,
    }
}

/// Whether somebody else wants what is there.
fn is_wanted(there: &Present, assigned: &[Assigned], before: &[Done]) -> bool {
    assigned.iter().any(|other| {
        let known =
            before.iter().find(|done| key(done) == key_of(other)).and_then(|done| done.target.as_deref());
        is_at(there, &other.pod, &other.container, &other.capsule, other.target.as_deref().or(known))
    })
}

#[cfg(test)]
mod tests;
