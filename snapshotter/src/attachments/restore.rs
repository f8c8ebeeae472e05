//! What outlives a task: a container has its attachments again when its task is created anew, until it is deleted.

use std::time::SystemTime;

use super::{
    AttachSpec, Attachments,
    effects::{puts, removals},
    error::AttachmentError,
    ledger::told_found,
    model::{Attachment, ContainerKey, Content, Phase},
    plan,
    records::{self, OfContainer},
};
use crate::events::{Event, Kind};

impl Attachments {
    /// Gives a container whose task has just been created what its last task had attached, all of it or none, in the
    /// order in which it was attached. Asks for nothing but what waits, so it may be repeated.
    ///
    /// Dropped is what another container of this id had, and what an entry made that `annotation` no longer has.
    ///
    /// # Errors
    /// [`AttachmentError::Unsettled`]; [`AttachmentError::Again`] for the first that cannot be made, and then none of
    /// them is there, and all wait on.
    pub async fn restore(
        &self,
        container: &ContainerKey,
        annotation: &[AttachSpec],
    ) -> Result<Vec<Attachment>, AttachmentError> {
        // What is on record of an earlier task of this container is not mounted in this one.
        if !self.settle(container).await {
            return Err(AttachmentError::Unsettled { container: container.clone() });
        }
        let mut records = self.records.lock(container).await;
        if !records.iter().any(is_waiting) {
            return Ok(Vec::new());
        }
        // Another container may have the id by now, and its events may still be on their way.
        if records.iter().any(|a| a.created.is_some()) {
            self.containers.refresh(container).await?;
        }
        let known = self.containers.known(container);
        self.drop_waiting(container, &mut records, |a| {
            !plan::is_of(a, known.as_ref()) || !plan::is_wanted(a, annotation)
        });
        let waiting: Vec<Attachment> = records.iter().filter(|a| is_waiting(a)).cloned().collect();
        for Attachment { capsule, current, .. } in waiting.iter().filter(|a| a.has_capsule()) {
            self.capsules.verify(capsule, &current.version, &current.digest).await?;
        }
        let waiting: Vec<Attachment> =
            waiting.into_iter().map(|a| self.ready_again(a)).collect::<Result<_, _>>()?;
        for (index, attachment) in waiting.iter().enumerate() {
            if let Err(source) = self.shims.attach(attachment).await {
                for done in waiting[..=index].iter().rev() {
                    // Nothing runs there yet that could use it; a task that does not start ends with all it has.
                    let _ = self.shims.detach(done, true).await;
                }
                let attachment = Box::new(attachment.clone());
                return Err(AttachmentError::Again { attachment, source: Box::new(source.into()) });
            }
        }
        if let Err(error) = self.note_mounted(&waiting).await {
            tracing::error!(%container, %error, "the version below what is written is not noted");
        }
        // Each a moment later than the one before: that is their order when capsuled is restarted.
        let made = |a: &Attachment| {
            let done = plan::plan_done(a)?;
            let current = Content { since: SystemTime::now(), ..done.current.clone() };
            Some(Attachment { current, ..done })
        };
        let done: Vec<Attachment> = waiting.iter().filter_map(made).collect();
        let events = done.iter().map(|a| Event::of(a, Kind::Restored)).collect();
        self.ledger.found(puts(&done), events);
        for attachment in &done {
            tracing::info!(%container, capsule = attachment.label(), target = attachment.target, "attached again");
            records::put(&mut records, attachment.clone());
        }
        Ok(done)
    }

    /// With the disks of this boot.
    fn ready_again(&self, waiting: Attachment) -> Result<Attachment, AttachmentError> {
        match self.settled_anew(&waiting.current) {
            Ok(current) => Ok(Attachment { current, ..waiting }),
            Err(error) => {
                Err(AttachmentError::Again { attachment: Box::new(waiting), source: Box::new(error.into()) })
            }
        }
    }

    /// What becomes of a container's records once its task has ended: they wait for its next one.
    ///
    /// The event may be of an earlier task. Then a new one is there, which its shim answers for.
    pub async fn task_ended(&self, container: &ContainerKey) {
        // Asked with the records locked: the next task may be given back what this one had.
        let mut records = self.records.lock(container).await;
        match self.is_gone(container).await {
            Ok(true) => {}
            Ok(false) => {
                drop(records);
                self.settle(container).await;
                return;
            }
            Err(error) => {
                tracing::warn!(%container, %error, "cannot tell whether its task has ended");
                return;
            }
        }
        let before = std::mem::take(&mut *records);
        let mut became = Vec::with_capacity(before.len());
        for attachment in before {
            let mut after = plan::plan_waiting(&attachment);
            // Before it goes off record: what is on none is removed.
            if after.is_none() && !self.settle_written(&attachment).await {
                after = Some(attachment.clone());
            }
            became.push((attachment, after));
        }
        let events = became.iter().filter_map(|(before, after)| told_found(before, after.as_ref())).collect();
        self.ledger.became(&became, events);
        for (before, after) in became {
            match after {
                Some(waiting) => records.push(waiting),
                None => self.end(std::slice::from_ref(&before)),
            }
        }
        self.hold_draining(container).await;
        drop(records);
        self.forget_deleted(container).await;
    }

    /// Forgets what waits for the next task of a container that is deleted, or whose id another has now, or that has none.
    pub(super) async fn forget_deleted(&self, container: &ContainerKey) {
        let mut records = self.records.lock(container).await;
        if records.iter().any(is_waiting) {
            match self.containers.refresh(container).await {
                Ok(()) => {
                    let known = self.containers.known(container);
                    self.drop_waiting(container, &mut records, |a| {
                        !plan::is_of(a, known.as_ref()) || plan::is_over(a, known.as_ref())
                    });
                }
                // Asked again when containerd can be followed again.
                Err(error) => tracing::warn!(%container, %error, "cannot tell whether it is deleted"),
            }
        }
        drop(records);
        self.records.tidy(container);
    }

    fn drop_waiting(
        &self,
        container: &ContainerKey,
        records: &mut OfContainer,
        is_dropped: impl Fn(&Attachment) -> bool,
    ) {
        let (dropped, kept): (Vec<_>, Vec<_>) =
            std::mem::take(records).into_iter().partition(|a| is_waiting(a) && is_dropped(a));
        *records = kept;
        let events = dropped.iter().map(|a| Event::of(a, Kind::Ended)).collect();
        self.ledger.found(removals(&dropped), events);
        self.end(&dropped);
        for attachment in dropped {
            tracing::info!(%container, capsule = attachment.label(), target = attachment.target, "attachment ended with its container");
        }
    }
}

pub(super) fn is_waiting(attachment: &Attachment) -> bool {
    attachment.phase == Phase::Waiting
}
