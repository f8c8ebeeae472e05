//! `capsule.v1.Events`: what happens on the node, followed.

use std::pin::Pin;

use capsule_proto::capsule::v1 as wire;
use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    attachments::{Attachments, pods::MemberRef},
    events::{Event, Feed, FeedError, Filter, Kind, Watcher},
};

/// The service.
#[derive(Clone)]
pub struct EventsService {
    feed: Feed,
    attachments: Attachments,
    closing: watch::Receiver<bool>,
}

impl EventsService {
    /// Over the node's events, with what finds containers by names. All calls end once `closing` is set.
    pub fn new(feed: Feed, attachments: Attachments, closing: watch::Receiver<bool>) -> Self {
        Self { feed, attachments, closing }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl wire::events_server::Events for EventsService {
    type WatchStream = Answers;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Answers>, Status> {
        let request = request.into_inner();
        let capsule = convert::non_empty(request.capsule).map(|name| convert::parse_name(&name));
        let (container, namespace) = self.container(request.container, request.namespace).await?;
        let filter = Filter { container, namespace, capsule: capsule.transpose()? };
        let watcher = self.feed.follow(request.after).await?;
        let begins = wire::WatchResponse { event: None, sequence: watcher.position() };
        let attachments = self.attachments.clone();
        let following = Following { watcher, filter, no_follow: request.no_follow, attachments };
        let answers = stream::iter([Ok(begins)]).chain(stream::unfold(Some(following), next).flatten());
        let mut closing = self.closing.clone();
        // An error means that nobody can set it any more.
        let closed = async move { closing.wait_for(|closing| *closing).await.map(drop) };
        Ok(Response::new(answers.take_until(Box::pin(closed)).boxed()))
    }
}

impl EventsService {
    /// The id that a container has. Events outlive it: what names none that is there is taken for the id, or the name, that one had.
    async fn container(&self, id: String, namespace: String) -> Result<(String, String), Status> {
        if id.is_empty() {
            return Ok((id, namespace));
        }
        let is_member = MemberRef::is_meant(&id);
        let reference = wire::ContainerRef { id: id.clone(), namespace: namespace.clone() };
        let wanted = convert::parse_container(Some(reference))?;
        match self.attachments.by_name(&wanted).await {
            Some(key) => Ok((key.id, key.namespace)),
            None if is_member => Err(Status::not_found(format!(
                "no container is known as {id}: name one that is gone by its id, as its events have it"
            ))),
            None => Ok((id, namespace)),
        }
    }
}

struct Following {
    watcher: Watcher,
    filter: Filter,
    no_follow: bool,
    attachments: Attachments,
}

type Batch = stream::Iter<std::vec::IntoIter<Result<wire::WatchResponse, Status>>>;

/// The next answers, and what comes after them.
async fn next(following: Option<Following>) -> Option<(Batch, Option<Following>)> {
    let mut following = following?;
    if following.no_follow && following.watcher.has_caught_up() {
        return None;
    }
    let events = match following.watcher.next().await {
        Ok(events) if events.is_empty() => return None,
        Ok(events) => events,
        Err(error) => return Some((stream::iter(vec![Err(error.into())]), None)),
    };
    let sequence = following.watcher.position();
    let taken = events.iter().filter(|event| following.filter.takes(event));
    let mut answers: Vec<_> = taken
        .map(|e| Ok(wire::WatchResponse { event: Some(following.event(e)), sequence: e.sequence }))
        .collect();
    // How far this is, where the last ones were not wanted: who takes up again need not go through them.
    if !matches!(answers.last(), Some(Ok(answer)) if answer.sequence == sequence) {
        answers.push(Ok(wire::WatchResponse { event: None, sequence }));
    }
    Some((stream::iter(answers), Some(following)))
}

impl Following {
    /// With what its container was called then; where nobody knew, what it is called now.
    fn event(&self, told: &Event) -> wire::Event {
        let Some(place) = &told.place else { return event(told) };
        let called = if place.called.is_none() {
            self.attachments.called(&place.container)
        } else {
            place.called.clone()
        };
        let [container_name, pod, pod_container] =
            [called.name, called.pod, called.pod_container].map(Option::unwrap_or_default);
        wire::Event { container_name, pod, pod_container, ..event(told) }
    }
}

/// Without what its container is called.
fn event(event: &Event) -> wire::Event {
    let place = event.place.clone();
    let (container, attachment_id, target) = match place {
        Some(place) => (Some(place.container), place.attachment, place.target),
        None => (None, String::new(), String::new()),
    };
    let (container, namespace) = container.map(|c| (c.id, c.namespace)).unwrap_or_default();
    wire::Event {
        container_name: String::new(),
        pod: String::new(),
        pod_container: String::new(),
        sequence: event.sequence,
        at: Some(event.at.into()),
        kind: kind(event.kind).into(),
        container,
        namespace,
        attachment_id,
        target,
        capsule: event.capsule.to_string(),
        version: event.version.to_string(),
        from_version: event.from.as_ref().map(ToString::to_string).unwrap_or_default(),
        digest: event.digest.to_string(),
        message: event.message.clone(),
        tag: event.tag.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn kind(kind: Kind) -> wire::EventKind {
    match kind {
        Kind::Attached => wire::EventKind::Attached,
        Kind::Upgraded => wire::EventKind::Upgraded,
        Kind::RolledBack => wire::EventKind::RolledBack,
        Kind::Detached => wire::EventKind::Detached,
        Kind::Draining => wire::EventKind::Draining,
        Kind::Drained => wire::EventKind::Drained,
        Kind::Waiting => wire::EventKind::Waiting,
        Kind::Restored => wire::EventKind::Restored,
        Kind::Ended => wire::EventKind::Ended,
        Kind::Lost => wire::EventKind::Lost,
        Kind::Undone => wire::EventKind::Undone,
        Kind::Repaired => wire::EventKind::Repaired,
        Kind::ForeignProgram => wire::EventKind::ForeignProgram,
        Kind::Denied => wire::EventKind::Denied,
        Kind::Published => wire::EventKind::Published,
        Kind::Removed => wire::EventKind::Removed,
        Kind::Tagged => wire::EventKind::Tagged,
        Kind::Untagged => wire::EventKind::Untagged,
        Kind::OutOfMemory => wire::EventKind::OutOfMemory,
    }
}

impl From<FeedError> for Status {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::TooOld { .. } | FeedError::TooNew { .. } => Self::out_of_range(error.to_string()),
            FeedError::Store(error) => Self::internal(error.to_string()),
        }
    }
}
