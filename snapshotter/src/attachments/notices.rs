//! What shims notice by themselves: asked for while there are devices or changed limits, and told as events.
//!
//! A shim that is asked looks whether its containers' programs still allow what is attached, and puts right what somebody has changed:
//! the kernel tells nobody of that. Limits, which systemd and others write, it puts right as well. So each such container is asked
//! every few seconds; and one of which limits were just taken back, until that is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    Attachments,
    model::{Attachment, ContainerKey, Phase},
};
use crate::{
    events::{Event, Kind},
    shims::{Look, Notice, ShimError},
};

/// How long a container may be without a device that somebody has taken from it, about.
const EVERY: Duration = Duration::from_secs(5);
/// How long a shim may take before the next container is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Containers of which limits are, or may be, still to be put back: cheap to clone, shared. In memory: a start asks all shims.
#[derive(Debug, Clone, Default)]
pub struct LimitsLeft(Arc<Mutex<BTreeSet<ContainerKey>>>);

impl LimitsLeft {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<ContainerKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any may be left.
    pub fn are_any(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Has a container asked until its shim says that nothing is left.
    pub fn note(&self, container: &ContainerKey) {
        self.lock().insert(container.clone());
    }
}

impl Attachments {
    /// Asks the shims of all containers with devices or changed limits, every few seconds, until the daemon ends.
    pub async fn watch_devices(self) {
        let mut published: BTreeMap<ContainerKey, u64> = BTreeMap::new();
        loop {
            sleep(EVERY).await;
            let containers = self.containers_to_ask();
            published.retain(|container, _| containers.contains(container));
            for container in containers {
                let last = published.entry(container.clone()).or_default();
                self.ask_notices(&container, last).await;
            }
        }
    }

    /// Containers with something attached that others can take away unseen, and those of which limits are to be put back.
    pub(super) fn containers_to_ask(&self) -> BTreeSet<ContainerKey> {
        let is_given = |attachment: &Attachment| {
            let given = attachment.devices.is_some() || !attachment.current.resources.is_empty();
            attachment.phase == Phase::Attached && given
        };
        let all = self.records.containers().into_iter();
        let given = all.filter(|container| self.records.look(container, |all| all.iter().any(is_given)));
        given.chain(self.limits_left.lock().iter().cloned()).collect()
    }

    /// Has a container asked of which limits were taken back, where one of these has changed some.
    pub(super) fn look_after_limits(&self, container: &ContainerKey, gone: &[Attachment]) {
        if gone.iter().any(Attachment::changes_limits) {
            self.limits_left.note(container);
        }
    }

    /// Publishes what a container's shim has noticed since the notice of number `last`, which becomes the newest.
    pub(super) async fn ask_notices(&self, container: &ContainerKey, last: &mut u64) {
        // Before it is asked: what is noted meanwhile is asked for once more.
        let was_left = self.limits_left.lock().remove(container);
        let Look { notices, limits_left } =
            match timeout(PATIENCE, self.shims.notices(container, *last)).await {
                Ok(Ok(look)) => look,
                // Its limits went with its control group.
                Ok(Err(ShimError::NoShim(_))) => return,
                Ok(Err(error)) => {
                    tracing::debug!(%container, %error, "cannot ask what its shim has noticed");
                    Look { limits_left: was_left, ..Look::default() }
                }
                Err(_) => Look { limits_left: was_left, ..Look::default() },
            };
        if limits_left {
            self.limits_left.note(container);
        }
        let Some(newest) = notices.iter().map(|notice| notice.number).max() else { return };
        let attachments = self.records.shown(container);
        let events = notices.iter().filter_map(|notice| {
            let attachment = attachments.iter().find(|attachment| attachment.id == notice.attachment)?;
            tracing::warn!(%container, attachment = attachment.label(), "{}", notice.text);
            Some(event(Event::of(attachment, kind(notice)?), notice))
        });
        self.ledger.found(Vec::new(), events.collect());
        // Once they are written, the shim may forget them.
        self.ledger.flush().await;
        *last = newest;
    }
}

/// None for one of a kind that a newer shim tells of.
fn kind(notice: &Notice) -> Option<Kind> {
    use capsule_proto::hotplug::NoticeKind;
    match notice.kind {
        NoticeKind::REPAIRED => Some(Kind::Repaired),
        NoticeKind::FOREIGN_PROGRAM => Some(Kind::ForeignProgram),
        NoticeKind::DENIED => Some(Kind::Denied),
        NoticeKind::NOTICE_UNSPECIFIED => None,
    }
}

fn event(event: Event, notice: &Notice) -> Event {
    let message = if event.message.is_empty() {
        notice.text.clone()
    } else {
        format!("{}: {}", event.message, notice.text)
    };
    Event { at: notice.at, ..event.because(message) }
}
