//! Upgrade and rollback: attachments moved to other versions, with what these require.

use std::{collections::BTreeMap, time::SystemTime};

use overlayfs_utils::ContainerPath;

use super::{
    Attachments,
    containers::Wanted as WantedContainer,
    devices::{Moment, check_same_devices},
    environment::environment,
    error::AttachmentError,
    health::HealthCheck,
    model::{Attachment, ContainerKey, Content, Phase},
    plan,
    restore::is_waiting,
    set::{Planned, place_required, present},
};
use crate::{
    capsules::{
        Resolved,
        model::{CapsuleName, Version},
        resolve::Chosen,
        set::{Has, Member},
    },
    resources::Reservation,
};

/// A capsule to move to another version.
#[derive(Debug, Clone)]
pub struct Move {
    /// The capsule.
    pub capsule: CapsuleName,
    /// The newest that goes together with the others when `None`. A rollback goes where it can, whatever this says.
    pub version: Option<Version>,
    /// Only the attachment at this target.
    pub target: Option<String>,
}

/// An attachment as it is after a call, and the version that it was at; none for one that is new.
pub type Moved = (Attachment, Option<Version>);

/// What [`Attachments::upgrade`] did, or would do.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It did.
    Done(Vec<Moved>),
    /// It was only asked for its plan.
    Planned(Vec<Planned>),
}

/// Where a move leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To versions that are published.
    On,
    /// To those before, where that is what will do.
    Back,
}

/// One step of a move, before anything is pinned.
#[derive(Debug, Clone)]
enum Step {
    /// To a published version, which these require.
    To(Box<Attachment>, Box<Resolved>, Vec<CapsuleName>),
    /// To the version before.
    Back(Box<Attachment>),
    /// What a new version requires, and the container does not have.
    New(Box<Planned>),
}

impl Attachments {
    /// Moves capsules' attachments in a container to other versions, with what these require: all of them or none. With
    /// `check`, none too if the container is not well then. With `dry_run`, nothing is changed.
    ///
    /// # Errors
    /// As [`Attachments::attach`]; [`AttachmentError::NotAttached`], [`AttachmentError::Waiting`],
    /// [`AttachmentError::Unhealthy`].
    pub async fn upgrade(
        &self,
        container: &WantedContainer,
        moves: &[Move],
        check: Option<&HealthCheck>,
        dry_run: bool,
    ) -> Result<Outcome, AttachmentError> {
        let key = self.find_hotpluggable(container).await?;
        let mut reservation = self.budgets.open();
        let mut existing = self.records.lock(&key).await;
        let chosen = choose(&key, &existing, moves)?;
        let wanted: Vec<_> = moves.iter().map(|m| (m.capsule.clone(), m.version.clone())).collect();
        let has = Has { present: present(&existing), ..Has::default() };
        let answer = self.capsules.resolve_upgrade(&wanted, has).await?;
        let steps = self.plan_moves(&key, &existing, &chosen, answer, Way::On).await?;
        if dry_run {
            return Ok(Outcome::Planned(steps.into_iter().map(show).collect::<Result<_, _>>()?));
        }
        let intents = self.intents(&key, &existing, steps, &mut reservation).await?;
        let before = existing.clone();
        let done = self.carry_out(&key, &mut existing, intents, "upgrade", check).await?;
        Ok(Outcome::Done(compare(&before, &chosen, done)))
    }

    /// Moves capsules' attachments in a container back to the versions that the last upgrades left, with what these
    /// require: all of them or none.
    ///
    /// # Errors
    /// As [`Attachments::upgrade`]; [`AttachmentError::NoHistory`].
    pub async fn rollback(
        &self,
        container: &WantedContainer,
        moves: &[Move],
    ) -> Result<Vec<Moved>, AttachmentError> {
        let key = self.find_hotpluggable(container).await?;
        let mut reservation = self.budgets.open();
        let mut existing = self.records.lock(&key).await;
        let chosen = choose(&key, &existing, moves)?;
        let mut wanted: BTreeMap<CapsuleName, Version> = BTreeMap::new();
        let mut apart = false;
        for attachment in &chosen {
            let intent = plan::plan_rollback(attachment, SystemTime::now())?;
            let Some(version) = plan::next_version(&intent) else { continue };
            let other = wanted.insert(attachment.capsule.clone(), version.clone());
            apart |= other.is_some_and(|other| other != *version);
        }
        // One answer has one version of a capsule: attachments that go apart are judged by what they leave unmet.
        let steps = if apart {
            chosen.iter().map(|a| Step::Back(Box::new(a.clone()))).collect()
        } else {
            let wanted: Vec<_> = wanted.into_iter().collect();
            let has = Has { present: present(&existing), earlier: earlier(&existing) };
            let answer = self.capsules.resolve_back(&wanted, has)?;
            self.plan_moves(&key, &existing, &chosen, answer, Way::Back).await?
        };
        let intents = self.intents(&key, &existing, steps, &mut reservation).await?;
        let before = existing.clone();
        let done = self.carry_out(&key, &mut existing, intents, "roll back", None).await?;
        Ok(compare(&before, &chosen, done))
    }

