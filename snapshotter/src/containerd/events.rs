//! containerd's event stream, reduced to what capsuled follows.
//!
//! The stream has no replay: what happened while nobody listened must be listed anew after every (re)connect.

use std::{pin::pin, time::Duration};

use capsule_proto::containerd::{
    events as wire,
    services::{
        events::v1::{PublishRequest, SubscribeRequest, events_client::EventsClient},
        images::v1::{ImageCreate, ImageDelete, ImageUpdate},
    },
    types::Envelope,
};
use prost::Message;
use prost_types::Any;
use tonic::Streaming;

use super::{Containerd, ContainerdError, Scope};

/// Topic of the event that opens our own subscription.
const MARKER: &str = "/capsule/following";
/// How long to wait for the subscription to open before the marker is published (again).
const MARKER_PAUSE: Duration = Duration::from_millis(20);

/// What happened, in which namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container was created or its runtime changed.
    ContainerChanged {
        /// containerd namespace.
        namespace: String,
        /// Container id.
        id: String,
    },
    /// A container was deleted.
    ContainerDeleted {
        /// containerd namespace.
        namespace: String,
        /// Container id.
        id: String,
    },
    /// A container's init process ended: its mount namespace goes with it.
    TaskEnded {
        /// containerd namespace.
        namespace: String,
        /// Container id.
        id: String,
    },
    /// The kernel killed a process of a container for want of memory.
    OutOfMemory {
        /// containerd namespace.
        namespace: String,
        /// Container id.
        id: String,
    },
    /// A snapshot was removed.
    SnapshotRemoved {
        /// containerd namespace.
        namespace: String,
        /// Its key.
        key: String,
    },
    /// An image record was created, changed or deleted.
    ImageChanged {
        /// containerd namespace.
        namespace: String,
        /// Image name.
        name: String,
    },
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream {
    containerd: Containerd,
    stream: Streaming<Envelope>,
}

impl Containerd {
    /// Subscribes to all namespaces. Once this returns, nothing that happens is missed until the stream ends.
    ///
    /// containerd answers a subscription only with its first event, which may be hours away: a marker of our own,
    /// published until the answer comes, is that event. It says nothing to anyone else.
    pub async fn events(&self, marker_namespace: &str) -> Result<EventStream, ContainerdError> {
        let topics = [
            "/containers/",
            "/tasks/exit",
            "/tasks/delete",
            "/tasks/oom",
            "/images/",
            "/snapshot/remove",
            MARKER,
        ];
        let request =
            SubscribeRequest { filters: topics.iter().map(|topic| format!("topic~=\"^{topic}\"")).collect() };
        let mut client = EventsClient::new(self.channel.clone());
        let mut subscribed = pin!(client.subscribe(request));
        let scope = self.namespace(marker_namespace)?;
        loop {
            tokio::select! {
                reply = &mut subscribed => {
                    let stream = reply.map_err(|e| self.failed("send its events", e))?.into_inner();
                    return Ok(EventStream { containerd: self.clone(), stream });
                }
                () = tokio::time::sleep(MARKER_PAUSE) => scope.publish_marker(marker_namespace).await?,
            }
        }
    }
}

impl Scope {
    async fn publish_marker(&self, name: &str) -> Result<(), ContainerdError> {
        // A type that every subscriber of containerd can decode.
        let body = wire::NamespaceUpdate { name: name.to_owned(), ..Default::default() };
        let event =
            Any { type_url: "containerd.events.NamespaceUpdate".to_owned(), value: body.encode_to_vec() };
        self.publish(MARKER, event).await
    }

    /// Publishes an event of our own.
    ///
    /// # Errors
    /// containerd's.
    pub async fn publish(&self, topic: &str, event: Any) -> Result<(), ContainerdError> {
        let request = PublishRequest { topic: topic.to_owned(), event: Some(event) };
        EventsClient::new(self.channel())
            .publish(self.request(request))
            .await
            .map_err(|e| self.failed("publish an event", e))?;
        Ok(())
    }
}

