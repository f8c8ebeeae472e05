//! Events, for `kubectl describe`. That one is not taken is nobody's loss.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Resource,
    runtime::events::{Event, EventType, Recorder},
};

use crate::bounded;

/// Most bytes of a note (events.k8s.io/v1: 1 kB).
const NOTE: usize = 1000;

/// Says of an object what has become of it, and why.
pub async fn publish<K>(recorder: &Recorder, object: &K, action: &str, reason: &str, note: &str, is_bad: bool)
where
    K: Resource<DynamicType = ()>,
{
    publish_of(recorder, &object.object_ref(&()), action, reason, note, is_bad).await;
}

/// The same of an object that a reference names.
pub async fn publish_of(
    recorder: &Recorder,
    object: &ObjectReference,
    action: &str,
    reason: &str,
    note: &str,
    is_bad: bool,
) {
    let event = Event {
        type_: if is_bad { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(shortened(note).to_owned()),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = bounded(recorder.publish(&event, object)).await {
        tracing::debug!(%error, "an event");
    }
}

fn shortened(note: &str) -> &str {
    let end = (0..=NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end));
    &note[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "ü".repeat(NOTE);
        assert_eq!(shortened(&long).len(), NOTE);
        assert_eq!(shortened(&format!("a{long}")).len(), NOTE - 1);
    }
}