    /// What is to be done for a container to have `answer`.
    async fn plan_moves(
        &self,
        key: &ContainerKey,
        existing: &[Attachment],
        chosen: &[Attachment],
        answer: Vec<Chosen>,
        way: Way,
    ) -> Result<Vec<Step>, AttachmentError> {
        let mut steps = Vec::new();
        for one in answer {
            let is_asked = chosen.iter().any(|a| a.capsule == one.name);
            if one.present && !is_asked {
                continue;
            }
            let of_it = if is_asked { chosen } else { existing };
            let of_it: Vec<&Attachment> = of_it.iter().filter(|a| a.capsule == one.name).collect();
            refuse_waiting(key, &of_it)?;
            // What an attachment goes back to is on record: nobody is asked for it.
            let leads_back = |a: &&Attachment| {
                way == Way::Back && a.history.last().is_some_and(|content| content.version == one.version)
            };
            let is_new = of_it.is_empty();
            let (back, on): (Vec<_>, Vec<_>) = of_it.into_iter().partition(leads_back);
            steps.extend(back.into_iter().map(|a| Step::Back(Box::new(a.clone()))));
            if on.is_empty() && !is_new {
                continue;
            }
            let version = self.capsules.resolve(&one.name, Some(&one.version)).await?;
            let to = |a: &Attachment| {
                Step::To(Box::new(a.clone()), Box::new(version.clone()), one.required_by.clone())
            };
            steps.extend(on.into_iter().map(to));
            if is_new {
                let member = Member { version, present: false, required_by: one.required_by };
                steps.push(Step::New(Box::new(place_required(member, existing)?)));
            }
        }
        let places: Vec<(ContainerPath, String)> = steps.iter().filter_map(place).collect();
        plan::plan_free(key, existing, &places)?;
        Ok(steps)
    }

    /// Pins what the steps need, and writes down what is to be done, in memory.
    async fn intents(
        &self,
        key: &ContainerKey,
        existing: &[Attachment],
        steps: Vec<Step>,
        reservation: &mut Reservation,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let mut intents: Vec<Attachment> = Vec::with_capacity(steps.len());
        for step in steps {
            match self.intent(key, existing, step).await {
                Ok(intent) => intents.extend(intent),
                Err(error) => {
                    self.let_go(existing, &intents);
                    return Err(error);
                }
            }
        }
        let (new, moved): (Vec<Attachment>, Vec<Attachment>) =
            intents.iter().cloned().partition(|intent| intent.phase == Phase::Attaching);
        let moved: Vec<_> = moved.iter().map(|intent| (intent, plan::next_version(intent))).collect();
        let checked = match self.check_requirements(existing, &moved, &new) {
            Ok(()) => self.take_budget(reservation, &intents).await,
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            self.let_go(existing, &intents);
            return Err(error);
        }
        Ok(intents)
    }

