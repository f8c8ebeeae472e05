//! From `capsule.v1`'s messages to validated types and back.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use capsule_proto::capsule::v1 as wire;
use tonic::Status;

use crate::{
    attachments::{
        AttachSpec, Choice, HealthCheck, Listed, Move, Planned,
        containers::{Name, Wanted},
        model::{Attachment, Phase},
        pods::{InvalidMember, MemberRef},
    },
    capsules::{
        Naming, Published,
        model::{CapsuleName, Mode, ModelError, Version},
    },
    devices::{DeviceName, InvalidName},
    resources,
    shims::{Draining, User},
    uppers::{
        self,
        model::{Fate, Upper},
    },
};

/// The error that a malformed request is answered with.
pub fn malformed(what: &str) -> Status {
    Status::invalid_argument(format!("the request lacks {what}"))
}

/// `None` for an unset mode.
pub fn parse_mode(mode: i32) -> Result<Option<Mode>, Status> {
    match wire::Mode::try_from(mode) {
        Ok(wire::Mode::Unspecified) => Ok(None),
        Ok(wire::Mode::Ro) => Ok(Some(Mode::Ro)),
        Ok(wire::Mode::Union) => Ok(Some(Mode::Union)),
        Err(_) => Err(Status::invalid_argument(format!("mode {mode} is not known: use ro or union"))),
    }
}

/// `None` for an empty version.
pub fn parse_version(text: &str) -> Result<Option<Version>, ModelError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// `None` for an empty text.
pub fn non_empty(text: String) -> Option<String> {
    if text.is_empty() { None } else { Some(text) }
}

/// The container that a request is about.
pub fn parse_container(container: Option<wire::ContainerRef>) -> Result<Wanted, Status> {
    let container = container.filter(|c| !c.id.is_empty()).ok_or_else(|| malformed("a container id"))?;
    let name = match MemberRef::is_meant(&container.id) {
        true => {
            let member = container
                .id
                .parse()
                .map_err(|error: InvalidMember| Status::invalid_argument(error.to_string()))?;
            Name::Member(member)
        }
        false => Name::Id(container.id),
    };
    Ok(Wanted { name, namespace: container.namespace })
}

/// One capsule of an attach request.
pub fn parse_spec(spec: wire::AttachmentSpec) -> Result<AttachSpec, Status> {
    Ok(AttachSpec {
        capsule: parse_name(&spec.capsule)?,
        version: parse_version(&spec.version).map_err(from_model)?,
        target: non_empty(spec.target),
        mode: parse_mode(spec.mode)?,
        digest: non_empty(spec.digest).map(|digest| digest.parse()).transpose().map_err(from_model)?,
        unless_present: spec.unless_present,
        writable: spec.writable.map(parse_writable).transpose()?,
        resources: parse_resources(spec.resources)?,
        named: None,
    })
}

