//! What a call will do, decided before anything is done. Pure: no I/O.

use std::{collections::BTreeSet, time::SystemTime};

use overlayfs_utils::ContainerPath;

use super::{
    AttachSpec,
    containers::Known,
    error::AttachmentError,
    model::{Attachment, Call, ContainerKey, Content, HISTORY, Phase},
};
use crate::{
    capsules::{
        Resolved,
        model::{CapsuleName, Mode, Version},
    },
    uppers::model::{Fate, Upper},
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

/// Of attachments that are to go: each with what becomes of what was written to it. What has a name stays in any case.
pub fn plan_fates(
    container: &ContainerKey,
    chosen: &[Attachment],
    fate: Option<&Fate>,
) -> Result<Vec<(Attachment, Option<Fate>)>, AttachmentError> {
    let undecided = |a: &Attachment| a.upper.as_ref().is_some_and(|upper| upper.name.is_none());
    let (all, mut open) = (chosen.iter(), chosen.iter().filter(|a| undecided(a)));
    match (open.next(), fate) {
        (Some(first), None) => Err(AttachmentError::Undecided {
            container: container.clone(),
            label: first.label(),
            target: first.target.clone(),
        }),
        (None, Some(_)) => {
            let name = chosen.iter().find_map(|a| a.upper.as_ref()?.name.clone());
            Err(AttachmentError::NothingToDecide { container: container.clone(), name })
        }
        // One name is for one of them.
        (Some(first), Some(Fate::Keep(_))) if open.next().is_some() => {
            Err(AttachmentError::KeepOne { capsule: first.capsule.clone() })
        }
        (_, fate) => Ok(all.map(|a| (a.clone(), fate.filter(|_| undecided(a)).cloned())).collect()),
    }
}

/// Refuses to move what is written to: its layers are what was written lies over, and is compared with.
pub fn plan_movable(attachment: &Attachment) -> Result<(), AttachmentError> {
    if attachment.upper.is_none() {
        return Ok(());
    }
    Err(AttachmentError::Writable {
        container: attachment.container.clone(),
        label: attachment.label(),
        target: attachment.target.clone(),
    })
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
            let upper = attachment.upper.clone().map(|upper| Upper { fresh: false, ..upper });
            Some(Attachment { phase: Phase::Attached, call: None, upper, ..attachment.clone() })
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

/// Whether a record waits in vain: its container, which is still there, has no other task. What was written to it and has no
/// name stays as long as the container, for somebody to keep it.
pub fn is_over(attachment: &Attachment, container: Option<&Known>) -> bool {
    let is_written = attachment.upper.as_ref().is_some_and(|upper| upper.name.is_none());
    container.is_some_and(|container| container.once) && !is_written
}

/// Whether a record that waits is still wanted by the annotation: what a person made is.
pub fn is_wanted(attachment: &Attachment, annotation: &[AttachSpec]) -> bool {
    attachment.named.as_ref().is_none_or(|named| annotation.iter().any(|s| s.named.as_ref() == Some(named)))
}

#[cfg(test)]
mod tests;
