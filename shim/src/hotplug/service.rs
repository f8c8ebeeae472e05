//! The ttrpc side: wire types in, wire types out, and nothing else.

mod devices;
mod limits;

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use capsule_proto::hotplug as wire;
use overlayfs_utils::{ContainerPath, User};
use ttrpc::{Code, r#async::TtrpcContext};

use super::{
    TaskLookupError,
    engine::{Attached, Drained, Engine, Given, Limited, Wanted},
    error::{DevicesError, EngineError},
    model::{AttachmentId, Content, InvalidRequest, Mode, Spec, UpperPlace},
    notices::{Kind, Notice},
    steps,
};
use crate::limits::{Change, LimitError};

/// Where a call says of which trace it is (W3C Trace Context).
const TRACE_PARENT: &str = "traceparent";
/// The service's name in traces.
const HOTPLUG: &str = "capsule.hotplug.v1.Hotplug";

/// Answers `capsule.hotplug.v1`.
pub struct Service {
    engine: Arc<Engine>,
}

impl Service {
    /// A service over `engine`.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// As [`Service::run`], with how long it took where the caller traces it.
    async fn measured<T: Send + 'static>(
        &self,
        method: &str,
        context: &TtrpcContext,
        call: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> ttrpc::Result<(T, Vec<wire::Span>)> {
        let mut parent = context.metadata.get(TRACE_PARENT).into_iter().flatten();
        if !parent.next().is_some_and(|parent| steps::is_sampled(parent)) {
            return Ok((self.run(call).await?, Vec::new()));
        }
        let name = format!("{HOTPLUG}/{method}");
        let measured = move |engine: &Engine| {
            let (done, spans) = steps::measured(&name, || call(engine));
            done.map(|done| (done, spans))
        };
        self.run(measured).await
    }

    /// Runs `call` where it may block: the runtime's thread goes on serving other containers.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let engine = Arc::clone(&self.engine);
        match tokio::task::spawn_blocking(move || call(&engine)).await {
            Ok(done) => done.map_err(|error| status(&error)),
            Err(_) => Err(rpc_error(Code::INTERNAL, "the call panicked: see the shim's log".to_owned())),
        }
    }
}

#[async_trait]
impl wire::Hotplug for Service {
    async fn attach(
        &self,
        context: &TtrpcContext,
        req: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        let container = req.container_id.clone();
        let (id, wanted) = parse_wanted(req).map_err(|e| status(&e.into()))?;
        let attach = move |engine: &Engine| attach(engine, &container, id, wanted);
        let (attached, spans) = self.measured("Attach", context, attach).await?;
        let attachment = Some(attached).into();
        Ok(wire::AttachResponse { attachment, spans, ..Default::default() })
    }

    async fn replace(
        &self,
        context: &TtrpcContext,
        req: wire::ReplaceRequest,
    ) -> ttrpc::Result<wire::ReplaceResponse> {
        let parse = || {
            let change = parse_change(req.resources.0)?;
            Ok((AttachmentId::parse(req.attachment_id)?, parse_content(req.content.0)?, change))
        };
        let (id, content, change) = parse().map_err(|e: InvalidRequest| status(&e.into()))?;
        let (container, has_resources) = (req.container_id, !change.is_empty());
        let undoing = req.undoing;
        let replace = move |engine: &Engine| engine.replace_all(&container, &id, content, change, undoing);
        let ((now, replaced), spans) = self.measured("Replace", context, replace).await?;
        let now = wire::Attachment { has_resources, ..wire_attachment(now) };
        let (attachment, replaced) = (Some(now).into(), Some(wire_content(replaced)).into());
        Ok(wire::ReplaceResponse { attachment, replaced, spans, ..Default::default() })
    }

    async fn detach(
        &self,
        context: &TtrpcContext,
        req: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        let (container, lazy) = (req.container_id, req.lazy);
        let id = AttachmentId::parse(req.attachment_id).map_err(|e| status(&e.into()))?;
        let detach = move |engine: &Engine| engine.detach(&container, &id, lazy);
        let (done, spans) = self.measured("Detach", context, detach).await?;
        let users = done.users.into_iter().map(wire_user).collect();
        Ok(wire::DetachResponse { users, detached: done.detached, spans, ..Default::default() })
    }

