//! What a call will do, decided before anything is done. Pure: no I/O.

use std::{collections::BTreeSet, time::SystemTime};

use overlayfs_utils::ContainerPath;

use super::{
    AttachSpec,
    containers::Known,
    error::AttachmentError,
    model::{Attachment, Call, ContainerKey, Content, HISTORY, Phase},
};
use crate::capsules::{
    Resolved,
    model::{CapsuleName, Mode, Version},
};

/// One capsule to attach, as far as it is known before anything is looked up.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The version found.
    pub version: Resolved,
    /// Where; the capsule's default when `None`.
    pub target: Option<ContainerPath>,
    /// How; the capsule's default or `ro` when `None`.
    pub mode: Option<Mode>,
}

/// Where and how one wanted capsule goes.
pub fn plan_place(wanted: &Wanted) -> Result<(ContainerPath, Mode), AttachmentError> {
    let image = &wanted.version.image;
    let target = match (&wanted.target, image.default_target()) {
        (Some(target), _) => target.clone(),
        (None, Some(default)) => ContainerPath::parse(default)?,
        (None, None) => return Err(AttachmentError::NoTarget { capsule: wanted.version.name.clone() }),
    };
    let mode = wanted.mode.or(image.default_mode()).unwrap_or(Mode::Ro);
    if target.is_root() && mode == Mode::Ro {
        return Err(AttachmentError::RoRoot);
    }
    Ok((target, mode))
}

/// Refuses places that are taken, by what the container has or by each other.
pub fn plan_free(
    container: &ContainerKey,
    existing: &[Attachment],
    places: &[(ContainerPath, String)],
) -> Result<(), AttachmentError> {
    let mut taken = BTreeSet::new();
    for (target, label) in places {
        let occupant = existing.iter().find(|a| a.target == target.as_str()).map(Attachment::label);
        let twice = (!taken.insert(target)).then(|| label.clone());
        if let Some(occupant) = occupant.or(twice) {
            return Err(AttachmentError::Occupied {
                container: container.clone(),
                target: target.as_str().to_owned(),
                occupant,
            });
        }
    }
    Ok(())
}

/// The attachments of a capsule in a container, at one target where one is named.
pub fn plan_chosen(
    container: &ContainerKey,
    existing: &[Attachment],
    capsule: &CapsuleName,
    target: Option<&ContainerPath>,
) -> Result<Vec<Attachment>, AttachmentError> {
    let chosen: Vec<Attachment> = existing
        .iter()
        .filter(|a| a.capsule == *capsule && target.is_none_or(|t| t.as_str() == a.target))
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Err(AttachmentError::NotAttached {
            container: container.clone(),
            capsule: capsule.clone(),
            target: target.map(|t| t.as_str().to_owned()).unwrap_or_default(),
        });
    }
    Ok(chosen)
}

/// The record while `to` takes the place of what is mounted; `None` when that is what is mounted.
pub fn plan_upgrade(attachment: &Attachment, to: &Content) -> Option<Attachment> {
    if attachment.current.digest == to.digest {
        return None;
    }
    let mut history = attachment.history.clone();
    history.push(attachment.current.clone());
    let surplus = history.len().saturating_sub(HISTORY);
    history.drain(..surplus);
    Some(Attachment { phase: Phase::Replacing { current: to.clone(), history }, ..attachment.clone() })
}

/// The record while the version before takes its place again.
pub fn plan_rollback(attachment: &Attachment, now: SystemTime) -> Result<Attachment, AttachmentError> {
    let mut history = attachment.history.clone();
    let Some(previous) = history.pop() else {
        return Err(AttachmentError::NoHistory {
            container: attachment.container.clone(),
            capsule: attachment.capsule.clone(),
            target: attachment.target.clone(),
        });
    };
    let current = Content { since: now, ..previous };
    Ok(Attachment { phase: Phase::Replacing { current, history }, ..attachment.clone() })
}

/// The version that an intent leads to; nothing for one to detach.
pub fn next_version(intent: &Attachment) -> Option<&Version> {
    match &intent.phase {
        Phase::Replacing { current, .. } => Some(&current.version),
        Phase::Detaching { .. } => None,
        Phase::Attaching | Phase::Attached | Phase::Waiting => Some(&intent.current.version),
    }
}

/// The record once its intent is carried out. An attachment that was to be detached has none.
pub fn plan_done(attachment: &Attachment) -> Option<Attachment> {
    match &attachment.phase {
        Phase::Attaching | Phase::Attached => {
            Some(Attachment { phase: Phase::Attached, call: None, ..attachment.clone() })
        }
        Phase::Replacing { current, history } => Some(Attachment {
            phase: Phase::Attached,
            call: None,
            current: current.clone(),
            history: history.clone(),
            replaced: true,
            ..attachment.clone()
        }),
        Phase::Detaching { .. } => None,
        Phase::Waiting => {
            Some(Attachment { phase: Phase::Attached, call: None, replaced: false, ..attachment.clone() })
        }
    }
}

