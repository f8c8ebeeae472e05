//! What is printed, as values of our own: the JSON that programs rely on, and what the tables are made from.
//!
//! Pure. The field names are an interface, documented in `docs/semantics.md`: fields may be added, none is renamed
//! or removed, and no name of the wire format shows through.

use std::collections::BTreeMap;
use std::time::Duration;

use capsule_proto::capsule::v1;
use prost_types::Timestamp;
use serde::Serialize;

use crate::archive::Summary;
use crate::error::Error;

/// One version of a capsule.
#[derive(Debug, Serialize)]
pub struct Version {
    pub capsule: String,
    pub version: String,
    pub digest: String,
    /// Bytes of the tar layers.
    pub size: u64,
    /// RFC 3339, UTC; `null` when unknown.
    pub created_at: Option<Time>,
    pub default_target: Option<String>,
    /// `ro` or `union`; `null` when the version names none (attach then uses `ro`).
    pub default_mode: Option<&'static str>,
    pub image: String,
    pub namespace: String,
    pub complete: bool,
    /// What is missing; `null` when complete.
    pub incomplete: Option<String>,
    /// How many attachments have it mounted now; draining ones are not counted.
    pub attachments: u32,
    /// Other capsules that it needs: `NAME`, or `NAME RANGE`.
    pub requires: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub resources: BTreeMap<String, String>,
    /// What limits are not above.
    pub caps: BTreeMap<String, String>,
    /// CDI names.
    pub devices: Vec<String>,
    /// System calls that it denies; `null` for none.
    pub seccomp: Option<Seccomp>,
    /// Names that move and stand for it now.
    pub tags: Vec<String>,
}

/// System calls that a version denies.
#[derive(Debug, Serialize)]
pub struct Seccomp {
    /// `baseline` or `restricted`; `null` for neither.
    pub level: Option<String>,
    pub deny: Vec<String>,
}

/// One layer of a version's image.
#[derive(Debug, Serialize)]
pub struct Layer {
    pub digest: String,
    pub diff_id: String,
    pub media_type: String,
    pub size: u64,
    pub snapshot: Option<String>,
}

/// One capsule version at one path of one container.
#[derive(Debug, Serialize)]
pub struct Attachment {
    pub id: String,
    /// The container's id.
    pub container: String,
    /// What its client calls it; `null` where it has no name beside its id.
    pub container_name: Option<String>,
    pub namespace: String,
    pub capsule: String,
    pub version: String,
    pub digest: String,
    pub target: String,
    /// `ro` or `union`.
    pub mode: Option<&'static str>,
    /// `attached` or `draining`.
    pub state: &'static str,
    pub since: Option<Time>,
    /// Where a rollback would go; `null` when nowhere.
    pub previous_version: Option<String>,
    pub users: Vec<User>,
    /// Capsules in the container that require it.
    pub required_by: Vec<String>,
    /// `null` for one that is read-only.
    pub writable: Option<Writable>,
    /// CDI names of the devices that came with it; one of devices alone has no capsule, version, digest and target.
    pub devices: Vec<String>,
    /// What it does to limits of its container, in the kernel's words; `null` when nothing.
    pub resources: Option<Resources>,
    /// The pod that its container is of, as `NAMESPACE/NAME`; `null` when of none.
    pub pod: Option<String>,
    /// What the container is called in its pod.
    pub pod_container: Option<String>,
}

impl Attachment {
    /// Its container as a person names it: `pod/NAMESPACE/POD/CONTAINER`, the name that its client gave it, or its id.
    pub fn called(&self) -> String {
        match (&self.pod, &self.pod_container) {
            (Some(pod), Some(container)) => format!("pod/{pod}/{container}"),
            _ => self.container_name.as_ref().unwrap_or(&self.container).clone(),
        }
    }

    /// The same as a command takes it: `NAMESPACE/NAME` where it is of no pod.
    pub fn place(&self) -> String {
        match self.pod_container {
            Some(_) => self.called(),
            None => format!("{}/{}", self.namespace, self.called()),
        }
    }
}

/// What an attachment does to limits: amounts in the kernel's words, by their files.
#[derive(Debug, Serialize)]
pub struct Resources {
    /// What it adds.
    pub grants: BTreeMap<String, String>,
    /// What a limit is not above.
    pub caps: BTreeMap<String, String>,
}

impl From<v1::Resources> for Resources {
    fn from(r: v1::Resources) -> Self {
        Self { grants: r.grants.into_iter().collect(), caps: r.caps.into_iter().collect() }
    }
}

/// Where what is written to an attachment goes.
#[derive(Debug, Serialize)]
pub struct Writable {
    /// The name under which it is kept; `null` when it goes with the attachment.
    pub persist: Option<String>,
    /// Bytes that it can hold; `null` when only the disk bounds it.
    pub size: Option<u64>,
}

