//! Where capsules go, and what becomes of a record.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    capsules::{model::Digest, oci},
    resources::Resources,
    uppers::model::Place,
};

fn key() -> ContainerKey {
    ContainerKey { namespace: "default".into(), id: "c".into() }
}

fn content(n: u8) -> Content {
    Content {
        version: n.to_string().parse().unwrap(),
        digest: Digest::from_sha256(&[n; 32]),
        layers: vec![format!("/s/{n}/fs").into()],
        since: SystemTime::UNIX_EPOCH,
        wanted: Resources::default(),
        resources: Resources::default(),
        env: Vec::new(),
        denied: Vec::new(),
    }
}

fn attachment(phase: Phase) -> Attachment {
    Attachment {
        id: "a1".into(),
        container: key(),
        created: None,
        named: None,
        capsule: "tzdata".parse().unwrap(),
        devices: None,
        asked: Resources::default(),
        target: "/usr/share/zoneinfo".into(),
        mode: Mode::Ro,
        upper: None,
        current: content(1),
        history: vec![],
        replaced: false,
        phase,
        call: None,
    }
}

fn wanted(target: Option<&str>, annotations: &[(&str, &str)]) -> Wanted {
    let blob = oci::Descriptor { media_type: "x".into(), digest: Digest::from_sha256(&[9; 32]), size: 1 };
    let image = oci::Image {
        manifest: None,
        config: blob.clone(),
        layers: vec![blob],
        diff_ids: vec![],
        annotations: annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<BTreeMap<_, _>>(),
    };
    Wanted {
        version: Resolved {
            name: "tzdata".parse().unwrap(),
            version: "1".parse().unwrap(),
            digest: Digest::from_sha256(&[9; 32]),
            image,
        },
        target: target.map(|t| ContainerPath::parse(t).unwrap()),
        mode: None,
    }
}

#[test]
fn the_call_wins_over_the_capsules_defaults() {
    let defaults = [(oci::TARGET, "/d"), (oci::MODE, "union")];
    let (target, mode) = plan_place(&wanted(None, &defaults)).unwrap();
    assert_eq!((target.as_str(), mode), ("/d", Mode::Union));
    let (target, mode) =
        plan_place(&Wanted { mode: Some(Mode::Ro), ..wanted(Some("/t"), &defaults) }).unwrap();
    assert_eq!((target.as_str(), mode), ("/t", Mode::Ro));
    assert!(matches!(plan_place(&wanted(None, &[])), Err(AttachmentError::NoTarget { .. })));
    assert!(matches!(plan_place(&wanted(Some("/"), &[])), Err(AttachmentError::RoRoot)));
    let climbing = wanted(None, &[(oci::TARGET, "/a/../b")]);
    assert!(matches!(plan_place(&climbing), Err(AttachmentError::Target(_))));
}

#[test]
fn a_target_is_taken_once() {
    let existing = [attachment(Phase::Attached)];
    let place = |t: &str| (ContainerPath::parse(t).unwrap(), "other@1".to_owned());
    assert!(plan_free(&key(), &existing, &[place("/a"), place("/b")]).is_ok());
    let refused = plan_free(&key(), &existing, &[place("/usr/share/zoneinfo/")]).unwrap_err();
    assert!(refused.to_string().contains("is taken by tzdata@1"), "{refused}");
    assert!(plan_free(&key(), &[], &[place("/a"), place("/a")]).is_err());
}

#[test]
fn rollback_undoes_upgrades_one_by_one() {
    let up = |a: &Attachment, n| plan_done(&plan_upgrade(a, &content(n)).unwrap()).unwrap();
    let three = up(&up(&attachment(Phase::Attached), 2), 3);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    let two = plan_done(&plan_rollback(&three, now).unwrap()).unwrap();
    assert_eq!((two.current.version.as_str(), two.current.since), ("2", now));
    let one = plan_done(&plan_rollback(&two, now).unwrap()).unwrap();
    assert_eq!(one.current.version.as_str(), "1");
    assert!(matches!(plan_rollback(&one, now), Err(AttachmentError::NoHistory { .. })));
}

#[test]
fn an_upgrade_to_what_is_there_does_nothing() {
    assert_eq!(plan_upgrade(&attachment(Phase::Attached), &content(1)), None);
}

#[test]
fn history_is_bounded() {
    let mut a = attachment(Phase::Attached);
    for n in 2..60 {
        a = plan_done(&plan_upgrade(&a, &content(n)).unwrap()).unwrap();
    }
    assert_eq!(a.history.len(), HISTORY);
    assert_eq!(a.history.last().unwrap().version.as_str(), "58");
}

