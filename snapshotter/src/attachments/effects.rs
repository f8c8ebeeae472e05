//! Effects and their undoing: what the calls and the recovery have in common.

use std::path::PathBuf;

use super::{
    Attachments,
    error::AttachmentError,
    model::{Attachment, ContainerKey, Phase},
    plan,
    records::{self, OfContainer},
    restore::is_waiting,
};
use crate::{
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

    /// Carries out replacements, all or none.
    pub(super) async fn replace(
        &self,
        key: &ContainerKey,
        existing: &mut OfContainer,
        intents: Vec<Attachment>,
    ) -> Result<(), AttachmentError> {
        if intents.is_empty() {
            return Ok(());
        }
        self.journal.write(puts(&intents)).await?;
        for (index, intent) in intents.iter().enumerate() {
            let Phase::Replacing { current, .. } = &intent.phase else { continue };
            if let Err(error) = self.shims.replace(intent, current).await {
                let maybe_done = if is_refusal(&error) { &intents[..index] } else { &intents[..=index] };
                for earlier in maybe_done.iter().rev() {
                    if let Err(undo) = self.shims.replace(earlier, &earlier.current).await {
                        tracing::error!(attachment = earlier.id, %undo, "could not go back to {}", earlier.label());
                    }
                }
                let undone: Vec<Attachment> = intents.iter().filter_map(plan::plan_undone).collect();
                self.journal.post(puts(&undone));
                self.settle_if_unsure(key, &error);
                return Err(self.explain(key, error).await);
            }
        }
        let done: Vec<Attachment> = intents.iter().filter_map(plan::plan_done).collect();
        self.journal.post(puts(&done));
        for attachment in done {
            records::put(existing, attachment);
        }
        Ok(())
    }

    /// Undoes an attach: those that may be there are detached in reverse order, and no record is kept. One that
    /// cannot be detached stays on record: it is there.
    pub(super) async fn take_back(
        &self,
        existing: &mut OfContainer,
        maybe_there: &[Attachment],
        intents: &[Attachment],
    ) {
        let mut changes = removals(intents);
        let mut stuck = Vec::new();
        for intent in maybe_there.iter().rev() {
            // Lazily: a process may have opened a file of it already, and must not keep half a set alive.
            match self.shims.detach(intent, true).await {
                Ok(_) | Err(ShimError::NoShim(_)) => {}
                Err(undo) => {
                    tracing::error!(attachment = intent.id, %undo, "could not take {} back", intent.label());
                    stuck.extend(plan::plan_done(intent));
                }
            }
        }
        changes.extend(puts(&stuck));
        self.journal.post(changes);
        let gone: Vec<Attachment> =
            intents.iter().filter(|i| !stuck.iter().any(|s| s.id == i.id)).cloned().collect();
        self.unpin(&gone);
        existing.extend(stuck);
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
            if let Err(undo) = self.shims.attach(attachment).await {
                tracing::error!(attachment = attachment.id, %undo, "could not put {} back", attachment.label());
                if !is_refusal(&undo) {
                    continue; // it may be there: on record until the shim says otherwise
                }
                changes.push(Change::Remove(attachment.id.clone()));
                existing.retain(|a| a.id != attachment.id);
                self.unpin(std::slice::from_ref(attachment));
            }
        }
        self.journal.post(changes);
    }

    /// Follows up a call of which it is not known what the shim has done of it.
    pub(super) fn settle_if_unsure(&self, key: &ContainerKey, error: &ShimError) {
        if !is_refusal(error) {
            drop(self.settle_in_background(key.clone()));
        }
    }

    pub(super) fn unpin(&self, attachments: &[Attachment]) {
        for attachment in attachments {
            self.snapshots.unpin(&attachment.pin_owner());
        }
    }

    /// Asks the shim what is draining and keeps its snapshots. With the container's records locked: the answers of
    /// several such calls would otherwise be taken in any order.
    pub(super) async fn hold_draining(&self, key: &ContainerKey) {
        match self.shims.list(key, false).await {
            Ok(report) => self.hold(key, &report.draining),
            Err(ShimError::NoShim(_)) => self.hold(key, &[]),
            Err(error) => tracing::warn!(container = %key, %error, "the shim cannot say what is draining"),
        }
    }

    /// Keeps the snapshots of what is draining in a container, and lets go those of what was.
    pub(super) fn hold(&self, key: &ContainerKey, draining: &[Draining]) {
        let tops = draining.iter().filter_map(|content| content.layers.first()).map(PathBuf::as_path);
        for top in self.snapshots.repin_layers(tops, &draining_owner(key)) {
            tracing::warn!(container = %key, layer = %top.display(), "draining content is of no snapshot");
        }
    }

    /// Keeps all capsules' snapshots until the shim has said which are draining.
    pub(super) fn hold_all(&self, key: &ContainerKey) {
        self.snapshots.pin_all(self.capsules.namespace(), &draining_owner(key));
    }
}

/// Who holds the snapshots of what is draining.
fn draining_owner(key: &ContainerKey) -> String {
    format!("processes in {key} that use files of a version that is draining")
}

/// The shim answered that it did nothing; any other error leaves that open.
pub(super) fn is_refusal(error: &ShimError) -> bool {
    matches!(error, ShimError::Refused { .. } | ShimError::NoShim(_))
}

pub(super) fn puts(attachments: &[Attachment]) -> Vec<Change> {
    attachments.iter().map(|a| Change::Put(Box::new(a.clone()))).collect()
}

pub(super) fn removals(attachments: &[Attachment]) -> Vec<Change> {
    attachments.iter().map(|a| Change::Remove(a.id.clone())).collect()
}