    async fn list(&self, _: &TtrpcContext, req: wire::ListRequest) -> ttrpc::Result<wire::ListResponse> {
        let (container, with_users, after) = (req.container_id, req.with_users, req.notices_after);
        let one = (!container.is_empty()).then_some(container);
        let listed = self.run(move |engine| {
            let limits = engine.list_limits(one.as_deref())?;
            let (attached, draining) = engine.list(one.as_deref())?;
            let devices = engine.list_devices(one.as_deref())?;
            let limits_left = engine.has_limits_left(one.as_deref())?;
            // What the look itself has found is among them.
            let notices = engine.notices().take_after(one.as_deref(), after);
            Ok((attached, devices, limits, draining, notices, limits_left))
        });
        let (attached, devices, limits, draining, notices, limits_left) = listed.await?;
        let devices = devices.iter().map(|(container, given)| wire_devices(container, given));
        let alone = limits.iter().filter(|limited| limited.alone).map(wire_alone);
        let all = attached.into_iter().map(wire_attachment).chain(devices).chain(alone);
        let attachments = all.map(|attachment| with_limits(attachment, &limits)).collect();
        let draining = draining.into_iter().map(|d| wire_draining(d, with_users)).collect();
        let notices = notices.into_iter().map(wire_notice).collect();
        Ok(wire::ListResponse { attachments, draining, notices, limits_left, ..Default::default() })
    }
}

fn attach(
    engine: &Engine,
    container: &str,
    id: AttachmentId,
    wanted: Wanted,
) -> Result<wire::Attachment, EngineError> {
    let (has_devices, has_resources) = (wanted.devices.is_some(), !wanted.change.is_empty());
    let attached = engine.attach_all(container, &id, wanted)?;
    let alone = || wire_devices(container, &Given { id, there: true });
    Ok(wire::Attachment { has_devices, has_resources, ..attached.map_or_else(alone, wire_attachment) })
}

fn parse_wanted(mut req: wire::AttachRequest) -> Result<(AttachmentId, Wanted), InvalidRequest> {
    let id = AttachmentId::parse(req.attachment_id.clone())?;
    let devices = req.devices.take().map(devices::parse_edits).transpose()?;
    let undoing = req.undoing;
    let change = parse_change(req.resources.take().map(Box::new))?;
    let alone = (devices.is_some() || !change.is_empty()) && req.content.is_none();
    let spec = if alone { None } else { Some(parse_spec(req)?) };
    Ok((id, Wanted { spec, devices, change, undoing }))
}

fn parse_change(resources: Option<Box<wire::Resources>>) -> Result<Change, InvalidRequest> {
    resources.map(|resources| limits::parse_change(*resources)).transpose().map(Option::unwrap_or_default)
}

fn parse_spec(req: wire::AttachRequest) -> Result<Spec, InvalidRequest> {
    let mode = match req.mode.enum_value() {
        Ok(wire::Mode::RO) => Mode::Ro,
        Ok(wire::Mode::UNION) => Mode::Union,
        Err(unknown) => return Err(InvalidRequest::Mode(unknown)),
    };
    let id = AttachmentId::parse(req.attachment_id)?;
    let upper = req.upper.0.map(|upper| parse_upper(*upper)).transpose()?;
    let spec = Spec::new(id, parse_content(req.content.0)?, ContainerPath::parse(&req.target)?, mode)?;
    Ok(Spec { upper, ..spec })
}

fn parse_upper(upper: wire::Upper) -> Result<UpperPlace, InvalidRequest> {
    match upper.place {
        Some(wire::upper::Place::Directory(path)) => UpperPlace::parse(path, UpperPlace::Directory),
        Some(wire::upper::Place::Image(path)) => UpperPlace::parse(path, UpperPlace::Image),
        // One of a later kind.
        Some(_) | None => Err(InvalidRequest::Upper(String::new())),
    }
}

