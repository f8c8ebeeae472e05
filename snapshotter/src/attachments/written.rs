//! What is written to attachments, on its way through the calls.

use std::io;

use overlayfs_utils::ContainerPath;
use tokio::task::{JoinError, spawn_blocking};

use super::{Attachments, Choice, error::AttachmentError, model::Attachment, plan, records::OfContainer};
use crate::{
    capsules::Resolved,
    uppers::{
        self, UpperError, Uppers, kept_as,
        model::{Upper, UpperName},
    },
};

/// Names that nothing else takes until this is dropped.
pub(super) struct Reserved {
    uppers: Uppers,
    /// Each with the attachment whose it is to be.
    names: Vec<(UpperName, String)>,
}

impl Reserved {
    /// They are taken now.
    pub(super) fn stay(mut self) {
        self.names.clear();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.names.iter().for_each(|(name, id)| self.uppers.release(name, id));
    }
}

impl Attachments {
    /// What attachments write to.
    pub fn uppers(&self) -> &Uppers {
        &self.uppers
    }

    /// Makes what an attachment is to write to.
    pub(super) async fn claim(
        &self,
        wanted: uppers::Wanted,
        intent: &Attachment,
        version: &Resolved,
    ) -> Result<Upper, AttachmentError> {
        let (uppers, id, container) = (self.uppers.clone(), intent.id.clone(), intent.container.clone());
        let version = version.clone();
        // A file system takes some time to be made.
        let claimed = spawn_blocking(move || uppers.claim(&wanted, &id, &container, &version)).await;
        Ok(claimed.map_err(|error| self.not_run(error))??)
    }

    /// Writes down over what those are mounted that are written to by name. Before anybody is told of them.
    pub(super) async fn note_mounted(&self, made: &[Attachment]) -> Result<(), AttachmentError> {
        let named = |a: &&Attachment| matches!(&a.upper, Some(Upper { name: Some(_), .. }));
        let named: Vec<Attachment> = made.iter().filter(named).cloned().collect();
        if named.is_empty() {
            return Ok(());
        }
        let uppers = self.uppers.clone();
        let noted = spawn_blocking(move || named.iter().try_for_each(|a| uppers.mounted(a))).await;
        Ok(noted.map_err(|error| self.not_run(error))??)
    }

    fn not_run(&self, error: JoinError) -> UpperError {
        UpperError::Disk {
            step: "look after what is written in",
            path: self.uppers.root().to_owned(),
            source: io::Error::other(error),
        }
    }

    /// The attachment that is meant, if it is written to.
    ///
    /// # Errors
    /// [`AttachmentError::NotAttached`], [`AttachmentError::ReadOnly`], [`AttachmentError::WhichTarget`].
    pub async fn find_written(&self, choice: &Choice) -> Result<Attachment, AttachmentError> {
        let key = self.containers.find(&choice.container).await?;
        let target = choice.target.as_deref().map(ContainerPath::parse).transpose()?;
        let chosen = plan::plan_chosen(&key, &self.records.shown(&key), &choice.capsule, target.as_ref())?;
        let mut written = chosen.into_iter().filter(|attachment| attachment.upper.is_some());
        match (written.next(), written.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(AttachmentError::WhichTarget { capsule: choice.capsule.clone() }),
            (None, _) => Err(AttachmentError::ReadOnly { container: key, capsule: choice.capsule.clone() }),
        }
    }

    /// What has this name may be free, and its shim was not asked since: asks it. With no records locked.
    pub async fn look_whether_it_drains(&self, name: &UpperName) {
        if let Some(container) = self.uppers.drains_in(name) {
            let _locked = self.records.lock(&container).await;
            self.hold_draining(&container).await;
        }
    }

    /// What becomes of what was written to an attachment that has ended: see [`Uppers::settle`]. False when it is to stay on record.
    pub(super) async fn settle_written(&self, attachment: &Attachment) -> bool {
        if attachment.upper.is_none() {
            return true;
        }
        let (uppers, attachment) = (self.uppers.clone(), attachment.clone());
        spawn_blocking(move || uppers.settle(&attachment)).await.unwrap_or(false)
    }

    /// Reserves the names under which what was written is to be kept.
    pub(super) async fn reserve(&self, intents: &[Attachment]) -> Result<Reserved, AttachmentError> {
        let (uppers, kept) = (self.uppers.clone(), kept(intents));
        let reserve = move || {
            let mut reserved = Reserved { uppers, names: Vec::new() };
            for (intent, name) in kept {
                reserved.uppers.reserve(&name, &intent)?;
                reserved.names.push((name, intent.id));
            }
            Ok::<_, UpperError>(reserved)
        };
        Ok(spawn_blocking(reserve).await.map_err(|error| self.not_run(error))??)
    }

    /// Gives what was written the names that were asked for, once nothing is mounted any more: all of it or none.
    pub(super) async fn keep_written(&self, intents: &[Attachment]) -> Result<(), AttachmentError> {
        let (uppers, kept) = (self.uppers.clone(), kept(intents));
        let keep = move || {
            for (done, (intent, name)) in kept.iter().enumerate() {
                if let Err(error) = uppers.keep(intent, name) {
                    undo_keep(&uppers, &kept[..done]);
                    return Err(error);
                }
            }
            Ok(())
        };
        Ok(spawn_blocking(keep).await.map_err(|error| self.not_run(error))??)
    }

    /// Undoes [`Attachments::keep_written`].
    pub(super) async fn keep_no_more(&self, intents: &[Attachment]) {
        let (uppers, kept) = (self.uppers.clone(), kept(intents));
        if let Err(error) = spawn_blocking(move || undo_keep(&uppers, &kept)).await {
            tracing::error!(%error, "what was written stays under the names that it was to have");
        }
    }

    /// Attachments have ended: what they held is let go.
    pub(super) fn end(&self, attachments: &[Attachment]) {
        for attachment in attachments {
            self.snapshots.unpin(&attachment.pin_owner());
            self.uppers.ended(attachment);
        }
    }

    /// Takes out the records of which a detach has kept what was written, and no more: the machine went down then.
    pub(super) fn without_kept(&self, records: OfContainer) -> OfContainer {
        let (gone, stay): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|attachment| self.uppers.was_kept(attachment));
        if !gone.is_empty() {
            self.ledger.found(super::effects::removals(&gone), Vec::new());
            self.end(&gone);
        }
        stay
    }
}

/// Those of which what was written is to be kept, and under which names.
fn kept(intents: &[Attachment]) -> Vec<(Attachment, UpperName)> {
    intents.iter().filter_map(|intent| Some((intent.clone(), kept_as(intent)?.clone()))).collect()
}

fn undo_keep(uppers: &Uppers, kept: &[(Attachment, UpperName)]) {
    for (intent, name) in kept {
        if let Err(error) = uppers.keep_no_more(intent, name) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(attachment = intent.id, %name, error, "what was written stays under this name");
        }
    }
}
