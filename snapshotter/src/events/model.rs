//! What an event is. Pure: no I/O.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{
    attachments::{
        called::Called,
        model::{Attachment, ContainerKey, Content},
    },
    capsules::model::{CapsuleName, Digest, Version, or_none},
};

/// What happened. The names are those of `capsule.v1.EventKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A capsule is visible in a container.
    Attached,
    /// Another version took the place of one, by an upgrade.
    Upgraded,
    /// And by a rollback.
    RolledBack,
    /// It left its path.
    Detached,
    /// A version left its path, and processes still use files of it.
    Draining,
    /// Nobody uses it any more.
    Drained,
    /// The container's task has ended: it waits for the next one.
    Waiting,
    /// The container's next task has it again.
    Restored,
    /// It ended with its container.
    Ended,
    /// Somebody else unmounted it.
    Lost,
    /// A call was undone.
    Undone,
    /// Somebody had taken devices from a container, and it has them again.
    Repaired,
    /// Somebody else's device program is kept behind an attachment's devices.
    ForeignProgram,
    /// Devices of an attachment are denied, and cannot be given again.
    Denied,
    /// A version is there.
    Published,
    /// A version is gone.
    Removed,
    /// A tag stands for a version from now on.
    Tagged,
    /// A tag is gone.
    Untagged,
    /// The kernel killed a process of its container for want of memory, of which it changes the limits.
    OutOfMemory,
}

impl Kind {
    /// As a word of a topic.
    pub fn word(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Upgraded => "upgraded",
            Self::RolledBack => "rolled-back",
            Self::Detached => "detached",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Waiting => "waiting",
            Self::Restored => "restored",
            Self::Ended => "ended",
            Self::Lost => "lost",
            Self::Undone => "undone",
            Self::Repaired => "repaired",
            Self::ForeignProgram => "foreign-program",
            Self::Denied => "denied",
            Self::Published => "published",
            Self::Removed => "removed",
            Self::Tagged => "tagged",
            Self::Untagged => "untagged",
            Self::OutOfMemory => "out-of-memory",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; 0 until it is written.
    #[serde(skip)]
    pub sequence: u64,
    /// When.
    pub at: SystemTime,
    /// What.
    pub kind: Kind,
    /// In which container, if in one.
    pub place: Option<Place>,
    /// Of which capsule; none of an attachment of devices alone.
    #[serde(deserialize_with = "or_none")]
    pub capsule: CapsuleName,
    /// The version.
    #[serde(deserialize_with = "or_none")]
    pub version: Version,
    /// Its identity.
    #[serde(deserialize_with = "or_none")]
    pub digest: Digest,
    /// The version before it.
    pub from: Option<Version>,
    /// The tag, of what is told of one.
    #[serde(default)]
    pub tag: Option<Version>,
    /// Why, for people.
    pub message: String,
}

/// An attachment that an event tells of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The container.
    pub container: ContainerKey,
    /// What it was called then, where that was known.
    #[serde(default)]
    pub called: Called,
    /// The attachment's id.
    pub attachment: String,
    /// Where in the container.
    pub target: String,
}

impl Event {
    /// What happens now to an attachment as it is.
    pub fn of(attachment: &Attachment, kind: Kind) -> Self {
        Self::of_content(attachment, &attachment.current, kind)
    }

    /// The same, of a content that is not its current one.
    pub fn of_content(attachment: &Attachment, content: &Content, kind: Kind) -> Self {
        let place = Place {
            container: attachment.container.clone(),
            called: Called::default(),
            attachment: attachment.id.clone(),
            target: attachment.target.clone(),
        };
        let mut event = Self::of_version(&attachment.capsule, &content.version, &content.digest, kind);
        event.place = Some(place);
        if !attachment.device_names().is_empty() {
            event.message = format!("devices: {}", attachment.device_names().join(", "));
        }
        event
    }

    /// What happens now to a version.
    pub fn of_version(capsule: &CapsuleName, version: &Version, digest: &Digest, kind: Kind) -> Self {
        Self {
            sequence: 0,
            at: SystemTime::now(),
            kind,
            place: None,
            capsule: capsule.clone(),
            version: version.clone(),
            digest: digest.clone(),
            from: None,
            tag: None,
            message: String::new(),
        }
    }

    /// An attachment at another version than `before`.
    pub fn moved(before: &Attachment, after: &Attachment) -> Self {
        let back = after.history.len() < before.history.len();
        let kind = if back { Kind::RolledBack } else { Kind::Upgraded };
        Self { from: Some(before.current.version.clone()), ..Self::of(after, kind) }
    }

    /// With a reason.
    #[must_use]
    pub fn because(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// When, in milliseconds since 1970.
    pub(crate) fn milliseconds(&self) -> u64 {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
