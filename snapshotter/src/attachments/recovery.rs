//! After a restart: the records beside what each shim has mounted, and the end of what was half done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Attachments,
    error::AttachmentError,
    ledger::told_found,
    model::{Attachment, ContainerKey, Phase},
    plan::{self, Seen},
    records::OfContainer,
};
use crate::{
    shims::{Report, ShimError},
    uppers::kept_as,
};

/// How long the start waits for shims, all of which answer in milliseconds when they are well. While it waits nobody
/// is served, and containerd gives a connection about a second (docs/adr/0008).
const PATIENCE: Duration = Duration::from_millis(300);
/// How long to wait before a shim that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(5);

impl Attachments {
    /// Keeps the directories of everything on record from being removed. Before the snapshotter is served.
    pub fn pin_recorded(&self, recorded: &BTreeMap<String, Attachment>) {
        for attachment in recorded.values() {
            for content in attachment.contents() {
                if !self.snapshots.pin_layers(&content.layers, &attachment.pin_owner()) {
                    tracing::warn!(attachment = attachment.id, version = %content.version, "recorded content is of no snapshot");
                }
            }
        }
    }

    /// Takes over the records of an earlier run, as far as the shims confirm them. A shim that does not answer holds
    /// nobody up: its container is settled when it does, and until then no capsule's snapshot is removed.
    pub async fn recover(&self, recorded: BTreeMap<String, Attachment>) {
        let mut by_container: BTreeMap<ContainerKey, OfContainer> = BTreeMap::new();
        for attachment in recorded.into_values() {
            by_container.entry(attachment.container.clone()).or_default().push(attachment);
        }
        for container in self.served() {
            self.hold_all(&container);
            by_container.entry(container).or_default();
        }
        for container in self.drains.containers() {
            by_container.entry(container).or_default();
        }
        self.marks.clear_but(|container| by_container.get(container).is_some_and(|all| !all.is_empty()));
        let mut settling = Vec::with_capacity(by_container.len());
        for (container, mut records) in by_container {
            records = self.with_disks_of_now(self.without_kept(records));
            records.sort_by_key(|a| a.current.since);
            if let (false, Err(error)) = (records.is_empty(), self.marks.set(&container)) {
                tracing::error!(%container, %error, "its next start will not ask for its attachments");
            }
            *self.records.lock(&container).await = records;
            settling.push(self.settle_in_background(container));
        }
        if timeout(PATIENCE, join_all(settling)).await.is_err() {
            tracing::warn!("not all shims have answered: the others' containers are served meanwhile");
        }
        // Also when there is no container that could say what drains.
        self.uppers.tidy();
    }

    /// Settles a container, however long its shim takes to answer.
    pub(super) fn settle_in_background(&self, container: ContainerKey) -> JoinHandle<()> {
        let this = self.clone();
        tokio::spawn(async move { this.settle_to_the_end(&container).await })
    }

    /// As [`Attachments::settle_in_background`], waited for.
    pub(super) async fn settle_to_the_end(&self, container: &ContainerKey) {
        while !self.settle(container).await {
            sleep(RETRY).await;
        }
    }

    /// Brings one container's records in line with what its shim has mounted. False if the shim does not say.
    pub async fn settle(&self, container: &ContainerKey) -> bool {
        let mut records = self.records.lock(container).await;
        let report = match self.shims.list(container, false).await {
            Ok(report) => {
                self.forget_unmounted(&records, &report).await;
                report
            }
            Err(ShimError::NoShim(_)) => Report::default(),
            Err(error) => match self.is_gone(container).await {
                Ok(true) => Report::default(),
                _ => {
                    tracing::warn!(%container, %error, "its attachments stay on record until its shim answers");
                    return false;
                }
            },
        };
        self.hold(container, &report.draining);
        if report.limits_left {
            self.limits_left.note(container);
        }
        let before = records.clone();
        *records = self.recovered(before, &report).await;
        drop(records);
        self.records.tidy(container);
        true
    }

