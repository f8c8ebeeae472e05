//! Following events: from any number that is still kept, and then as they come.

use tokio::sync::watch;

use super::Event;
use crate::{
    capsules::model::CapsuleName,
    store::{Store, StoreError, events},
};

/// How many events are read at a time.
const BATCH: usize = 256;

/// Why events cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// They are gone.
    #[error(
        "events after {after} are no longer kept: list what there is (capsulectl ls, capsulectl ps), then follow from {last}"
    )]
    TooOld {
        /// What was asked for.
        after: u64,
        /// The newest there is.
        last: u64,
    },
    /// They have not happened.
    #[error("event {after} has not happened: the newest is {last}")]
    TooNew {
        /// What was asked for.
        after: u64,
        /// The newest there is.
        last: u64,
    },
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which events are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of the container of this id, or of those that were called so; any when empty.
    pub container: String,
    /// Of this containerd namespace; any when empty.
    pub namespace: String,
    /// Of this capsule.
    pub capsule: Option<CapsuleName>,
}

impl Filter {
    /// Whether it is.
    pub fn takes(&self, event: &Event) -> bool {
        let place = event.place.as_ref();
        let is = |wanted: &str, found: Option<&str>| wanted.is_empty() || found == Some(wanted);
        (is(&self.container, place.map(|place| place.container.id.as_str()))
            || is(&self.container, place.and_then(|place| place.called.name.as_deref())))
            && is(&self.namespace, place.map(|place| place.container.namespace.as_str()))
            && self.capsule.as_ref().is_none_or(|capsule| *capsule == event.capsule)
    }
}

/// The events of this node: cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    store: Store,
    /// The number of the newest event.
    newest: watch::Receiver<u64>,
}

impl Feed {
    /// Over the store that they are written to. `newest` changes when more are.
    pub fn new(store: Store, newest: watch::Receiver<u64>) -> Self {
        Self { store, newest }
    }

    /// The number of the newest event; 0 where there is none.
    pub fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Begins to follow: after the event of number `after`, or with the next one.
    ///
    /// # Errors
    /// [`FeedError::TooOld`], [`FeedError::TooNew`], the store's.
    pub async fn follow(&self, after: Option<u64>) -> Result<Watcher, FeedError> {
        let (newest, last) = (self.newest.clone(), self.newest());
        let position = after.unwrap_or(last);
        // Nothing has happened since the node's start: what happened before that is gone.
        if last == 0 && position > 0 {
            return Err(FeedError::TooOld { after: position, last });
        }
        if position > last {
            return Err(FeedError::TooNew { after: position, last });
        }
        if read_after(&self.store, position, 1).await?.is_none() {
            return Err(FeedError::TooOld { after: position, last });
        }
        Ok(Watcher { store: self.store.clone(), newest, position, last })
    }
}

/// A follower: gives each event once, in order.
#[derive(Debug)]
pub struct Watcher {
    store: Store,
    newest: watch::Receiver<u64>,
    position: u64,
    last: u64,
}

impl Watcher {
    /// The number of the event that the next one comes after.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether all is given that had happened when this began.
    pub fn has_caught_up(&self) -> bool {
        self.position >= self.last
    }

    /// The next events, waited for; none when capsuled ends.
    ///
    /// # Errors
    /// [`FeedError::TooOld`] where the follower was so slow that some are gone; the store's.
    pub async fn next(&mut self) -> Result<Vec<Event>, FeedError> {
        loop {
            let Some(events) = read_after(&self.store, self.position, BATCH).await? else {
                return Err(FeedError::TooOld { after: self.position, last: *self.newest.borrow() });
            };
            if let Some(last) = events.last() {
                self.position = last.sequence;
                return Ok(events);
            }
            if self.newest.changed().await.is_err() {
                return Ok(Vec::new());
            }
        }
    }
}