#[test]
fn recovery_follows_what_the_shim_has() {
    let one = content(1).digest.to_string();
    let two = content(2).digest.to_string();
    let attaching = attachment(Phase::Attaching);
    assert_eq!(plan_recovered(&attaching, Seen::Unknown), None);
    assert_eq!(plan_recovered(&attaching, Seen::Mounted(&one)).unwrap().phase, Phase::Attached);
    let replacing = plan_upgrade(&attachment(Phase::Attached), &content(2)).unwrap();
    let after = plan_recovered(&replacing, Seen::Mounted(&two)).unwrap();
    assert_eq!((after.current.version.as_str(), after.history.len()), ("2", 1));
    let before = plan_recovered(&replacing, Seen::Mounted(&one)).unwrap();
    assert_eq!((before.current.version.as_str(), before.history.len()), ("1", 0));
    let detaching = attachment(Phase::Detaching { lazy: false, fate: None });
    assert_eq!(plan_recovered(&detaching, Seen::Unknown), None);
    assert_eq!(plan_recovered(&detaching, Seen::Mounted(&one)).unwrap().phase, Phase::Attached);
}

#[test]
fn a_call_is_kept_as_a_whole_or_undone() {
    let (one, two) = (content(1).digest.to_string(), content(2).digest.to_string());
    let of = |id: &str, phase, trial| Attachment {
        id: id.into(),
        call: Some(Call { id: "call".into(), trial }),
        ..attachment(phase)
    };
    let replacing = || plan_upgrade(&attachment(Phase::Attached), &content(2)).unwrap().phase;
    let detaching = || Phase::Detaching { lazy: false, fate: None };
    for (first, second, trial, mounted, undone) in [
        (Phase::Attaching, replacing(), false, &[("a", one.as_str()), ("b", two.as_str())][..], false),
        (Phase::Attaching, replacing(), true, &[("a", &one), ("b", &two)], true),
        (Phase::Attaching, replacing(), false, &[("a", &one), ("b", &one)], true),
        (Phase::Attaching, replacing(), false, &[("b", &two)], true),
        (detaching(), detaching(), false, &[("a", &one)], true),
        (detaching(), detaching(), false, &[], false),
    ] {
        let records = [of("a", first, trial), of("b", second, trial)];
        let calls = plan_undoing(&records, |a| match mounted.iter().find(|(id, _)| *id == a.id) {
            Some((_, digest)) => Seen::Mounted(digest),
            None => Seen::Unknown,
        });
        assert_eq!(!calls.is_empty(), undone, "{records:?} {mounted:?}");
    }
    let alone = Attachment { call: None, ..of("a", Phase::Attaching, false) };
    assert!(plan_undoing(&[alone], |_| Seen::Unknown).is_empty());
}

#[test]
fn what_was_attached_when_its_task_ended_waits_for_the_next() {
    let one = content(1).digest.to_string();
    let replacing = plan_upgrade(&attachment(Phase::Attached), &content(2)).unwrap();
    for (before, waits) in [
        (attachment(Phase::Attached), true),
        (attachment(Phase::Waiting), true),
        (replacing, true),
        (attachment(Phase::Attaching), false),
        (attachment(Phase::Detaching { lazy: true, fate: None }), false),
    ] {
        let after = plan_recovered(&before, Seen::Unknown);
        assert_eq!(after.is_some(), waits, "{before:?}");
        assert!(after.is_none_or(|a| a.phase == Phase::Waiting && a.current == content(1)));
        assert_eq!(plan_recovered(&before, Seen::Unmounted), None);
    }
    let again = plan_recovered(&attachment(Phase::Waiting), Seen::Mounted(&one)).unwrap();
    assert_eq!(again, attachment(Phase::Attached));
}

#[test]
fn only_the_same_container_has_it_again_and_only_while_its_annotation_says_so() {
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let known = |created| Known { created, ..Known::default() };
    let of = |created| Attachment { created, ..attachment(Phase::Waiting) };
    for (then, now, is) in [
        (at(5), Some(known(at(5))), true),
        (at(5), Some(known(at(6))), false),
        (None, Some(known(at(6))), true),
        (at(5), Some(known(None)), true),
        (at(5), None, false),
    ] {
        assert_eq!(is_of(&of(then), now.as_ref()), is, "{then:?} {now:?}");
    }
    let annotation = super::super::named::parse_named("tzdata@1:/t, tools").unwrap();
    for (named, wanted) in
        [(None, true), (Some("tzdata@1:/t"), true), (Some("tools"), true), (Some("tzdata@2:/t"), false)]
    {
        let record = Attachment { named: named.map(str::to_owned), ..attachment(Phase::Waiting) };
        assert_eq!(is_wanted(&record, &annotation), wanted, "{named:?}");
    }
}

#[test]
fn nothing_waits_in_a_container_that_is_started_once_but_what_was_written() {
    let written = |name: Option<&str>| Upper {
        name: name.map(|name| name.parse().unwrap()),
        place: Place::Directory("u".into()),
        limit: None,
        fresh: false,
    };
    for (upper, once, is) in [
        (None, true, true),
        (None, false, false),
        (Some(written(Some("kept"))), true, true),
        (Some(written(None)), true, false),
    ] {
        let record = Attachment { upper, ..attachment(Phase::Waiting) };
        let known = Known { once, ..Known::default() };
        assert_eq!(is_over(&record, Some(&known)), is, "{record:?} {once}");
        assert!(!is_over(&record, None));
    }
}