    /// What becomes of a container's records by what its shim has: in reverse order, for that is how a call is undone.
    async fn recovered(&self, before: OfContainer, report: &Report) -> OfContainer {
        let undone = plan::plan_undoing(&before, |a| seen(report, &a.id));
        self.end_checks(&before);
        let mut records = OfContainer::with_capacity(before.len());
        let (mut became, mut events) = (Vec::with_capacity(before.len()), Vec::new());
        for attachment in before.into_iter().rev() {
            let seen = seen(report, &attachment.id);
            let is_undone = attachment.call.as_ref().is_some_and(|call| undone.contains(&call.id));
            let mut after = if is_undone {
                self.undo_found(&attachment, seen).await
            } else {
                plan::plan_recovered(&attachment, seen)
            };
            let stays = after.is_none() && !self.settle_written(&attachment).await;
            if stays {
                after = Some(attachment.clone());
            }
            tell(&attachment, after.as_ref());
            events.extend(told_found(&attachment, after.as_ref()));
            match (&after, kept_as(&attachment)) {
                // It is there again, and needs no name.
                (Some(_), Some(name)) if !stays => self.uppers.release(name, &attachment.id),
                (Some(after), None) if attachment.phase == Phase::Attaching => {
                    if let Err(error) = self.note_mounted(std::slice::from_ref(after)).await {
                        tracing::error!(attachment = after.id, %error, "the version below what is written is not noted");
                    }
                }
                _ => {}
            }
            became.push((attachment, after.clone()));
            records.extend(after);
        }
        // One transaction: another crash finds the call as this one did, or nothing of it.
        self.ledger.became(&became, events);
        records.reverse();
        // What was undone drains now, where somebody uses it.
        if let (false, Some(container)) =
            (undone.is_empty(), became.first().map(|(a, _)| a.container.clone()))
        {
            self.hold_draining(&container).await;
        }
        let touched: Vec<Attachment> = became.into_iter().map(|(before, _)| before).collect();
        self.let_go(&records, &touched);
        records
    }

    /// Undoes what is carried out of an intent whose call is given up. What cannot be undone stays: it is there.
    async fn undo_found(&self, intent: &Attachment, seen: Seen<'_>) -> Option<Attachment> {
        let is_done = plan::is_done(intent, seen);
        let undone = match &intent.phase {
            Phase::Attaching if is_done => self.shims.detach(intent, true).await.map(drop),
            Phase::Replacing { .. } if is_done => self.shims.replace_back(intent).await,
            Phase::Detaching { .. } if is_done => self.shims.attach_back(intent).await,
            _ => return plan::plan_recovered(intent, seen),
        };
        match undone {
            Ok(()) => plan::plan_undone(intent),
            // The task has ended, and all that it had.
            Err(ShimError::NoShim(_)) => plan::plan_recovered(intent, Seen::Unknown),
            Err(_) if self.is_gone(&intent.container).await.unwrap_or(false) => {
                plan::plan_recovered(intent, Seen::Unknown)
            }
            Err(error) => {
                let (container, capsule) = (&intent.container, intent.label());
                tracing::error!(%container, capsule, %error, "found half done, and cannot be undone");
                plan::plan_done(intent)
            }
        }
    }

    /// Ends the commands that were to prove a container well, and that nobody waits for any more.
    fn end_checks(&self, records: &OfContainer) {
        let trials = records.iter().filter_map(|a| a.call.as_ref()).filter(|call| call.trial);
        let trials: BTreeSet<String> = trials.map(|call| call.id.clone()).collect();
        let Some(container) = records.first().map(|a| a.container.clone()) else { return };
        for id in trials {
            tokio::spawn(self.clone().end_check(container.clone(), id));
        }
    }

    /// Lets the shim forget what somebody else unmounted, so that its place is free again.
    async fn forget_unmounted(&self, records: &OfContainer, report: &Report) {
        for gone in report.mounted.iter().filter(|m| !m.confirmed) {
            let Some(attachment) = records.iter().find(|a| a.id == gone.id) else { continue };
            if let Err(error) = self.shims.detach(attachment, true).await {
                tracing::warn!(attachment = gone.id, %error, "the shim keeps an attachment that is not mounted");
            }
        }
    }

    pub(super) async fn is_gone(&self, container: &ContainerKey) -> Result<bool, AttachmentError> {
        Ok(!self.containerd.namespace(&container.namespace)?.task_is_live(&container.id).await?)
    }
}

pub(super) fn seen<'a>(report: &'a Report, id: &str) -> Seen<'a> {
    match report.mounted.iter().find(|mounted| mounted.id == id) {
        Some(mounted) if mounted.confirmed => Seen::Mounted(&mounted.digest),
        Some(_) => Seen::Unmounted,
        None => Seen::Unknown,
    }
}

fn tell(before: &Attachment, after: Option<&Attachment>) {
    let (container, capsule, target) = (&before.container, before.label(), &before.target);
    match (&before.phase, after) {
        (Phase::Attached | Phase::Waiting, Some(after)) if after.phase == before.phase => {}
        (_, Some(after)) if after.phase == Phase::Waiting => {
            tracing::info!(%container, capsule, target, "its task has ended: it waits for the next one");
        }
        (Phase::Attached, None) => {
            tracing::warn!(%container, capsule, target, "attachment is no longer mounted: taken off record");
        }
        (_, Some(after)) => {
            tracing::info!(%container, capsule = after.label(), target, intent = ?name(&before.phase), "found half done: kept");
        }
        (_, None) => {
            tracing::info!(%container, capsule, target, intent = ?name(&before.phase), "found half done: taken off record");
        }
    }
}

fn name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Attaching => "attach",
        Phase::Attached => "none",
        Phase::Replacing { .. } => "replace",
        Phase::Detaching { .. } => "detach",
        Phase::Waiting => "attach again",
    }
}
