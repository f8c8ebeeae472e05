//! What an agent does next. Pure: what is assigned, what it has done, and what capsuled has, in; steps, and what to say of them, out.
//!
//! An attachment is the agent's own from the moment at which it has said that it will make it. What is there without that somebody else
//! has attached: it is counted, and neither moved nor detached.

use std::collections::BTreeMap;

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
    /// Move what is there to another version.
    Move {
        /// The version, as it is asked for.
        version: String,
        /// What is to succeed then.
        check: Option<HealthCheck>,
    },
    /// Detach it; processes that use it keep what they have.
    Detach,
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
    versions: &Versions,
) -> Vec<Planned> {
    let wanted = assigned.iter().enumerate().map(|(index, wanted)| {
        let planned = plan_wanted(wanted, before, present, versions);
        match assigned[..index].iter().find(|first| is_same_place(first, wanted)) {
            Some(first) => follow(planned, first, wanted),
            None => planned,
        }
    });
    let gone = before.iter().filter(|done| !assigned.iter().any(|wanted| key_of(wanted) == key(done)));
    let leaving = gone.filter_map(|done| plan_leaving(done, assigned, before, present));
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
    if (&first.version, first.mode, &first.resources) != (&wanted.version, wanted.mode, &wanted.resources) {
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
        (None, _) => planned(State::Waiting, None, Step::Attach(Box::new(wanted.clone()))),
        (Some(there), _) if there.waits => planned(State::Waiting, None, Step::Rest),
        (Some(there), Some(Ok(version))) if asked.is_some() && there.version != *version => {
            if found {
                let Present { capsule, version, target, .. } = there;
                let why = format!(
                    "the container has {capsule}@{version} at {target}, which was attached otherwise: detach it, or ask for that version"
                );
                planned(State::Failed, Some(why), Step::Rest)
            } else {
                let (version, check) = (asked.cloned().unwrap_or_default(), wanted.check.clone());
                planned(State::Waiting, None, Step::Move { version, check })
            }
        }
        (Some(_), _) => planned(State::Attached, None, Step::Rest),
    }
}

