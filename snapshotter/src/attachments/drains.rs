//! What left its path and is still used: followed until nobody uses it, so that it is told of, and goes, by itself.
//!
//! A shim does not say when the last process lets go: the kernel tells nobody. It is asked ever less often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use super::{Attachments, called::Called, model::ContainerKey};
use crate::{
    capsules::model::{CapsuleName, Digest, Version},
    events::{Event, Kind, Place},
    shims::Draining,
    store::{Store, StoreError, events},
};

/// How long until a shim is asked first whether something still drains, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(16);
/// How many events are read at once.
const BATCH: usize = 1024;

/// A version that drains where an attachment was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Drain {
    attachment: String,
    target: String,
    capsule: CapsuleName,
    version: Version,
    digest: Digest,
}

/// What drains, as was told; of each container.
#[derive(Debug, Clone, Default)]
pub struct Drains(Arc<Mutex<BTreeMap<ContainerKey, Of>>>);

#[derive(Debug, Default)]
struct Of {
    drains: BTreeSet<Drain>,
    /// Somebody asks its shim until nothing does.
    is_followed: bool,
}

impl Drains {
    /// What an earlier capsuled has told of and not yet told the end of.
    ///
    /// # Errors
    /// The store's.
    pub fn read(store: &Store) -> Result<Self, StoreError> {
        let this = Self::default();
        let mut after = 0;
        while let Some(batch) = events::read_after(store, after, BATCH)?.filter(|batch| !batch.is_empty()) {
            after = batch.last().map_or(after, |event| event.sequence);
            batch.iter().for_each(|event| this.learn(event));
        }
        Ok(this)
    }

    /// Whether anything drains.
    pub fn are_any(&self) -> bool {
        self.lock().values().any(|of| !of.drains.is_empty())
    }

    fn learn(&self, event: &Event) {
        let Some(place) = &event.place else { return };
        let drain = Drain {
            attachment: place.attachment.clone(),
            target: place.target.clone(),
            capsule: event.capsule.clone(),
            version: event.version.clone(),
            digest: event.digest.clone(),
        };
        let mut all = self.lock();
        match event.kind {
            Kind::Draining => _ = all.entry(place.container.clone()).or_default().drains.insert(drain),
            Kind::Drained => {
                if let Some(of) = all.get_mut(&place.container) {
                    of.drains.remove(&drain);
                }
            }
            _ => {}
        }
        all.retain(|_, of| !of.drains.is_empty());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContainerKey, Of>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The containers in which something drained.
    pub(super) fn containers(&self) -> Vec<ContainerKey> {
        self.lock().keys().cloned().collect()
    }

    /// What drains in a container now. Gives what is to be told, and whether somebody is to follow it from now on.
    fn note(&self, container: &ContainerKey, draining: &[Draining]) -> (Vec<Event>, bool) {
        let now: BTreeSet<Drain> = draining.iter().filter_map(drain).collect();
        let mut all = self.lock();
        if now.is_empty() && !all.contains_key(container) {
            return (Vec::new(), false);
        }
        let of = all.entry(container.clone()).or_default();
        let ended = of.drains.difference(&now).map(|drain| event(container, drain, Kind::Drained));
        let began = now.difference(&of.drains).map(|drain| event(container, drain, Kind::Draining));
        let events = ended.chain(began).collect();
        let follow = !now.is_empty() && !std::mem::replace(&mut of.is_followed, true);
        of.drains = now;
        if of.drains.is_empty() && !follow {
            // Who follows it finds it gone.
            all.remove(container);
        }
        (events, follow)
    }

    /// Whether there is nothing to follow any more; who asks then has ended.
    fn has_ended(&self, container: &ContainerKey) -> bool {
        !self.lock().contains_key(container)
    }
}

impl Attachments {
    /// Tells what drains from now on and what no longer does, and has it followed.
    pub(super) fn tell_draining(&self, container: &ContainerKey, draining: &[Draining]) {
        let (events, follow) = self.drains.note(container, draining);
        if !events.is_empty() {
            self.ledger.found(Vec::new(), events);
        }
        if follow {
            tokio::spawn(self.clone().follow_draining(container.clone()));
        }
    }

    /// Asks a container's shim until nothing drains.
    async fn follow_draining(self, container: ContainerKey) {
        let mut wait = FIRST;
        loop {
            sleep(wait).await;
            wait = (wait * 2).min(LAST);
            let locked = self.records.lock(&container).await;
            self.has_said_what_drains(&container).await;
            drop(locked);
            self.records.tidy(&container);
            if self.drains.has_ended(&container) {
                return;
            }
        }
    }
}

/// None for what no capsuled has attached.
fn drain(draining: &Draining) -> Option<Drain> {
    Some(Drain {
        attachment: draining.id.clone(),
        target: draining.target.clone(),
        capsule: draining.capsule.parse().ok()?,
        version: draining.version.parse().ok()?,
        digest: draining.digest.parse().ok()?,
    })
}

fn event(container: &ContainerKey, drain: &Drain, kind: Kind) -> Event {
    let place = Place {
        container: container.clone(),
        called: Called::default(),
        attachment: drain.attachment.clone(),
        target: drain.target.clone(),
    };
    let event = Event::of_version(&drain.capsule, &drain.version, &drain.digest, kind);
    Event { place: Some(place), ..event }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draining(id: &str, version: &str) -> Draining {
        Draining {
            id: id.into(),
            capsule: "tz".into(),
            version: version.into(),
            digest: Digest::from_sha256(&[1; 32]).to_string(),
            layers: Vec::new(),
            target: "/opt".into(),
            since: 0,
            users: Vec::new(),
        }
    }

    fn told(drains: &Drains, container: &ContainerKey, now: &[Draining]) -> (Vec<String>, bool) {
        let (events, follow) = drains.note(container, now);
        events.iter().for_each(|event| assert!(event.place.is_some()));
        (events.iter().map(|event| format!("{} {}", event.kind.word(), event.version)).collect(), follow)
    }

    #[test]
    fn each_beginning_and_end_is_told_once_and_one_follows() {
        let (drains, c) = (Drains::default(), ContainerKey { namespace: "n".into(), id: "c".into() });
        assert_eq!(told(&drains, &c, &[]), (vec![], false));
        let one = [draining("a", "1")];
        assert_eq!(told(&drains, &c, &one), (vec!["draining 1".into()], true));
        assert_eq!(told(&drains, &c, &one), (vec![], false));
        let two = [draining("a", "2")];
        assert_eq!(told(&drains, &c, &two), (vec!["drained 1".into(), "draining 2".into()], false));
        assert!(!drains.has_ended(&c));
        assert_eq!(told(&drains, &c, &[]), (vec!["drained 2".into()], false));
        assert!(drains.has_ended(&c));
        assert_eq!(told(&drains, &c, &two), (vec!["draining 2".into()], true));
    }

    #[test]
    fn what_was_told_before_a_restart_is_not_told_again_and_its_end_is() {
        let c = ContainerKey { namespace: "n".into(), id: "c".into() };
        let (before, after) = (Drains::default(), Drains::default());
        let (events, _) = before.note(&c, &[draining("a", "1"), draining("b", "1"), draining("c", "1")]);
        let (more, _) = before.note(&c, &[draining("a", "1"), draining("b", "1")]);
        events.iter().chain(&more).for_each(|event| after.learn(event));
        assert_eq!(after.containers(), std::slice::from_ref(&c));
        assert_eq!(told(&after, &c, &[draining("b", "1")]), (vec!["drained 1".into()], true));
    }
}
