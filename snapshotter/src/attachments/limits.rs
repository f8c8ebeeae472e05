//! What attachments do to the limits of their containers: settled before anything is on record, and part of it.

use super::{
    Attachments,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
};
use crate::{
    capsules::{Resolved, declared::Declared},
    events::{Event, Kind},
    resources::{BudgetError, DiskError, Holding, InvalidAmount, Reservation, Resources, Usage, Wanted},
};

/// Why limits cannot be changed as asked for. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// What a capsule declares is no amount.
    #[error("the resources that {label} declares cannot be used: {source}")]
    Declared {
        /// Capsule and version.
        label: String,
        /// Why.
        source: InvalidAmount,
    },
    /// A limit of I/O is about no disk of this node.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A budget would be exceeded.
    #[error(transparent)]
    Budget(#[from] Box<BudgetError>),
}

impl Attachments {
    /// What an attachment of a version does: what is asked for, and of the limits that are not named there what the version declares.
    pub(super) fn resources_of(
        &self,
        version: &Resolved,
        declared: &Declared,
        asked: &Wanted,
    ) -> Result<Resources, AttachmentError> {
        let declared = Wanted::parse(&declared.resources, &declared.caps).map_err(|source| {
            let label = format!("{}@{}", version.name, version.version);
            LimitsError::Declared { label, source }
        })?;
        Ok(self.disks.settle(&declared.overlaid(asked)).map_err(LimitsError::from)?)
    }

    /// Has what these intents ask for counted until the reservation is dropped; refuses what exceeds a budget.
    pub(super) fn take_budget(
        &self,
        reservation: &mut Reservation,
        intents: &[Attachment],
    ) -> Result<(), AttachmentError> {
        if !intents.iter().any(Attachment::grants) {
            return Ok(());
        }
        let asked = intents.iter().map(|intent| self.holding_of(intent)).collect();
        Ok(reservation.take(asked, || self.holdings_of_all()).map_err(LimitsError::from)?)
    }

    /// What is used of each budget.
    pub fn budget_usage(&self) -> Vec<Usage> {
        self.budgets.usage(self.holdings_of_all())
    }

    /// Tells of a process that was killed for want of memory, where attachments change the limits of its container.
    pub(super) fn tell_out_of_memory(&self, container: &ContainerKey) {
        let told = |attachment: &Attachment| {
            Event::of(attachment, Kind::OutOfMemory).because("the kernel killed a process of the container")
        };
        let is_of_it = |attachment: &&Attachment| attachment.current.resources.is_of_memory();
        let events =
            self.records.look(container, |all| all.iter().filter(is_of_it).map(told).collect::<Vec<_>>());
        if !events.is_empty() {
            self.ledger.found(Vec::new(), events);
        }
    }

    fn holdings_of_all(&self) -> Vec<Holding> {
        let all = self.records.containers().into_iter().flat_map(|key| self.records.shown(&key));
        all.filter(Attachment::grants).map(|attachment| self.holding_of(&attachment)).collect()
    }

    fn holding_of(&self, attachment: &Attachment) -> Holding {
        attachment.holding(self.containers.known(&attachment.container).and_then(|known| known.pod))
    }
}