fn parse_resources(resources: Option<wire::Resources>) -> Result<resources::Wanted, Status> {
    let wire::Resources { grants, caps } = resources.unwrap_or_default();
    let wanted = resources::Wanted::parse(&grants, &caps);
    wanted.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn parse_writable(writable: wire::Writable) -> Result<uppers::Wanted, Status> {
    let name = non_empty(writable.persist).map(|name| name.parse()).transpose()?;
    Ok(uppers::Wanted { name, size: Some(writable.size).filter(|size| *size > 0) })
}

/// What is to become of what was written; `None` where nothing is said.
pub fn parse_fate(drop: bool, keep: String) -> Result<Option<Fate>, Status> {
    match (drop, non_empty(keep)) {
        (false, None) => Ok(None),
        (true, None) => Ok(Some(Fate::Drop)),
        (false, Some(name)) => Ok(Some(Fate::Keep(name.parse()?))),
        (true, Some(_)) => Err(Status::invalid_argument("what was written cannot be both kept and dropped")),
    }
}

/// One capsule of an upgrade or rollback.
pub fn parse_move(spec: wire::MoveSpec) -> Result<Move, Status> {
    Ok(Move {
        capsule: parse_name(&spec.capsule)?,
        version: parse_version(&spec.version).map_err(from_model)?,
        target: non_empty(spec.target),
    })
}

/// The command that is to prove an upgrade.
pub fn parse_health(check: wire::HealthCheck) -> Result<HealthCheck, Status> {
    if check.args.first().is_none_or(String::is_empty) {
        return Err(malformed("the command of its health check"));
    }
    let timeout = check.timeout.map(Duration::try_from).transpose();
    let timeout = timeout.ok().filter(|timeout| timeout.is_none_or(|t| !t.is_zero()));
    let timeout = timeout.ok_or_else(|| malformed("a timeout that is longer than nothing"))?;
    Ok(HealthCheck { args: check.args, timeout: timeout.unwrap_or(HEALTH_TIMEOUT) })
}

/// Of a health check that names none.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);

/// The attachments that a request is about.
pub fn parse_choice(
    container: Option<wire::ContainerRef>,
    capsule: &str,
    target: String,
) -> Result<Choice, Status> {
    Ok(Choice {
        container: parse_container(container)?,
        capsule: parse_name(capsule)?,
        target: non_empty(target),
    })
}

/// Names that move.
pub fn parse_tags(tags: &[String]) -> Result<Vec<Version>, Status> {
    let mut parsed: Vec<Version> =
        tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>().map_err(from_model)?;
    parsed.sort();
    parsed.dedup();
    Ok(parsed)
}

/// What an image is to be; nothing when it says so itself.
pub fn parse_naming(naming: Option<wire::As>) -> Result<Naming, Status> {
    let wire::As { name, version } = naming.unwrap_or_default();
    Ok(Naming {
        name: non_empty(name).map(|name| parse_name(&name)).transpose()?,
        version: parse_version(&version).map_err(from_model)?,
    })
}

/// CDI names of devices, each once.
pub fn parse_devices(names: &[String]) -> Result<Vec<DeviceName>, Status> {
    let mut parsed: Vec<DeviceName> = Vec::with_capacity(names.len());
    for name in names {
        let name = name.parse().map_err(|error: InvalidName| Status::invalid_argument(error.to_string()))?;
        if !parsed.contains(&name) {
            parsed.push(name);
        }
    }
    Ok(parsed)
}

/// A capsule's name.
pub fn parse_name(text: &str) -> Result<CapsuleName, Status> {
    text.parse().map_err(from_model)
}

/// A malformed name is the caller's mistake.
pub fn from_model(error: ModelError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A mode, for the wire.
pub fn mode(mode: Mode) -> wire::Mode {
    match mode {
        Mode::Ro => wire::Mode::Ro,
        Mode::Union => wire::Mode::Union,
    }
}

/// An attachment, for the wire.
pub fn attachment(a: &Attachment) -> wire::Attachment {
    wire::Attachment {
        id: a.id.clone(),
        container: a.container.id.clone(),
        namespace: a.container.namespace.clone(),
        capsule: a.capsule.to_string(),
        version: a.current.version.to_string(),
        digest: a.current.digest.to_string(),
        target: a.target.clone(),
        mode: if a.has_capsule() { mode(a.mode).into() } else { wire::Mode::Unspecified.into() },
        state: match a.phase {
            Phase::Waiting => wire::AttachmentState::Waiting,
            Phase::Attaching | Phase::Attached | Phase::Replacing { .. } | Phase::Detaching { .. } => {
                wire::AttachmentState::Attached
            }
        }
        .into(),
        since: Some(a.current.since.into()),
        previous_version: a.history.last().map(|c| c.version.to_string()).unwrap_or_default(),
        users: Vec::new(),
        required_by: Vec::new(),
        writable: a.upper.as_ref().map(writable),
        devices: a.device_names().to_vec(),
        resources: Some(resources(&a.current.resources)).filter(|_| !a.current.resources.is_empty()),
        pod: String::new(),
        pod_container: String::new(),
        pod_uid: String::new(),
        container_name: String::new(),
    }
}

fn resources(resources: &resources::Resources) -> wire::Resources {
    let all = |amounts: &BTreeMap<String, String>| amounts.clone().into_iter().collect();
    wire::Resources { grants: all(&resources.grants), caps: all(&resources.caps) }
}

fn writable(upper: &Upper) -> wire::Writable {
    let persist = upper.name.as_ref().map(ToString::to_string).unwrap_or_default();
    wire::Writable { persist, size: upper.limit.unwrap_or_default() }
}

/// One attachment of a set that is planned, for the wire.
pub fn planned(p: &Planned) -> wire::Planned {
    wire::Planned {
        capsule: p.version.name.to_string(),
        version: p.version.version.to_string(),
        digest: p.version.digest.to_string(),
        target: p.target.as_str().to_owned(),
        mode: mode(p.mode).into(),
        present: p.present,
        required_by: p.required_by.iter().map(ToString::to_string).collect(),
        from_version: p.from.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// A detached attachment, for the wire: draining while somebody uses it.
pub fn detached(a: &Attachment, users: &[User]) -> wire::Attachment {
    let attachment = attachment(a);
    if users.is_empty() {
        return attachment;
    }
    let state = wire::AttachmentState::Draining.into();
    wire::Attachment { state, users: users.iter().map(user).collect(), ..attachment }
}

/// A listed attachment, for the wire.
pub fn listed(listed: &Listed) -> wire::Attachment {
    match listed {
        Listed::Attached(a, required_by) => wire::Attachment {
            required_by: required_by.iter().map(ToString::to_string).collect(),
            ..attachment(a)
        },
        Listed::Draining(container, d) => wire::Attachment {
            container: container.id.clone(),
            namespace: container.namespace.clone(),
            ..draining(d)
        },
    }
}

fn draining(d: &Draining) -> wire::Attachment {
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(d.since);
    wire::Attachment {
        id: d.id.clone(),
        capsule: d.capsule.clone(),
        version: d.version.clone(),
        digest: d.digest.clone(),
        target: d.target.clone(),
        state: wire::AttachmentState::Draining.into(),
        since: Some(since.into()),
        users: d.users.iter().map(user).collect(),
        ..Default::default()
    }
}

fn user(u: &User) -> wire::User {
    wire::User { pid: u.pid, command: u.command.clone(), path: u.path.clone(), how: u.how.clone() }
}

/// A version, for the wire; `missing` says what keeps it from being attached.
pub fn version(p: &Published, namespace: &str, missing: Option<String>, attachments: u32) -> wire::Version {
    let image = p.image.as_ref().ok();
    let default_mode = image.and_then(|i| i.default_mode()).map_or(wire::Mode::Unspecified, mode);
    let declared = image.and_then(|i| i.declared().ok()).unwrap_or_default();
    wire::Version {
        capsule: p.name.to_string(),
        version: p.version.to_string(),
        digest: p.digest.to_string(),
        size: image.map_or(0, |i| i.size()),
        created_at: p.created_at.map(Into::into),
        default_target: image.and_then(|i| i.default_target()).unwrap_or_default().to_owned(),
        default_mode: default_mode.into(),
        image: p.image_name.clone(),
        namespace: namespace.to_owned(),
        complete: missing.is_none(),
        incomplete: missing.unwrap_or_default(),
        attachments,
        requires: declared.requires.iter().map(ToString::to_string).collect(),
        environment: declared.environment.into_iter().collect(),
        resources: declared.resources.into_iter().collect(),
        caps: declared.caps.into_iter().collect(),
        devices: declared.devices,
        seccomp: (!declared.seccomp.is_empty()).then(|| wire::Seccomp {
            level: declared.seccomp.level.map(|level| level.to_string()).unwrap_or_default(),
            deny: declared.seccomp.deny.into_iter().collect(),
        }),
        tags: Vec::new(),
    }
}

/// An image's layers, for the wire, bottom first.
pub fn layers(p: &Published) -> Vec<wire::Layer> {
    let Ok(image) = &p.image else { return Vec::new() };
    let chain = image.chain_ids();
    image
        .layers
        .iter()
        .zip(&image.diff_ids)
        .zip(chain)
        .map(|((layer, diff_id), snapshot)| wire::Layer {
            digest: layer.digest.to_string(),
            diff_id: diff_id.to_string(),
            media_type: layer.media_type.clone(),
            size: layer.size,
            snapshot: snapshot.to_string(),
        })
        .collect()
}