/// A process that keeps a draining version alive.
#[derive(Debug, Serialize)]
pub struct User {
    pub pid: i32,
    pub command: String,
    pub path: String,
    pub how: String,
}

/// Result of `build`.
#[derive(Debug, Serialize)]
pub struct Built {
    pub version: Version,
    pub existed: bool,
    /// `null` for a tar: nobody counted.
    pub files: Option<u64>,
    pub bytes: u64,
    pub elapsed_ms: u64,
}

/// Result of `ls`.
#[derive(Debug, Serialize)]
pub struct Versions {
    pub versions: Vec<Version>,
}

/// Result of `inspect`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub version: Version,
    pub layers: Vec<Layer>,
    pub annotations: BTreeMap<String, String>,
    pub attachments: Vec<Attachment>,
}

/// Result of `attach`, `detach` and `ps`.
#[derive(Debug, Serialize)]
pub struct Attachments {
    pub attachments: Vec<Attachment>,
}

/// Result of `resolve`, and of `attach --dry-run`.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub planned: Vec<Planned>,
}

/// One capsule of a plan.
#[derive(Debug, Serialize)]
pub struct Planned {
    pub capsule: String,
    pub version: String,
    pub digest: String,
    pub target: String,
    /// `ro` or `union`.
    pub mode: Option<&'static str>,
    /// The container has it already.
    pub present: bool,
    /// Capsules of the plan that require it.
    pub required_by: Vec<String>,
    /// The version that it would be moved from; `null` for one that would be attached.
    pub from_version: Option<String>,
}

/// Result of `upgrade` and `rollback`.
#[derive(Debug, Serialize)]
pub struct Moves {
    pub attachments: Vec<Moved>,
}

/// An attachment, and the version that it was at before the call; `null` for one that is new.
#[derive(Debug, Serialize)]
pub struct Moved {
    pub from_version: Option<String>,
    #[serde(flatten)]
    pub attachment: Attachment,
}

/// An instant; RFC 3339 in JSON, an age in text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// `None` for an empty text.
pub fn filled(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

fn mode_name(mode: v1::Mode) -> Option<&'static str> {
    match mode {
        v1::Mode::Unspecified => None,
        v1::Mode::Ro => Some("ro"),
        v1::Mode::Union => Some("union"),
    }
}

impl From<v1::Version> for Version {
    fn from(v: v1::Version) -> Self {
        Self {
            default_mode: mode_name(v.default_mode()),
            capsule: v.capsule,
            version: v.version,
            digest: v.digest,
            size: v.size,
            created_at: v.created_at.map(Time),
            default_target: filled(v.default_target),
            image: v.image,
            namespace: v.namespace,
            complete: v.complete,
            incomplete: filled(v.incomplete),
            attachments: v.attachments,
            requires: v.requires,
            environment: v.environment.into_iter().collect(),
            resources: v.resources.into_iter().collect(),
            caps: v.caps.into_iter().collect(),
            devices: v.devices,
            seccomp: v.seccomp.map(|s| Seccomp { level: filled(s.level), deny: s.deny }),
            tags: v.tags,
        }
    }
}

impl From<v1::Layer> for Layer {
    fn from(l: v1::Layer) -> Self {
        Self {
            digest: l.digest,
            diff_id: l.diff_id,
            media_type: l.media_type,
            size: l.size,
            snapshot: filled(l.snapshot),
        }
    }
}

impl From<v1::Attachment> for Attachment {
    fn from(a: v1::Attachment) -> Self {
        Self {
            mode: mode_name(a.mode()),
            state: match a.state() {
                v1::AttachmentState::Unspecified => "unknown",
                v1::AttachmentState::Attached => "attached",
                v1::AttachmentState::Draining => "draining",
                v1::AttachmentState::Waiting => "waiting",
            },
            id: a.id,
            container: a.container,
            container_name: filled(a.container_name),
            namespace: a.namespace,
            capsule: a.capsule,
            version: a.version,
            digest: a.digest,
            target: a.target,
            since: a.since.map(Time),
            previous_version: filled(a.previous_version),
            users: a.users.into_iter().map(User::from).collect(),
            required_by: a.required_by,
            devices: a.devices,
            resources: a.resources.map(Resources::from),
            pod: filled(a.pod),
            pod_container: filled(a.pod_container),
            writable: a.writable.map(|w| Writable {
                persist: filled(w.persist),
                size: Some(w.size).filter(|size| *size > 0),
            }),
        }
    }
}