fn plan_leaving(done: &Done, assigned: &[Assigned], before: &[Done], present: &[Present]) -> Option<Planned> {
    let target = done.target.as_deref();
    let there: Vec<&Present> =
        present.iter().filter(|p| is_at(p, &done.pod, &done.container, &done.capsule, target)).collect();
    if done.found || there.iter().any(|there| is_wanted(there, assigned, before)) {
        return None;
    }
    let leaving = |target: Option<String>, message: Option<String>, step| {
        Some(Planned { done: Done { state: State::Detaching, target, message, ..done.clone() }, step })
    };
    match there[..] {
        // What was begun may still be on its way: capsuled ends that first, and then has nothing of it.
        [] if done.state != State::Attached => leaving(done.target.clone(), None, Step::Detach),
        [] => None,
        [there] => leaving(Some(there.target.clone()), None, Step::Detach),
        _ => {
            let why = "the container has the capsule at several targets, and it is not known which one is meant: detach it by hand";
            leaving(None, Some(why.to_owned()), Step::Rest)
        }
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
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}") }
    }

    fn assigned(owner_: &str, version: Option<&str>) -> Assigned {
        Assigned {
            owner: owner(owner_),
            pod: PodRef { name: "web-0".into(), uid: "p0".into() },
            container: "app".into(),
            capsule: "tz".into(),
            version: version.map(str::to_owned),
            target: None,
            mode: None,
            resources: None,
            check: None,
        }
    }

    fn there(version: &str) -> Present {
        Present {
            pod: "p0".into(),
            container: "app".into(),
            capsule: "tz".into(),
            version: version.into(),
            target: "/tz".into(),
            waits: false,
        }
    }

    fn versions() -> Versions {
        let of = |asked: &str, is: Result<&str, &str>| {
            (("tz".to_owned(), asked.to_owned()), is.map(str::to_owned).map_err(str::to_owned))
        };
        [of("", Ok("2")), of("1", Ok("1")), of("2", Ok("2")), of("stable", Ok("2")), of("9", Err("no tz@9"))]
            .into()
    }

    /// What is done, and in which state it is said to be; then what would be remembered if each step went well.
    fn run(assigned: &[Assigned], before: &[Done], present: &[Present]) -> (Vec<(State, Step)>, Vec<Done>) {
        let planned = plan(assigned, before, present, &versions());
        let told = planned.iter().map(|p| (p.done.state, p.step.clone())).collect();
        (told, planned.into_iter().map(|p| p.done).collect())
    }

    #[test]
    fn it_is_said_before_it_is_done_and_detached_when_its_owner_goes() {
        let wanted = [assigned("a", Some("1"))];
        let (told, said) = run(&wanted, &[], &[]);
        assert_eq!(told, [(State::Waiting, Step::Attach(Box::new(wanted[0].clone())))]);
        // The agent is killed after the attach, and before it has said so.
        let (told, said) = run(&wanted, &said, &[there("1")]);
        assert_eq!((told, said[0].found), (vec![(State::Attached, Step::Rest)], false));
        let (told, _) = run(&[], &said, &[there("1")]);
        assert_eq!(told, [(State::Detaching, Step::Detach)]);
        assert_eq!(run(&[], &said, &[]).0, []);
    }

    #[test]
    fn what_may_be_on_its_way_is_detached_and_what_is_not_known_is_left() {
        let mut wanted = assigned("a", Some("1"));
        wanted.target = Some("/tz".into());
        let said = run(&[wanted], &[], &[]).1;
        assert_eq!(said[0].target.as_deref(), Some("/tz"));
        // Its owner goes before capsuled has it.
        assert_eq!(run(&[], &said, &[]).0, [(State::Detaching, Step::Detach)]);
        // A person has it elsewhere.
        let elsewhere = Present { target: "/other".into(), ..there("1") };
        let (_, still) = run(&[], &said, &[elsewhere.clone(), there("1")]);
        assert_eq!(still[0].target.as_deref(), Some("/tz"));
        let nowhere = run(&[assigned("a", Some("1"))], &[], &[]).1;
        let (told, left) = run(&[], &nowhere, &[elsewhere, there("1")]);
        assert_eq!(told, [(State::Detaching, Step::Rest)]);
        assert!(left[0].message.as_deref().unwrap().contains("several targets"));
    }

    #[test]
    fn the_first_of_two_decides() {
        let both = [assigned("a", Some("1")), assigned("b", Some("2"))];
        let (told, said) = run(&both, &[], &[]);
        assert!(
            matches!(told[..], [(State::Waiting, Step::Attach(_)), (State::Failed, Step::Rest)]),
            "{told:?}"
        );
        assert!(said[1].message.as_deref().unwrap().contains("shop/a asks for another"));
        assert_eq!(
            run(&both, &said, &[there("1")]).0,
            [(State::Attached, Step::Rest), (State::Failed, Step::Rest)]
        );
        // With a target of its own, it is another place.
        let mut apart = both;
        (apart[0].target, apart[1].target) = (Some("/tz".into()), Some("/x".into()));
        let said = run(&apart, &[], &[]).1;
        let two = [there("1"), Present { target: "/x".into(), version: "2".into(), ..there("1") }];
        let (told, said) = run(&apart, &said, &two);
        assert_eq!(told, [(State::Attached, Step::Rest), (State::Attached, Step::Rest)]);
        assert_eq!(
            run(&apart[..1], &said, &two).0,
            [(State::Attached, Step::Rest), (State::Detaching, Step::Detach)]
        );
    }

    #[test]
    fn a_version_moves_and_a_tag_stands_for_one() {
        let said = run(&[assigned("a", Some("1"))], &[], &[]).1;
        let (told, said) = run(&[assigned("a", Some("stable"))], &said, &[there("1")]);
        assert_eq!(told, [(State::Waiting, Step::Move { version: "stable".into(), check: None })]);
        assert_eq!(
            run(&[assigned("a", Some("stable"))], &said, &[there("2")]).0,
            [(State::Attached, Step::Rest)]
        );
        // None is any.
        assert_eq!(run(&[assigned("a", None)], &said, &[there("1")]).0, [(State::Attached, Step::Rest)]);
        let (told, said) = run(&[assigned("a", Some("9"))], &said, &[there("2")]);
        assert_eq!(told, [(State::Failed, Step::Rest)]);
        assert_eq!((said[0].message.as_deref(), said[0].version.as_deref()), (Some("no tz@9"), Some("2")));
    }

    #[test]
    fn what_others_have_attached_is_counted_and_left_alone() {
        let (told, said) = run(&[assigned("a", Some("1"))], &[], &[there("1")]);
        assert_eq!((told, said[0].found), (vec![(State::Attached, Step::Rest)], true));
        assert_eq!(run(&[], &said, &[there("1")]).0, []);
        let (told, again) = run(&[assigned("a", Some("2"))], &said, &[there("1")]);
        assert_eq!(told, [(State::Failed, Step::Rest)]);
        assert!(again[0].message.as_deref().unwrap().contains("tz@1 at /tz"));
        // Once it is gone there, it is attached, and this one's own.
        let (told, said) = run(&[assigned("a", Some("2"))], &said, &[]);
        assert!(matches!(told[..], [(State::Waiting, Step::Attach(_))]) && !said[0].found);
    }

    #[test]
    fn what_two_want_stays_until_neither_does() {
        let first = run(&[assigned("a", None)], &[], &[]).1;
        let both = [assigned("a", None), assigned("b", None)];
        let (told, said) = run(&both, &first, &[there("1")]);
        assert_eq!(told, [(State::Attached, Step::Rest), (State::Attached, Step::Rest)]);
        let (told, said) = run(&both[1..], &said, &[there("1")]);
        assert_eq!(told, [(State::Attached, Step::Rest)]);
        assert_eq!(run(&[], &said, &[there("1")]).0, [(State::Detaching, Step::Detach)]);
    }

    #[test]
    fn another_pod_of_the_name_is_another() {
        let said = run(&[assigned("a", None)], &[], &[]).1;
        let said = run(&[assigned("a", None)], &said, &[there("1")]).1;
        let mut next = assigned("a", None);
        next.pod.uid = "p1".into();
        // The old one's container is gone with what it had.
        let (told, _) = run(&[next.clone()], &said, &[]);
        assert_eq!(told, [(State::Waiting, Step::Attach(Box::new(next)))]);
        let waits = Present { waits: true, ..there("1") };
        assert_eq!(run(&[assigned("a", None)], &said, &[waits]).0, [(State::Waiting, Step::Rest)]);
    }
}