/// The store blocks.
async fn read_after(store: &Store, after: u64, limit: usize) -> Result<Option<Vec<Event>>, StoreError> {
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || events::read_after(&store, after, limit));
    read.await.map_err(|_| StoreError::Closed)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capsules::model::Digest,
        events::Kind,
        store::attachments::{Change, Journal},
    };

    fn event(n: usize) -> Change {
        let digest = Digest::from_sha256(&[1; 32]);
        let (name, version) = ("tzdata".parse().unwrap(), n.to_string().parse().unwrap());
        Change::Tell(Box::new(Event::of_version(&name, &version, &digest, Kind::Published)))
    }

    async fn versions(watcher: &mut Watcher, count: usize) -> Vec<String> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(watcher.next().await.unwrap().into_iter().map(|e| e.version.to_string()));
        }
        all
    }

    #[tokio::test]
    async fn events_are_followed_from_any_that_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.redb");
        let store = Store::open(&path).unwrap();
        let journal = Journal::start(store.clone()).unwrap();
        let feed = journal.feed(store.clone());
        let mut new = feed.follow(None).await.unwrap();
        journal.write(vec![event(1), event(2)]).await.unwrap();
        assert_eq!(versions(&mut new, 2).await, ["1", "2"]);
        let two = new.position();
        assert!(two > 1_700_000_000_000, "{two}");
        journal.post(vec![event(3)]);
        assert_eq!(versions(&mut new, 1).await, ["3"]);
        let mut again = feed.follow(Some(two - 1)).await.unwrap();
        assert!(!again.has_caught_up());
        assert_eq!(versions(&mut again, 2).await, ["2", "3"]);
        assert!(again.has_caught_up());
        assert_eq!(versions(&mut feed.follow(Some(0)).await.unwrap(), 3).await, ["1", "2", "3"]);
        assert!(matches!(feed.follow(Some(two + 2)).await, Err(FeedError::TooNew { .. })));
        // After a restart the numbers go on.
        drop((journal, feed, new, again));
        let journal = Journal::start(store.clone()).unwrap();
        journal.write(vec![event(4)]).await.unwrap();
        let mut all = journal.feed(store.clone()).follow(Some(two)).await.unwrap();
        assert_eq!(versions(&mut all, 2).await, ["3", "4"]);
        assert_eq!(all.position(), two + 2);
    }

    #[tokio::test]
    async fn what_is_no_longer_kept_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("m.redb")).unwrap();
        let journal = Journal::start(store.clone()).unwrap();
        let feed = journal.feed(store.clone());
        let kept = usize::try_from(events::KEPT).unwrap();
        journal.write((0..kept + 10).map(event).collect()).await.unwrap();
        let last = feed.follow(None).await.unwrap().position();
        let first = last - events::KEPT;
        assert_eq!(versions(&mut feed.follow(Some(first)).await.unwrap(), 1).await[0], "10");
        assert_eq!(versions(&mut feed.follow(Some(0)).await.unwrap(), 1).await[0], "10");
        let error = feed.follow(Some(first - 1)).await.unwrap_err();
        assert!(matches!(error, FeedError::TooOld { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_happened_before_a_reboot_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("boot-2.redb")).unwrap();
        let journal = Journal::start(store.clone()).unwrap();
        let feed = journal.feed(store.clone());
        let before = 1_700_000_000_000;
        assert!(matches!(feed.follow(Some(before)).await, Err(FeedError::TooOld { last: 0, .. })));
        journal.write(vec![event(1)]).await.unwrap();
        assert!(matches!(feed.follow(Some(before)).await, Err(FeedError::TooOld { .. })));
        assert_eq!(versions(&mut feed.follow(Some(0)).await.unwrap(), 1).await, ["1"]);
    }

    #[test]
    fn a_filter_takes_what_it_names() {
        let Change::Tell(event) = event(1) else { unreachable!() };
        let of = |capsule: &str| Filter { capsule: Some(capsule.parse().unwrap()), ..Filter::default() };
        assert!(Filter::default().takes(&event));
        assert!(of("tzdata").takes(&event) && !of("other").takes(&event));
        assert!(!Filter { container: "web".into(), ..Filter::default() }.takes(&event));
    }
}
