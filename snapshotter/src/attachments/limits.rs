//! What attachments do to the limits of their containers: settled before anything is on record, and part of it.

use super::{
    Attachments,
    error::AttachmentError,
    model::{Attachment, ContainerKey, Content},
    records::OfContainer,
    restore::is_waiting,
};
use crate::{
    capsules::{Resolved, declared::Declared},
    containerd::ContainerdError,
    events::{Event, Kind},
    full::one_line,
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
    /// It is not known whose pods' budgets are used.
    #[error(
        "pods have budgets, and what is used of them is not known before containerd says which containers they have: try again once it answers ({})",
        one_line(.0)
    )]
    Pods(Box<ContainerdError>),
}

impl Attachments {
    /// What an attachment of a version is to do, and what that is on this node: what is asked for, and of the limits that are not named
    /// there what the version declares.
    pub(super) fn resources_of(
        &self,
        version: &Resolved,
        declared: &Declared,
        asked: &Wanted,
    ) -> Result<(Resources, Resources), AttachmentError> {
        let declared = Wanted::parse(&declared.resources, &declared.caps).map_err(|source| {
            let label = format!("{}@{}", version.name, version.version);
            LimitsError::Declared { label, source }
        })?;
        let wanted = declared.overlaid(asked);
        let settled = self.disks.settle(&wanted).map_err(LimitsError::from)?;
        Ok((wanted.record(), settled))
    }

    /// A content of a record with the numbers that its disks have now.
    pub(super) fn settled_anew(&self, content: &Content) -> Result<Content, LimitsError> {
        let wanted = content.wanted.wanted().map_err(|source| {
            let label = content.version.to_string();
            LimitsError::Declared { label, source }
        })?;
        Ok(Content { resources: self.disks.settle(&wanted)?, ..content.clone() })
    }

    /// The same of what waits for a task, for budgets to count. A disk that is not there has its name meanwhile, and none of its own.
    pub(super) fn with_disks_of_now(&self, records: OfContainer) -> OfContainer {
        let settled = |attachment: Attachment| {
            if !is_waiting(&attachment) {
                return attachment;
            }
            let current = self.settled_anew(&attachment.current).unwrap_or_else(|error| {
                tracing::warn!(container = %attachment.container, capsule = attachment.label(), %error, "its limits cannot be as they were");
                let resources = attachment.current.wanted.clone();
                Content { resources, ..attachment.current.clone() }
            });
            Attachment { current, ..attachment }
        };
        records.into_iter().map(settled).collect()
    }

    /// Has what these intents ask for counted until the reservation is dropped; refuses what exceeds a budget.
    pub(super) async fn take_budget(
        &self,
        reservation: &mut Reservation,
        intents: &[Attachment],
    ) -> Result<(), AttachmentError> {
        if !intents.iter().any(Attachment::grants) {
            return Ok(());
        }
        self.know_pods().await?;
        let asked = intents.iter().map(|intent| self.holding_of(intent)).collect();
        Ok(reservation.take(asked, || self.holdings_of_all()).map_err(LimitsError::from)?)
    }

    /// Has the pods of all containers known that hold something, where pods have budgets. They are once containerd was listed, and
    /// kept so by its events; between a start and the first of that, they may not be.
    async fn know_pods(&self) -> Result<(), LimitsError> {
        if !self.budgets.has_pods() || self.containers.is_followed() {
            return Ok(());
        }
        let grants = |key: &ContainerKey| self.records.look(key, |all| all.iter().any(Attachment::grants));
        let is_unknown = |key: &ContainerKey| grants(key) && self.containers.known(key).is_none();
        if self.records.containers().iter().any(is_unknown) {
            self.containers.reload().await.map_err(|source| LimitsError::Pods(Box::new(source)))?;
        }
        Ok(())
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
        attachment.holding(self.containers.member(&attachment.container).map(|member| member.pod))
    }
}