/// The record once its intent is given up. An attachment that was never there has none.
pub fn plan_undone(attachment: &Attachment) -> Option<Attachment> {
    match &attachment.phase {
        Phase::Attaching => None,
        Phase::Attached | Phase::Replacing { .. } | Phase::Detaching { .. } => {
            Some(Attachment { phase: Phase::Attached, call: None, ..attachment.clone() })
        }
        Phase::Waiting => Some(attachment.clone()),
    }
}

/// The record once the task that it was in has ended. One that was never there, or was to go, has none.
pub fn plan_waiting(attachment: &Attachment) -> Option<Attachment> {
    match &attachment.phase {
        Phase::Attaching | Phase::Detaching { .. } => None,
        Phase::Attached | Phase::Replacing { .. } | Phase::Waiting => {
            Some(Attachment { phase: Phase::Waiting, call: None, ..attachment.clone() })
        }
    }
}

/// What a container's shim says of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen<'a> {
    /// It has mounted the content of this digest.
    Mounted(&'a str),
    /// It had, and somebody else has unmounted it.
    Unmounted,
    /// It knows of none: the task that had it has ended, or it was never there.
    Unknown,
}

/// The intents of one call, marked as such: a restart finds that they belong together. Nothing to mark for a single one.
pub fn plan_call(intents: &mut [Attachment], id: &str, trial: bool) {
    if trial || intents.len() > 1 {
        intents.iter_mut().for_each(|intent| intent.call = Some(Call { id: id.to_owned(), trial }));
    }
}

/// Whether an intent is carried out, by what the shim says.
pub fn is_done(intent: &Attachment, seen: Seen<'_>) -> bool {
    match (&intent.phase, seen) {
        (Phase::Replacing { current, .. }, Seen::Mounted(digest)) => current.digest.as_str() == digest,
        (Phase::Attaching, Seen::Mounted(_)) => true,
        (Phase::Detaching { .. }, Seen::Unmounted | Seen::Unknown) => true,
        _ => false,
    }
}

/// The calls that are to be undone: of which not all is carried out, or the container was not found to be well.
pub fn plan_undoing<'a>(records: &[Attachment], seen: impl Fn(&Attachment) -> Seen<'a>) -> BTreeSet<String> {
    let is_kept = |intent: &Attachment, call: &Call| !call.trial && is_done(intent, seen(intent));
    let calls = records.iter().filter_map(|a| a.call.as_ref().map(|call| (a, call)));
    calls.filter(|(intent, call)| !is_kept(intent, call)).map(|(_, call)| call.id.clone()).collect()
}

/// What a record becomes by what the shim says.
pub fn plan_recovered(attachment: &Attachment, seen: Seen<'_>) -> Option<Attachment> {
    let mounted = match seen {
        Seen::Mounted(digest) => digest,
        Seen::Unmounted => return None,
        Seen::Unknown => return plan_waiting(attachment),
    };
    match &attachment.phase {
        Phase::Replacing { current, .. } if current.digest.as_str() == mounted => plan_done(attachment),
        Phase::Attaching | Phase::Waiting => plan_done(attachment),
        Phase::Attached | Phase::Replacing { .. } | Phase::Detaching { .. } => plan_undone(attachment),
    }
}

/// Whether a record that waits is of the container that was created at `created` (`None`: there is none).
///
/// A time that nobody knew is taken for the same.
pub fn is_of(attachment: &Attachment, container: Option<&Known>) -> bool {
    container.is_some_and(|container| match (attachment.created, container.created) {
        (Some(then), Some(now)) => then == now,
        (None, _) | (_, None) => true,
    })
}

/// Whether a record that waits is still wanted by the annotation: what a person made is.
pub fn is_wanted(attachment: &Attachment, annotation: &[AttachSpec]) -> bool {
    attachment.named.as_ref().is_none_or(|named| annotation.iter().any(|s| s.named.as_ref() == Some(named)))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::capsules::{model::Digest, oci};

    fn key() -> ContainerKey {
        ContainerKey { namespace: "default".into(), id: "c".into() }
    }

    fn content(n: u8) -> Content {
        Content {
            version: n.to_string().parse().unwrap(),
            digest: Digest::from_sha256(&[n; 32]),
            layers: vec![format!("/s/{n}/fs").into()],
            since: SystemTime::UNIX_EPOCH,
        }
    }

    fn attachment(phase: Phase) -> Attachment {
        Attachment {
            id: "a1".into(),
            container: key(),
            created: None,
            named: None,
            capsule: "tzdata".parse().unwrap(),
            target: "/usr/share/zoneinfo".into(),
            mode: Mode::Ro,
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
            config: blob.clone(),
            layers: vec![blob],
            diff_ids: vec![],
            annotations: annotations
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect::<BTreeMap<_, _>>(),
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
        let detaching = attachment(Phase::Detaching { lazy: false });
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
        let detaching = || Phase::Detaching { lazy: false };
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
            (attachment(Phase::Detaching { lazy: true }), false),
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
}