    async fn intent(
        &self,
        key: &ContainerKey,
        existing: &[Attachment],
        step: Step,
    ) -> Result<Option<Attachment>, AttachmentError> {
        if let Step::Back(attachment) | Step::To(attachment, ..) = &step {
            plan::plan_movable(attachment)?;
        }
        match step {
            Step::Back(attachment) => {
                let mut intent = plan::plan_rollback(&attachment, SystemTime::now())?;
                if let Phase::Replacing { current, .. } = &mut intent.phase {
                    *current = self.settled_anew(current)?;
                }
                Ok(Some(intent))
            }
            Step::New(planned) => self.intend(key, *planned, Moment::Live).await.map(Some),
            Step::To(attachment, to, _) => {
                let declared = to.declared()?;
                check_same_devices(&attachment, &to, &declared)?;
                let asked = attachment.asked.wanted().unwrap_or_default();
                let (wanted, resources) = self.resources_of(&to, &declared, &asked)?;
                let layers = match self.capsules.pin_published(&to, &attachment.pin_owner()).await {
                    Ok(layers) => layers,
                    Err(error) => {
                        self.let_go(existing, std::slice::from_ref(&*attachment));
                        return Err(error.into());
                    }
                };
                let (since, env) = (SystemTime::now(), environment(&declared));
                let (version, digest, denied) = (to.version, to.digest, declared.seccomp.calls());
                let content = Content { version, digest, layers, since, wanted, resources, env, denied };
                Ok(plan::plan_upgrade(&attachment, &content))
            }
        }
    }
}

/// The attachments that the call names, each once.
fn choose(
    key: &ContainerKey,
    existing: &[Attachment],
    moves: &[Move],
) -> Result<Vec<Attachment>, AttachmentError> {
    if moves.is_empty() {
        return Err(AttachmentError::NoSpecs);
    }
    let mut chosen: Vec<Attachment> = Vec::new();
    for one in moves {
        let target = one.target.as_deref().map(ContainerPath::parse).transpose()?;
        let of_it = plan::plan_chosen(key, existing, &one.capsule, target.as_ref())?;
        refuse_waiting(key, &of_it.iter().collect::<Vec<_>>())?;
        chosen.extend(of_it.into_iter().filter(|a| chosen.iter().all(|c| c.id != a.id)).collect::<Vec<_>>());
    }
    Ok(chosen)
}

fn refuse_waiting(key: &ContainerKey, all: &[&Attachment]) -> Result<(), AttachmentError> {
    match all.iter().find(|a| is_waiting(a)) {
        Some(waiting) => Err(AttachmentError::Waiting {
            container: key.clone(),
            label: waiting.label(),
            target: waiting.target.clone(),
        }),
        None => Ok(()),
    }
}

/// Where each capsule's attachments could go back to, the latest first.
fn earlier(existing: &[Attachment]) -> BTreeMap<CapsuleName, Vec<Version>> {
    let mut earlier: BTreeMap<CapsuleName, Vec<Version>> = BTreeMap::new();
    for attachment in existing.iter().filter(|attachment| attachment.has_capsule()) {
        let versions = earlier.entry(attachment.capsule.clone()).or_default();
        versions.extend(attachment.history.last().map(|content| content.version.clone()));
    }
    earlier
}

/// The place that a step takes, and for what.
fn place(step: &Step) -> Option<(ContainerPath, String)> {
    match step {
        Step::New(new) => Some((new.target.clone(), format!("{}@{}", new.version.name, new.version.version))),
        Step::To(..) | Step::Back(_) => None,
    }
}

/// A step of an upgrade as a plan has it.
fn show(step: Step) -> Result<Planned, AttachmentError> {
    match step {
        Step::New(planned) => Ok(*planned),
        Step::To(attachment, version, required_by) => Ok(Planned {
            target: ContainerPath::parse(&attachment.target)?,
            mode: attachment.mode,
            writable: None,
            resources: attachment.asked.wanted().unwrap_or_default(),
            named: attachment.named.clone(),
            present: attachment.current.digest == version.digest,
            required_by,
            from: Some(attachment.current.version.clone()),
            version: *version,
        }),
        // Of rollbacks alone, which have no plan to show.
        Step::Back(attachment) => Err(AttachmentError::NoHistory {
            container: attachment.container.clone(),
            capsule: attachment.capsule.clone(),
            target: attachment.target.clone(),
        }),
    }
}

/// What became of what was asked for, then what came with it.
fn compare(before: &[Attachment], chosen: &[Attachment], mut done: Vec<Attachment>) -> Vec<Moved> {
    let mut moved = Vec::with_capacity(done.len());
    for old in chosen {
        let now = done.iter().position(|a| a.id == old.id).map(|index| done.remove(index));
        moved.push((now.unwrap_or_else(|| old.clone()), Some(old.current.version.clone())));
    }
    for attachment in done {
        let old = before.iter().find(|a| a.id == attachment.id);
        moved.push((attachment, old.map(|a| a.current.version.clone())));
    }
    moved
}
