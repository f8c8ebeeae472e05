//! What attachments do to the limits of their containers: settled before anything is on record, and part of it.

use super::{Attachments, error::AttachmentError, model::Attachment};
use crate::{
    capsules::Resolved,
    resources::{BudgetError, DiskError, Holding, Reservation, Resources, Usage, Wanted},
};

/// Why limits cannot be changed as asked for. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// What a capsule declares is not to be understood.
    #[error("the resources that {label} declares cannot be used: {reason}")]
    Declared {
        /// Capsule and version.
        label: String,
        /// Why.
        reason: String,
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
        asked: &Wanted,
    ) -> Result<Resources, AttachmentError> {
        let unusable = |reason: String| {
            let label = format!("{}@{}", version.name, version.version);
            LimitsError::Declared { label, reason }
        };
        let declared = version.image.declared().map_err(unusable)?;
        let declared = Wanted::parse(&declared.resources, &declared.caps);
        let declared = declared.map_err(|error| unusable(error.to_string()))?;
        Ok(self.disks.settle(&declared.overlaid(asked)).map_err(LimitsError::from)?)
    }

    /// Has what these intents ask for counted until the reservation is dropped; refuses what exceeds a budget.
    pub(super) fn take_budget(
        &self,
        reservation: &mut Reservation,
        intents: &[Attachment],
    ) -> Result<(), AttachmentError> {
        let asked = intents.iter().map(|intent| self.holding_of(intent)).collect();
        Ok(reservation.take(asked, || self.holdings_of_all()).map_err(LimitsError::from)?)
    }

    /// What is used of each budget.
    pub fn budget_usage(&self) -> Vec<Usage> {
        self.budgets.usage(self.holdings_of_all())
    }

    fn holdings_of_all(&self) -> Vec<Holding> {
        let all = self.records.containers().into_iter().flat_map(|key| self.records.shown(&key));
        all.filter(Attachment::grants).map(|attachment| self.holding_of(&attachment)).collect()
    }

    fn holding_of(&self, attachment: &Attachment) -> Holding {
        attachment.holding(self.containers.known(&attachment.container).and_then(|known| known.pod))
    }
}