fn parse_content(content: Option<Box<wire::Content>>) -> Result<Content, InvalidRequest> {
    let content = *content.ok_or(InvalidRequest::Empty("content"))?;
    Content::new(content.capsule, content.version, content.digest, content.layers)?
        .with_env(content.env)?
        .with_denied(content.denied_calls)
}

fn wire_content(content: Content) -> wire::Content {
    wire::Content {
        capsule: content.capsule,
        version: content.version,
        digest: content.digest,
        // Layers come from a wire string, so they are text.
        layers: content.layers.into_iter().map(|l| l.to_string_lossy().into_owned()).collect(),
        env: content.env,
        denied_calls: content.denied.names().map(str::to_owned).collect(),
        ..Default::default()
    }
}

fn wire_attachment(attached: Attached) -> wire::Attachment {
    let Attached { container, record, mounted } = attached;
    let mode = match record.spec.mode {
        Mode::Ro => wire::Mode::RO,
        Mode::Union => wire::Mode::UNION,
    };
    wire::Attachment {
        container_id: container,
        attachment_id: record.spec.id.to_string(),
        content: Some(wire_content(record.spec.content)).into(),
        target: record.spec.target.into(),
        mode: mode.into(),
        mount_points: record.mounts.into_iter().map(|m| m.path.into()).collect(),
        mounted,
        writable: record.spec.upper.is_some(),
        ..Default::default()
    }
}

/// An attachment of devices alone.
fn wire_devices(container: &str, given: &Given) -> wire::Attachment {
    wire::Attachment {
        container_id: container.to_owned(),
        attachment_id: given.id.to_string(),
        mounted: given.there,
        has_devices: true,
        ..Default::default()
    }
}

/// An attachment of limits alone.
fn wire_alone(limited: &Limited) -> wire::Attachment {
    wire::Attachment {
        container_id: limited.container.clone(),
        attachment_id: limited.id.to_string(),
        mounted: true,
        ..Default::default()
    }
}

fn with_limits(mut attachment: wire::Attachment, limits: &[Limited]) -> wire::Attachment {
    let is_its = |limited: &&Limited| {
        (limited.container.as_str(), limited.id.to_string())
            == (attachment.container_id.as_str(), attachment.attachment_id.clone())
    };
    attachment.has_resources = limits.iter().find(is_its).is_some_and(|limited| limited.in_force);
    attachment
}

fn wire_draining(drained: Drained, with_users: bool) -> wire::Draining {
    let Drained { container, draining, users } = drained;
    let users = if with_users { users } else { Vec::new() };
    wire::Draining {
        container_id: container,
        attachment_id: draining.id.to_string(),
        content: Some(wire_content(draining.content)).into(),
        target: draining.target.into(),
        users: users.into_iter().map(wire_user).collect(),
        since: draining.since,
        ..Default::default()
    }
}

fn wire_notice(notice: Notice) -> wire::Notice {
    let kind = match notice.kind {
        Kind::Repaired => wire::NoticeKind::REPAIRED,
        Kind::ForeignProgram => wire::NoticeKind::FOREIGN_PROGRAM,
        Kind::Denied => wire::NoticeKind::DENIED,
    };
    wire::Notice {
        number: notice.number,
        container_id: notice.container,
        attachment_id: notice.attachment,
        at: notice.at,
        kind: kind.into(),
        text: notice.text,
        ..Default::default()
    }
}

fn wire_user(user: User) -> wire::User {
    wire::User {
        pid: user.pid,
        command: user.command,
        path: user.path.to_string_lossy().into_owned(),
        how: user.how.to_string(),
        ..Default::default()
    }
}

fn status(error: &EngineError) -> ttrpc::Error {
    rpc_error(code(error), one_line(error))
}

