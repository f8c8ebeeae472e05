//! Our events on containerd's own stream, for those who follow that one.
//!
//! It has no replay: while containerd is away events are not lost for good, but late, and what happens while capsuled is
//! away from it for longer than events are kept is not told there.

use std::{collections::HashMap, time::Duration};

use capsule_proto::containerd::{events::ContainerUpdate, services::images::v1::ImageUpdate};
use prost::Message;
use prost_types::Any;

use super::{Event, Feed, FeedError, feed::Watcher};
use crate::containerd::{Containerd, ContainerdError};

/// How long to wait before containerd is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Feed {
    /// Publishes each event after the one of number `after`, in the namespace of its container or in that of capsules. Ends
    /// with the daemon.
    pub async fn publish(self, after: u64, containerd: Containerd, namespace: String) {
        let mut after = Some(after);
        loop {
            // After an error, with the next event: what cannot be read is not told.
            let followed = match self.follow(after.take()).await {
                Ok(watcher) => pass_on(watcher, &containerd, &namespace).await,
                Err(error) => Err(error),
            };
            match followed {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "some events are not told to containerd"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn pass_on(mut watcher: Watcher, containerd: &Containerd, namespace: &str) -> Result<(), FeedError> {
    loop {
        let events = watcher.next().await?;
        if events.is_empty() {
            return Ok(());
        }
        for event in &events {
            while let Err(error) = publish(containerd, namespace, event).await {
                // What it refuses it would refuse again, and those behind it must not wait for that.
                if !matches!(error, ContainerdError::Unreachable { .. }) {
                    tracing::warn!(%error, sequence = event.sequence, "an event is not told to containerd");
                    break;
                }
                tracing::debug!(%error, "cannot tell containerd of an event");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn publish(containerd: &Containerd, namespace: &str, event: &Event) -> Result<(), ContainerdError> {
    let namespace = event.place.as_ref().map_or(namespace, |place| &place.container.namespace);
    let topic = format!("/capsules/{}", event.kind.word());
    containerd.namespace(namespace)?.publish(&topic, body(event)).await
}

/// In a type that every client of containerd can decode, `ctr events` too, which knows those of containerd alone: what is
/// told is in the labels.
fn body(event: &Event) -> Any {
    let version = format!("{}@{}", event.capsule, event.version);
    let labels = labels(event);
    match &event.place {
        Some(place) => any(
            "containerd.events.ContainerUpdate",
            &ContainerUpdate { id: place.container.id.clone(), labels, ..Default::default() },
        ),
        None => any("containerd.services.images.v1.ImageUpdate", &ImageUpdate { name: version, labels }),
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: name.to_owned(), value: message.encode_to_vec() }
}

fn labels(event: &Event) -> HashMap<String, String> {
    let mut all = vec![
        ("sequence", event.sequence.to_string()),
        ("capsule", event.capsule.to_string()),
        ("version", event.version.to_string()),
        ("digest", event.digest.to_string()),
        ("message", event.message.clone()),
    ];
    all.extend(event.from.as_ref().map(|from| ("from_version", from.to_string())));
    all.extend(event.tag.as_ref().map(|tag| ("tag", tag.to_string())));
    if let Some(place) = &event.place {
        all.extend([("attachment_id", place.attachment.clone()), ("target", place.target.clone())]);
        let called = place.called.clone();
        all.extend([
            ("container_name", called.name.unwrap_or_default()),
            ("pod", called.pod.unwrap_or_default()),
            ("pod_container", called.pod_container.unwrap_or_default()),
        ]);
    }
    let filled = all.into_iter().filter(|(_, text)| !text.is_empty());
    filled.map(|(name, text)| (name.to_owned(), text)).collect()
}
