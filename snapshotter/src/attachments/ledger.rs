//! What is written down of attachments, and where.
//!
//! | store | holds | written |
//! | --- | --- | --- |
//! | live, in `/run` | intents, records, events | before an effect, and after it before the call is answered |
//! | kept, beside the snapshots | what is to be again after a reboot | before the call is answered |

use futures::future::join;

use super::{
    containers::Containers,
    effects::{change, puts, removals},
    model::{Attachment, Phase},
};
use crate::{
    events::{Event, Kind},
    store::{
        StoreError,
        attachments::{Change, Journal},
    },
};

/// The two stores' journals: cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    live: Journal,
    kept: Journal,
    /// Who knows what the containers are called that events tell of.
    containers: Option<Containers>,
}

impl Ledger {
    /// Over the journals of the two stores.
    pub fn new(live: Journal, kept: Journal) -> Self {
        Self { live, kept, containers: None }
    }

    /// With events that name containers as these are called.
    #[must_use]
    pub(super) fn naming(self, containers: Containers) -> Self {
        Self { containers: Some(containers), ..self }
    }

    /// Writes intents down, before their effects.
    pub(super) async fn intend(&self, intents: &[Attachment]) -> Result<(), StoreError> {
        self.live.write(puts(intents)).await
    }

    /// Makes what is to be durable, so that a call that made it can be answered.
    pub(super) async fn keep(&self, records: &[Attachment]) -> Result<(), StoreError> {
        self.kept.write(puts(records)).await
    }

    /// The same of what is not to be any more.
    pub(super) async fn keep_no_more(&self, records: &[Attachment]) -> Result<(), StoreError> {
        self.kept.write(removals(records)).await
    }

    /// What a call has done, once it is kept. When this returns, no crash takes it for an intent any more.
    pub(super) async fn done(&self, changes: Vec<Change>, events: Vec<Event>) {
        if let Err(error) = self.live.write(self.with(changes, events)).await {
            // It is done, and kept: the next start finds it by what the shim has.
            tracing::error!(%error, "cannot write down that a call is done");
        }
    }

    /// What was found, or undone, outside of a call that could be answered.
    pub(super) fn found(&self, changes: Vec<Change>, events: Vec<Event>) {
        let of_records = changes.iter().filter(|change| !matches!(change, Change::Tell(_)));
        self.kept.post(of_records.cloned().collect());
        self.live.post(self.with(changes, events));
    }

    /// What becomes of records, and what is told of it.
    pub(super) fn became(&self, all: &[(Attachment, Option<Attachment>)], events: Vec<Event>) {
        let changed = all.iter().filter(|(before, after)| after.as_ref() != Some(before));
        self.found(changed.flat_map(|(before, after)| change(&before.id, after.clone())).collect(), events);
    }

    /// Waits until all that was handed in is written.
    pub async fn flush(&self) {
        // A journal that has ended has nothing more to write.
        let _ended = join(self.live.write(Vec::new()), self.kept.write(Vec::new())).await;
    }

    fn with(&self, mut changes: Vec<Change>, events: Vec<Event>) -> Vec<Change> {
        changes.extend(events.into_iter().map(|event| Change::Tell(Box::new(self.named(event)))));
        changes
    }

    /// Who reads it later, when its container may be gone or be called otherwise, has the name of now.
    fn named(&self, mut event: Event) -> Event {
        if let Some((place, containers)) = event.place.as_mut().zip(self.containers.as_ref()) {
            place.called = containers.called(&place.container);
        }
        event
    }
}

/// What a call that is done tells of one of its intents.
pub(super) fn told(intent: &Attachment, done: &Attachment) -> Event {
    match intent.phase {
        Phase::Replacing { .. } => Event::moved(intent, done),
        _ => Event::of(done, Kind::Attached),
    }
}

/// What a restart tells of what it found. Nothing of what is as it was.
pub(super) fn told_found(before: &Attachment, after: Option<&Attachment>) -> Option<Event> {
    let restarted = "found half done when capsuled was started";
    let undone = || Event::of(before, Kind::Undone).because(restarted);
    Some(match (&before.phase, after) {
        (Phase::Waiting, Some(after)) if after.phase == Phase::Attached => Event::of(after, Kind::Restored),
        (Phase::Attached | Phase::Waiting, Some(after)) if after.phase == before.phase => return None,
        (_, Some(after)) if after.phase == Phase::Waiting => Event::of(after, Kind::Waiting),
        (Phase::Attached | Phase::Waiting, _) => Event::of(before, Kind::Lost),
        (Phase::Attaching, Some(after)) => told(before, after).because(restarted),
        (Phase::Replacing { current, .. }, Some(after)) if after.current.digest == current.digest => {
            told(before, after).because(restarted)
        }
        (Phase::Detaching { .. }, None) => Event::of(before, Kind::Detached).because(restarted),
        (Phase::Attaching | Phase::Replacing { .. } | Phase::Detaching { .. }, _) => undone(),
    })
}