fn rpc_error(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// The code for each error. No wildcard: a new error does not compile until it has one.
fn code(error: &EngineError) -> Code {
    match error {
        EngineError::Invalid(_) => Code::INVALID_ARGUMENT,
        EngineError::Task(TaskLookupError::NotFound(_)) | EngineError::NoAttachment(_) => Code::NOT_FOUND,
        EngineError::Conflict(_) => Code::ALREADY_EXISTS,
        EngineError::Task(TaskLookupError::NotRunning { .. })
        | EngineError::Disabled(_)
        | EngineError::Kernel(_)
        | EngineError::Pin(_)
        | EngineError::Layer(_)
        | EngineError::Layers(_)
        | EngineError::Refused(_)
        | EngineError::Target(_)
        | EngineError::Occupied { .. }
        | EngineError::Nested { .. }
        | EngineError::Covered { .. }
        | EngineError::Writable(_)
        | EngineError::StillWritten(_)
        | EngineError::Denials { .. }
        | EngineError::NotCreatedWith(_)
        | EngineError::Owners
        | EngineError::Busy(_) => Code::FAILED_PRECONDITION,
        EngineError::Devices(error) => match error {
            DevicesError::NotUnified
            | DevicesError::UserNamespace
            | DevicesError::Program(_)
            | DevicesError::NoFile(_)
            | DevicesError::Hook { .. } => Code::FAILED_PRECONDITION,
            DevicesError::Config(_) | DevicesError::Rules(_) | DevicesError::Stage(_) => Code::INTERNAL,
        },
        EngineError::Limits(error) => match error {
            LimitError::NotUnified
            | LimitError::Above { .. }
            | LimitError::Gone
            | LimitError::Missing { .. }
            | LimitError::NoCpus { .. }
            | LimitError::InUse { .. }
            | LimitError::Ignored { .. }
            | LimitError::Request { .. } => Code::FAILED_PRECONDITION,
            LimitError::Strange { .. } | LimitError::File { .. } => Code::INTERNAL,
        },
        EngineError::Raced(_) => Code::ABORTED,
        EngineError::Rootfs { .. }
        | EngineError::ReadLayer { .. }
        | EngineError::Mount(_)
        | EngineError::Namespace(_)
        | EngineError::Journal(_)
        | EngineError::Users(_)
        | EngineError::Upper(_)
        | EngineError::UserNamespace(_)
        | EngineError::Runtime(_)
        | EngineError::Empty { .. } => Code::INTERNAL,
    }
}

/// An error with its causes.
fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_with_their_causes() {
        let parsed = ContainerPath::parse("usr").map_err(InvalidRequest::from).unwrap_err();
        let error = EngineError::from(parsed);
        assert_eq!(
            one_line(&error),
            "the target cannot be used: the path \"usr\" is relative: give an absolute one"
        );
        assert_eq!(code(&error), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn a_request_is_validated_where_it_comes_in() {
        let good = || wire::AttachRequest {
            container_id: "c".into(),
            attachment_id: "a".into(),
            content: Some(wire::Content {
                capsule: "tz".into(),
                version: "1".into(),
                layers: vec!["/l".into()],
                ..Default::default()
            })
            .into(),
            target: "/usr//share/".into(),
            ..Default::default()
        };
        assert_eq!(parse_spec(good()).unwrap().target.as_str(), "/usr/share");
        assert_eq!(parse_spec(good()).unwrap().upper, None);
        let mut written = good();
        written.upper.mut_or_insert_default().set_image("/var/lib/x".into());
        assert_eq!(parse_spec(written).unwrap().upper, Some(UpperPlace::Image("/var/lib/x".into())));
        let bad: [fn(&mut wire::AttachRequest); 8] = [
            |r| r.upper = Some(wire::Upper::new()).into(),
            |r| r.upper.mut_or_insert_default().set_directory("a".into()),
            |r| r.attachment_id.clear(),
            |r| r.content = None.into(),
            |r| r.target = "/a/../b".into(),
            |r| r.target = "/".into(),
            |r| r.mode = protobuf::EnumOrUnknown::from_i32(7),
            |r| r.content.mut_or_insert_default().layers[0] = "../l".into(),
        ];
        for spoil in bad {
            let mut request = good();
            spoil(&mut request);
            assert!(parse_spec(request).is_err());
        }
    }
}
