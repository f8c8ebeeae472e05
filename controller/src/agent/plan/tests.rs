//! What is planned, and what follows when it is done, or not.

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
        devices: vec![],
        resources: None,
        check: None,
    }
}

fn detach() -> Step {
    Step::Detach { capsule: true, devices: vec![] }
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
    let planned = plan(assigned, before, present, &[], &versions());
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
    assert_eq!(told, [(State::Detaching, detach())]);
    assert_eq!(run(&[], &said, &[]).0, []);
}

#[test]
fn what_may_be_on_its_way_is_detached_and_what_is_not_known_is_left() {
    let mut wanted = assigned("a", Some("1"));
    wanted.target = Some("/tz".into());
    let said = run(&[wanted], &[], &[]).1;
    assert_eq!(said[0].target.as_deref(), Some("/tz"));
    // Its owner goes before capsuled has it.
    assert_eq!(run(&[], &said, &[]).0, [(State::Detaching, detach())]);
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
    assert!(matches!(told[..], [(State::Waiting, Step::Attach(_)), (State::Failed, Step::Rest)]), "{told:?}");
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
        [(State::Attached, Step::Rest), (State::Detaching, detach())]
    );
}

#[test]
fn a_version_moves_and_a_tag_stands_for_one() {
    let said = run(&[assigned("a", Some("1"))], &[], &[]).1;
    let (told, said) = run(&[assigned("a", Some("stable"))], &said, &[there("1")]);
    assert_eq!(told, [(State::Waiting, Step::Move { version: "2".into(), check: None })]);
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
    assert_eq!(run(&[], &said, &[there("1")]).0, [(State::Detaching, detach())]);
}

#[test]
fn another_pod_of_the_name_is_another() {
    let said = run(&[assigned("a", None)], &[], &[]).1;
    let said = run(&[assigned("a", None)], &said, &[there("1")]).1;
    let mut next = assigned("a", None);
    next.pod.uid = "p1".into();
    // The old one's container is gone with what it had.
    let (told, _) = run(&[next.clone()], &said, &[]);
    let newest = Assigned { version: Some("2".into()), ..next };
    assert_eq!(told, [(State::Waiting, Step::Attach(Box::new(newest)))]);
    let waits = Present { waits: true, ..there("1") };
    assert_eq!(run(&[assigned("a", None)], &said, &[waits]).0, [(State::Waiting, Step::Rest)]);
}

#[test]
fn a_channel_is_attached_as_what_it_stands_for() {
    let (told, said) = run(&[assigned("a", Some("stable"))], &[], &[]);
    let attached = Assigned { version: Some("2".into()), ..assigned("a", Some("stable")) };
    assert_eq!(told, [(State::Waiting, Step::Attach(Box::new(attached)))]);
    assert_eq!(said[0].asked.as_deref(), Some("stable"));
}

#[test]
fn devices_come_and_go_with_it() {
    let device = |name: &str| format!("example.com/gpu={name}");
    let held = |names: &[&str]| -> Vec<Held> {
        let one = |name: &&str| Held { pod: "p0".into(), container: "app".into(), device: device(name) };
        names.iter().map(one).collect()
    };
    let wanted = Assigned { devices: vec![device("0"), device("1")], ..assigned("a", Some("1")) };
    let run = |assigned: &[Assigned], before: &[Done], present: &[Present], names: &[&str]| {
        let planned = plan(assigned, before, present, &held(names), &versions());
        let told: Vec<Step> = planned.iter().map(|one| one.step.clone()).collect();
        (told, planned.into_iter().map(|one| one.done).collect::<Vec<_>>())
    };
    let all = std::slice::from_ref(&wanted);
    // Somebody has given it one already: that one stays.
    let (told, said) = run(all, &[], &[], &["0"]);
    let attached = Assigned { devices: vec![device("1")], ..wanted.clone() };
    assert_eq!(told, [Step::Attach(Box::new(attached))]);
    assert_eq!(said[0].devices, [device("1")]);
    let (told, said) = run(all, &said, &[there("1")], &["0", "1"]);
    assert_eq!((told, &said[0].devices), (vec![Step::Rest], &vec![device("1")]));
    assert_eq!(said[0].state, State::Attached);
    let gone = Step::Detach { capsule: true, devices: vec![device("1")] };
    assert_eq!(run(&[], &said, &[there("1")], &["0", "1"]).0, [gone]);
    // Another one wants the device alone, so to speak: the capsule elsewhere.
    let other =
        Assigned { target: Some("/x".into()), devices: vec![device("1")], ..assigned("b", Some("1")) };
    let told = run(&[other], &said, &[there("1"), Present { target: "/x".into(), ..there("1") }], &["1"]).0;
    assert!(told.contains(&detach()), "{told:?}");
    // It is lost, and comes again; where the capsule was found, the device alone is this one's.
    let (told, again) = run(all, &said, &[there("1")], &["0"]);
    assert_eq!((told, again[0].state), (vec![Step::Devices(vec![device("1")])], State::Waiting));
    let (_, found) = run(all, &[], &[there("1")], &["0"]);
    assert!(found[0].found);
    let alone = Step::Detach { capsule: false, devices: vec![device("1")] };
    assert_eq!(run(&[], &found, &[there("1")], &["0", "1"]).0, [alone]);
}

#[test]
fn devices_are_claimed_by_who_attaches_them_alone_and_once() {
    let device = || "example.com/gpu=0".to_owned();
    let with =
        |owner: &str, version: &str| Assigned { devices: vec![device()], ..assigned(owner, Some(version)) };
    let held = [Held { pod: "p0".into(), container: "app".into(), device: device() }];
    let steps = |planned: &[Planned]| planned.iter().map(|one| one.step.clone()).collect::<Vec<_>>();
    let said = |planned: Vec<Planned>| planned.into_iter().map(|one| one.done).collect::<Vec<_>>();
    // One that fails has claimed nothing: what a person attaches then stays.
    let failed = said(plan(&[with("a", "9")], &[], &[], &[], &versions()));
    assert_eq!((failed[0].state, failed[0].devices.len()), (State::Failed, 0));
    assert_eq!(steps(&plan(&[], &failed, &[], &held, &versions())), [detach()]);
    // Of two that want it in one container, one attaches it; it goes with the last.
    let elsewhere = |owner: &str| Assigned { target: Some(format!("/{owner}")), ..with(owner, "1") };
    let both = [elsewhere("a"), elsewhere("b")];
    let planned = plan(&both, &[], &[], &[], &versions());
    let second = Assigned { devices: vec![], ..both[1].clone() };
    assert_eq!(steps(&planned), [&both[0], &second].map(|one| Step::Attach(Box::new(one.clone()))));
    let said = said(planned);
    let present = ["/a", "/b"].map(|target| Present { target: target.into(), ..there("1") });
    let gone = |devices: &[String]| Step::Detach { capsule: true, devices: devices.to_vec() };
    assert_eq!(steps(&plan(&both[1..], &said, &present, &held, &versions())), [Step::Rest, gone(&[])]);
    assert_eq!(
        steps(&plan(&both[1..], &said, &present, &[], &versions())),
        [Step::Devices(vec![device()]), gone(&[])]
    );
    assert_eq!(
        steps(&plan(&[], &said, &present, &held, &versions())),
        [gone(&[device()]), gone(&[device()])]
    );
    // Where it is not known which capsule is meant, all stays on record.
    let mut unclear = said;
    unclear.truncate(1);
    unclear[0].target = None;
    let told = plan(&[], &unclear, &present, &held, &versions());
    assert_eq!((told[0].done.state, &told[0].step), (State::Detaching, &Step::Rest));
}