impl From<Vec<v1::Planned>> for Plan {
    fn from(list: Vec<v1::Planned>) -> Self {
        let planned = |p: v1::Planned| Planned {
            mode: mode_name(p.mode()),
            capsule: p.capsule,
            version: p.version,
            digest: p.digest,
            target: p.target,
            present: p.present,
            required_by: p.required_by,
            from_version: filled(p.from_version),
        };
        Self { planned: list.into_iter().map(planned).collect() }
    }
}

impl From<v1::User> for User {
    fn from(u: v1::User) -> Self {
        Self { pid: u.pid, command: u.command, path: u.path, how: u.how }
    }
}

impl From<v1::ListCapsulesResponse> for Versions {
    fn from(r: v1::ListCapsulesResponse) -> Self {
        Self { versions: r.versions.into_iter().map(Version::from).collect() }
    }
}

impl From<Vec<v1::Attachment>> for Attachments {
    fn from(list: Vec<v1::Attachment>) -> Self {
        Self { attachments: list.into_iter().map(Attachment::from).collect() }
    }
}

impl TryFrom<v1::InspectCapsuleResponse> for Inspection {
    type Error = Error;

    fn try_from(r: v1::InspectCapsuleResponse) -> Result<Self, Error> {
        Ok(Self {
            version: r.version.ok_or(Error::Answer("inspect"))?.into(),
            layers: r.layers.into_iter().map(Layer::from).collect(),
            annotations: r.annotations.into_iter().collect(),
            attachments: r.attachments.into_iter().map(Attachment::from).collect(),
        })
    }
}

impl Moves {
    /// Pairs each attachment with the version it left; the API gives them in the same order.
    ///
    /// # Errors
    /// [`Error::Answer`] when there are not as many of one as of the other.
    pub fn new(call: &'static str, now: Vec<v1::Attachment>, from: Vec<String>) -> Result<Self, Error> {
        if now.len() != from.len() {
            return Err(Error::Answer(call));
        }
        let moved = now.into_iter().zip(from);
        let attachments =
            moved.map(|(a, from)| Moved { from_version: filled(from), attachment: a.into() }).collect();
        Ok(Self { attachments })
    }
}

impl Built {
    /// The answer to a build, with what was sent and how long it took.
    ///
    /// # Errors
    /// [`Error::Answer`] when the answer names no version.
    pub fn new(answer: v1::BuildResponse, sent: &Summary, elapsed: Duration) -> Result<Self, Error> {
        Ok(Self {
            version: answer.version.ok_or(Error::Answer("build"))?.into(),
            existed: answer.existed,
            files: sent.files,
            bytes: sent.bytes,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_an_attachment() {
        let wire = v1::Attachment {
            id: "a1".into(),
            container: "web".into(),
            namespace: "default".into(),
            capsule: "tzdata".into(),
            version: "2026.1".into(),
            digest: "sha256:00".into(),
            target: "/usr/share/zoneinfo".into(),
            mode: v1::Mode::Union.into(),
            state: v1::AttachmentState::Draining.into(),
            since: Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            previous_version: String::new(),
            users: vec![v1::User { pid: 7, command: "sh".into(), path: "/f".into(), how: "fd 5".into() }],
            ..v1::Attachment::default()
        };
        let want = serde_json::json!({
            "id": "a1", "container": "web", "container_name": null, "namespace": "default", "capsule": "tzdata", "version": "2026.1",
            "digest": "sha256:00", "target": "/usr/share/zoneinfo", "mode": "union", "state": "draining",
            "since": "2023-11-14T22:13:20Z", "previous_version": null,
            "users": [{"pid": 7, "command": "sh", "path": "/f", "how": "fd 5"}],
            "required_by": [], "writable": null, "devices": [], "resources": null, "pod": null,
            "pod_container": null,
        });
        assert_eq!(serde_json::to_value(Attachment::from(wire)).expect("JSON"), want);
    }

    #[test]
    fn json_of_an_incomplete_version() {
        let wire = v1::Version {
            capsule: "x".into(),
            version: "1".into(),
            incomplete: "layer sha256:11 is missing".into(),
            ..v1::Version::default()
        };
        let json = serde_json::to_value(Version::from(wire)).expect("JSON");
        assert_eq!(json["complete"], false);
        assert_eq!(json["incomplete"], "layer sha256:11 is missing");
        assert_eq!(json["created_at"], serde_json::Value::Null);
        assert_eq!(json["default_mode"], serde_json::Value::Null);
    }

    #[test]
    fn moves_pair_up() {
        let now = || vec![v1::Attachment { version: "2".into(), ..v1::Attachment::default() }];
        let moves = Moves::new("upgrade", now(), vec!["1".into()]).expect("as many of both");
        let json = serde_json::to_value(&moves).expect("JSON");
        assert_eq!(json["attachments"][0]["from_version"], "1");
        assert_eq!(json["attachments"][0]["version"], "2");
        assert!(Moves::new("upgrade", now(), Vec::new()).is_err());
    }
}