impl EventStream {
    /// The next event; `None` when containerd ended the stream.
    pub async fn next(&mut self) -> Result<Option<Event>, ContainerdError> {
        loop {
            let envelope =
                self.stream.message().await.map_err(|e| self.containerd.failed("send its events", e))?;
            let Some(envelope) = envelope else { return Ok(None) };
            if let Some(event) = parse_event(&envelope) {
                return Ok(Some(event));
            }
        }
    }
}

/// `None` for events that nobody here follows, and for bodies that do not decode.
fn parse_event(envelope: &Envelope) -> Option<Event> {
    let namespace = envelope.namespace.clone();
    let body = envelope.event.as_ref()?.value.as_slice();
    match envelope.topic.as_str() {
        "/containers/create" => {
            let id = wire::ContainerCreate::decode(body).ok()?.id;
            Some(Event::ContainerChanged { namespace, id })
        }
        "/containers/update" => {
            let id = wire::ContainerUpdate::decode(body).ok()?.id;
            Some(Event::ContainerChanged { namespace, id })
        }
        "/containers/delete" => {
            let id = wire::ContainerDelete::decode(body).ok()?.id;
            Some(Event::ContainerDeleted { namespace, id })
        }
        "/tasks/exit" => {
            let exit = wire::TaskExit::decode(body).ok()?;
            // An exec's exit names its own id; only the init's ends the container's namespaces.
            (exit.id == exit.container_id).then_some(Event::TaskEnded { namespace, id: exit.container_id })
        }
        "/tasks/delete" => {
            let delete = wire::TaskDelete::decode(body).ok()?;
            let init = delete.id.is_empty() || delete.id == delete.container_id;
            init.then_some(Event::TaskEnded { namespace, id: delete.container_id })
        }
        "/tasks/oom" => {
            let id = wire::TaskOom::decode(body).ok()?.container_id;
            Some(Event::OutOfMemory { namespace, id })
        }
        "/snapshot/remove" => {
            let key = wire::SnapshotRemove::decode(body).ok()?.key;
            Some(Event::SnapshotRemoved { namespace, key })
        }
        "/images/create" => {
            let name = ImageCreate::decode(body).ok()?.name;
            Some(Event::ImageChanged { namespace, name })
        }
        "/images/update" => {
            let name = ImageUpdate::decode(body).ok()?.name;
            Some(Event::ImageChanged { namespace, name })
        }
        "/images/delete" => {
            let name = ImageDelete::decode(body).ok()?.name;
            Some(Event::ImageChanged { namespace, name })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, message: &impl Message) -> Envelope {
        Envelope {
            namespace: "default".into(),
            topic: topic.into(),
            event: Some(Any { type_url: "t".into(), value: message.encode_to_vec() }),
            ..Default::default()
        }
    }

    #[test]
    fn only_an_inits_exit_ends_a_task() {
        let mut exit = wire::TaskExit { container_id: "c".into(), id: "c".into(), ..Default::default() };
        let ended = Some(Event::TaskEnded { namespace: "default".into(), id: "c".into() });
        assert_eq!(parse_event(&envelope("/tasks/exit", &exit)), ended);
        exit.id = "exec-1".into();
        assert_eq!(parse_event(&envelope("/tasks/exit", &exit)), None);
        let delete = wire::TaskDelete { container_id: "c".into(), ..Default::default() };
        assert_eq!(parse_event(&envelope("/tasks/delete", &delete)), ended);
    }

    #[test]
    fn a_process_that_was_killed_for_memory_is_of_its_container() {
        let oom = wire::TaskOom { container_id: "c".into() };
        let event = Event::OutOfMemory { namespace: "default".into(), id: "c".into() };
        assert_eq!(parse_event(&envelope("/tasks/oom", &oom)), Some(event));
    }

    #[test]
    fn unknown_topics_and_bodies_are_passed_over() {
        assert_eq!(parse_event(&envelope("/tasks/paused", &wire::TaskPaused::default())), None);
        let garbage = Envelope {
            topic: "/images/create".into(),
            event: Some(Any { type_url: String::new(), value: vec![0xff, 0xff] }),
            ..Default::default()
        };
        assert_eq!(parse_event(&garbage), None);
    }
}
