//! Effects and their undoing: what the calls and the recovery have in common.

use std::path::PathBuf;

use capsule_telemetry::TARGET;
use futures::future::join;
use tonic::Code;
use tracing::Instrument as _;

use super::{
    Attachments,
    error::AttachmentError,
    health::HealthCheck,
    ledger::told,
    model::{Attachment, ContainerKey, Phase},
    plan,
    records::{self, Locked, OfContainer},
    recovery::seen,
    restore::is_waiting,
};
use crate::{
    events::{Event, Kind},
    fresh_id,
    metrics::Step,
    shims::{Draining, ShimError},
    store::attachments::Change,
};

impl Attachments {
    /// The containers that shims of ours serve. If that cannot be read it is said, and only those on record count.
    pub(super) fn served(&self) -> Vec<ContainerKey> {
        self.shims.containers().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the shims' registrations: what drains in other containers is not known");
            Vec::new()
        })
    }

    /// Carries out intents to attach and to replace in their order, all or none. With `proof`, none too if the container is
    /// not well then.
    pub(super) async fn carry_out(
        &self,
        key: &ContainerKey,
        existing: &mut Locked,
        mut intents: Vec<Attachment>,
        action: &'static str,
        proof: Option<&HealthCheck>,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let call = fresh_id();
        plan::plan_call(&mut intents, &call, proof.is_some());
        let done: Vec<Attachment> = intents.iter().filter_map(plan::plan_done).collect();
        let carried_out = self.carry_out_call(key, existing, intents, (&call, action), proof).await;
        carried_out.map_err(|error| error.of(action, &done))
    }

    async fn carry_out_call(
        &self,
        key: &ContainerKey,
        existing: &mut Locked,
        intents: Vec<Attachment>,
        (call, action): (&str, &'static str),
        proof: Option<&HealthCheck>,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let intended = self.timed(Step::Intend, self.ledger.intend(&intents)).await;
        if let Err(error) = intended {
            self.let_go(existing, &intents);
            return Err(error.into());
        }
        let done: Vec<Attachment> = intents.iter().filter_map(plan::plan_done).collect();
        // Side by side where nothing has to be proved first: the disk takes as long as the mounts do.
        let early = async {
            if proof.is_none() { self.timed(Step::Keep, self.ledger.keep(&done)).await } else { Ok(()) }
        };
        let (made, mut kept) = join(self.timed(Step::Shim, self.make(&intents)), early).await;
        if let Err((index, error)) = made {
            let maybe_done = if is_refusal(&error) { &intents[..index] } else { &intents[..=index] };
            self.undo(key, existing, maybe_done, &intents, None).await;
            self.settle_if_unsure(key, &error);
            return Err(self.explain(key, error).await.of(action, &done[index..=index]));
        }
        if let Err(error) = self.note_mounted(&done).await {
            self.undo(key, existing, &intents, &intents, None).await;
            return Err(error);
        }
        if let Some(check) = proof {
            existing.show(&done);
            if let Err(reason) = self.prove_made(key, call, check, &intents).await {
                self.undo(key, existing, &intents, &intents, Some(&reason)).await;
                return Err(AttachmentError::Unhealthy { container: key.clone(), reason });
            }
            kept = self.timed(Step::Keep, self.ledger.keep(&done)).await;
        }
        if let Err(error) = kept {
            self.undo(key, existing, &intents, &intents, None).await;
            return Err(error.into());
        }
        let events = intents.iter().zip(&done).map(|(intent, done)| told(intent, done)).collect();
        self.timed(Step::Record, self.ledger.done(puts(&done), events)).await;
        for attachment in &done {
            records::put(existing, attachment.clone());
        }
        if done.iter().any(|attachment| attachment.replaced) {
            drop(self.tidy_pins_in_background(key.clone()));
        }
        Ok(done)
    }

    /// Measures a step.
    pub(super) async fn timed<T>(&self, step: Step, what: impl Future<Output = T>) -> T {
        let _timer = self.meters.step(step);
        what.instrument(tracing::info_span!(target: TARGET, "step", otel.name = step.name())).await
    }

    /// As [`Attachments::prove`], of a task that has all of it: the one that was to be proved may have ended meanwhile.
    async fn prove_made(
        &self,
        key: &ContainerKey,
        call: &str,
        check: &HealthCheck,
        intents: &[Attachment],
    ) -> Result<(), String> {
        self.prove(key, call, check).await?;
        let report = self.shims.list(key, false).await.map_err(|error| error.to_string())?;
        let is_made = |intent: &Attachment| plan::is_done(intent, seen(&report, &intent.id));
        if intents.iter().all(is_made) { Ok(()) } else { Err("its task has ended meanwhile".to_owned()) }
    }

    /// Lets go the snapshots of versions that a container's records have left, once it is known what of them drains.
    fn tidy_pins_in_background(&self, key: ContainerKey) -> tokio::task::JoinHandle<()> {
        let this = self.clone();
        tokio::spawn(async move {
            let existing = this.records.lock(&key).await;
            this.hold_draining(&key).await;
            this.let_go(&existing, &existing);
        })
    }

    /// Asks the shim for intents to attach and to replace, in their order. The first that fails, and why.
    async fn make(&self, intents: &[Attachment]) -> Result<(), (usize, ShimError)> {
        for (index, intent) in intents.iter().enumerate() {
            let made = match &intent.phase {
                Phase::Replacing { current, .. } => self.shims.replace(intent, current).await,
                _ => self.shims.attach(intent).await,
            };
            made.map_err(|error| (index, error))?;
        }
        Ok(())
    }

    /// Undoes intents to attach and to replace, of which `maybe_done` may be carried out, in reverse order. What cannot be
    /// undone stays on record as it is: it is there. It is told where somebody may have seen it, with the reason.
    async fn undo(
        &self,
        key: &ContainerKey,
        existing: &mut OfContainer,
        maybe_done: &[Attachment],
        intents: &[Attachment],
        told: Option<&str>,
    ) {
        let mut stuck = Vec::new();
        self.look_after_limits(key, maybe_done);
        for intent in maybe_done.iter().rev() {
            let undone = match &intent.phase {
                Phase::Replacing { .. } => self.shims.replace_back(intent).await,
                // Lazily: a process may have opened a file of it already, and must not keep half a set alive.
                _ => self.shims.detach(intent, true).await.map(drop),
            };
            match undone {
                Ok(()) | Err(ShimError::NoShim(_)) => {}
                // The shim of the container's next task, which knows of none.
                Err(ShimError::Refused { code: Code::NotFound, .. }) => {}
                // With the task ended all that it had.
                Err(_) if self.is_gone(key).await.unwrap_or(false) => {}
                Err(undo) => {
                    tracing::error!(attachment = intent.id, %undo, "could not undo what was made of {}", intent.label());
                    stuck.extend(plan::plan_done(intent));
                }
            }
        }
        let (mut changes, mut given_up, mut events) = (puts(&stuck), Vec::new(), Vec::new());
        for intent in intents.iter().filter(|intent| !stuck.iter().any(|s| s.id == intent.id)) {
            changes.extend(change(&intent.id, plan::plan_undone(intent)));
            events.extend(told.map(|reason| Event::of(intent, Kind::Undone).because(reason)));
            given_up.push(intent.clone());
        }
        self.ledger.found(changes, events);
        let unsure = !stuck.is_empty();
        for attachment in stuck {
            records::put(existing, attachment);
        }
        // What drains is held before anything is let go.
        if !maybe_done.is_empty() {
            self.hold_draining(key).await;
        }
        self.let_go(existing, &given_up);
        if unsure {
            drop(self.settle_in_background(key.clone()));
        }
    }

    /// Lets go the snapshots that only intents that are given up need.
    pub(super) fn let_go(&self, existing: &[Attachment], given_up: &[Attachment]) {
        for intent in given_up {
            let record = existing.iter().find(|a| a.id == intent.id);
            if record.is_none() {
                self.uppers.ended(intent);
            }
            let tops = record.into_iter().flat_map(Attachment::contents).filter_map(|c| c.layers.first());
            self.snapshots.repin_layers(tops.map(PathBuf::as_path), &intent.pin_owner());
        }
    }

    /// Undoes a detach: what went is attached again, the records stay.
    pub(super) async fn put_back(
        &self,
        existing: &mut OfContainer,
        gone: &[Attachment],
        chosen: &[Attachment],
    ) {
        let mut changes = puts(chosen);
        for attachment in gone.iter().filter(|a| !is_waiting(a)) {
            if let Err(undo) = self.shims.attach_back(attachment).await {
                tracing::error!(attachment = attachment.id, %undo, "could not put {} back", attachment.label());
                if !is_refusal(&undo) || self.is_gone(&attachment.container).await.unwrap_or(false) {
                    // It may be there, or waits for the next task: on record until it is known.
                    continue;
                }
                if !self.settle_written(attachment).await {
                    continue;
                }
                changes.push(Change::Remove(attachment.id.clone()));
                existing.retain(|a| a.id != attachment.id);
                self.end(std::slice::from_ref(attachment));
            }
        }
        self.ledger.found(changes, Vec::new());
    }

    /// Leaves a detach of which it is not known whether it is done as an intent of a call to be undone: settling then attaches again
    /// what is gone. Taken for attached, it would be taken for one of a task that has ended.
    pub(super) fn undo_when_known(&self, existing: &mut OfContainer, attachment: &Attachment, lazy: bool) {
        let mut intent = [Attachment { phase: Phase::Detaching { lazy, fate: None }, ..attachment.clone() }];
        plan::plan_call(&mut intent, &fresh_id(), true);
        self.ledger.found(puts(&intent), Vec::new());
        let [intent] = intent;
        records::put(existing, intent);
    }

    /// Follows up a call of which it is not known what the shim has done of it.
    pub(super) fn settle_if_unsure(&self, key: &ContainerKey, error: &ShimError) {
        if !is_refusal(error) {
            drop(self.settle_in_background(key.clone()));
        }
    }

    /// Asks the shim what is draining and keeps its snapshots. With the container's records locked: the answers of
    /// several such calls would otherwise be taken in any order. When the shim does not say, everything stays until it does.
    pub(super) async fn hold_draining(&self, key: &ContainerKey) {
        if !self.has_said_what_drains(key).await {
            drop(self.settle_in_background(key.clone()));
        }
    }

    /// As [`Attachments::hold_draining`], for one who asks again when this is false.
    pub(super) async fn has_said_what_drains(&self, key: &ContainerKey) -> bool {
        match self.shims.list(key, false).await {
            Ok(report) => self.hold(key, &report.draining),
            Err(ShimError::NoShim(_)) => self.hold(key, &[]),
            Err(error) => {
                tracing::warn!(container = %key, %error, "the shim cannot say what is draining: all of it is held until it can");
                self.hold_all(key);
                return false;
            }
        }
        true
    }

    /// Keeps the snapshots of what is draining in a container, and lets go those of what was.
    pub(super) fn hold(&self, key: &ContainerKey, draining: &[Draining]) {
        self.tell_draining(key, draining);
        let tops = draining.iter().filter_map(|content| content.layers.first()).map(PathBuf::as_path);
        self.uppers.drains(key, Some(draining.iter().map(|content| content.id.clone()).collect()));
        for top in self.snapshots.repin_layers(tops, &draining_owner(key)) {
            tracing::warn!(container = %key, layer = %top.display(), "draining content is of no snapshot");
        }
    }

    /// Keeps all capsules' snapshots until the shim has said which are draining.
    pub(super) fn hold_all(&self, key: &ContainerKey) {
        self.uppers.drains(key, None);
        self.snapshots.pin_all(self.capsules.namespace(), &draining_owner(key));
    }
}

/// Who holds the snapshots of what is draining.
fn draining_owner(key: &ContainerKey) -> String {
    format!("processes in {key} that use files of a version that is draining")
}

/// The shim answered that it did nothing; any other error leaves that open.
pub(super) fn is_refusal(error: &ShimError) -> bool {
    matches!(error, ShimError::Refused { .. } | ShimError::NoShim(_) | ShimError::Older { undone: true, .. })
}

/// What becomes of the record of this id.
pub(super) fn change(id: &str, after: Option<Attachment>) -> Vec<Change> {
    after.map_or_else(|| vec![Change::Remove(id.to_owned())], |a| puts(std::slice::from_ref(&a)))
}

pub(super) fn puts(attachments: &[Attachment]) -> Vec<Change> {
    attachments.iter().map(|a| Change::Put(Box::new(a.clone()))).collect()
}

pub(super) fn removals(attachments: &[Attachment]) -> Vec<Change> {
    attachments.iter().map(|a| Change::Remove(a.id.clone())).collect()
}
