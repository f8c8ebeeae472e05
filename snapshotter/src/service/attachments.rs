//! `capsule.v1.Attachments`: capsules in live containers.

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use super::{convert, named, refused, to_the_end};
use crate::{
    attachments::{AttachmentError, Attachments, Move, Moved, Outcome, containers::Wanted},
    capsules::model::{CapsuleName, Version},
};

/// The service.
#[derive(Clone)]
pub struct AttachmentsService {
    engine: Attachments,
}

impl AttachmentsService {
    /// Over the controller.
    pub fn new(engine: Attachments) -> Self {
        Self { engine }
    }
}

impl AttachmentsService {
    async fn detach_devices(
        &self,
        request: wire::DetachRequest,
    ) -> Result<Response<wire::DetachResponse>, Status> {
        let wire::DetachRequest { container, capsule, target, lazy, drop, keep, devices } = request;
        if !(capsule.is_empty() && target.is_empty() && keep.is_empty()) || drop {
            return Err(Status::invalid_argument(
                "devices are detached by themselves: name no capsule with them",
            ));
        }
        let (container, devices) = (convert::parse_container(container)?, convert::parse_devices(&devices)?);
        let engine = self.engine.clone();
        let detached = to_the_end(async move {
            let detached = engine.detach_devices(&container, &devices, lazy).await;
            detached.map_err(|error| refused(&engine, error))
        });
        let detached = detached.await?;
        let attachments = named(&self.engine, detached.iter().map(|(a, users)| convert::detached(a, users)));
        Ok(Response::new(wire::DetachResponse { attachments }))
    }
}

/// What a call asked for, for a refusal that does not say it.
struct Asked {
    action: &'static str,
    /// Capsules, with their versions and targets, and devices.
    what: Vec<String>,
    container: String,
}

impl Asked {
    fn new(action: &'static str, container: &Wanted, what: impl Iterator<Item = String>) -> Self {
        Self { action, what: what.collect(), container: container.to_string() }
    }

    fn refused(&self, engine: &Attachments, error: AttachmentError) -> Status {
        let says = error.says_of_what();
        let status = refused(engine, error);
        // A set may fail for one that another requires.
        let is_said =
            |one: &String| one.split(['@', ' ']).next().is_some_and(|name| status.message().contains(name));
        if self.what.is_empty() || says && self.what.iter().any(is_said) {
            return status;
        }
        let Self { action, what, container } = self;
        let message = format!("cannot {action} {} in {container}: {}", what.join(", "), status.message());
        Status::new(status.code(), message)
    }
}

fn name(capsule: &CapsuleName, version: Option<&Version>, target: Option<&String>) -> String {
    let version = version.map(|version| format!("@{version}")).unwrap_or_default();
    let target = target.map(|target| format!(" at {target}")).unwrap_or_default();
    format!("{capsule}{version}{target}")
}

fn names_of(moves: &[Move]) -> impl Iterator<Item = String> {
    moves.iter().map(|one| name(&one.capsule, one.version.as_ref(), one.target.as_ref()))
}

fn moved(engine: &Attachments, moved: &[Moved]) -> (Vec<wire::Attachment>, Vec<String>) {
    let from = |from: &Option<Version>| from.as_ref().map(ToString::to_string).unwrap_or_default();
    let attachments = named(engine, moved.iter().map(|(a, _)| convert::attachment(a)));
    (attachments, moved.iter().map(|(_, version)| from(version)).collect())
}

#[tonic::async_trait]
impl wire::attachments_server::Attachments for AttachmentsService {
    async fn attach(
        &self,
        request: Request<wire::AttachRequest>,
    ) -> Result<Response<wire::AttachResponse>, Status> {
        let request = request.into_inner();
        let container = convert::parse_container(request.container)?;
        let specs = request.specs.into_iter().map(convert::parse_spec).collect::<Result<Vec<_>, _>>()?;
        let devices = convert::parse_devices(&request.devices)?;
        if request.for_pod {
            self.engine.check_for_pods(&devices)?;
        }
        let what = specs.iter().map(|one| name(&one.capsule, one.version.as_ref(), one.target.as_ref()));
        let asked = Asked::new("attach", &container, what.chain(devices.iter().map(ToString::to_string)));
        let engine = self.engine.clone();
        let attached = to_the_end(async move {
            let attached = engine.attach_with(&container, &specs, &devices).await;
            attached.map_err(|error| asked.refused(&engine, error))
        });
        let attached = attached.await?;
        let attachments = named(&self.engine, attached.iter().map(convert::attachment));
        Ok(Response::new(wire::AttachResponse { attachments }))
    }

    async fn upgrade(
        &self,
        request: Request<wire::UpgradeRequest>,
    ) -> Result<Response<wire::UpgradeResponse>, Status> {
        let request = request.into_inner();
        let container = convert::parse_container(request.container)?;
        let moves = request.specs.into_iter().map(convert::parse_move).collect::<Result<Vec<_>, _>>()?;
        let check = request.health.map(convert::parse_health).transpose()?;
        let asked = Asked::new("upgrade", &container, names_of(&moves));
        let (engine, dry_run) = (self.engine.clone(), request.dry_run);
        let outcome = to_the_end(async move {
            let outcome = engine.upgrade(&container, &moves, check.as_ref(), dry_run).await;
            outcome.map_err(|error| asked.refused(&engine, error))
        });
        Ok(Response::new(match outcome.await? {
            Outcome::Planned(planned) => {
                let planned = planned.iter().map(convert::planned).collect();
                wire::UpgradeResponse { planned, ..Default::default() }
            }
            Outcome::Done(done) => {
                let (attachments, from_versions) = moved(&self.engine, &done);
                wire::UpgradeResponse { attachments, from_versions, planned: Vec::new() }
            }
        }))
    }

    async fn rollback(
        &self,
        request: Request<wire::RollbackRequest>,
    ) -> Result<Response<wire::RollbackResponse>, Status> {
        let request = request.into_inner();
        let container = convert::parse_container(request.container)?;
        let moves = request.specs.into_iter().map(convert::parse_move).collect::<Result<Vec<_>, _>>()?;
        let engine = self.engine.clone();
        let asked = Asked::new("roll back", &container, names_of(&moves));
        let done = to_the_end(async move {
            engine.rollback(&container, &moves).await.map_err(|error| asked.refused(&engine, error))
        });
        let done = done.await?;
        let (attachments, from_versions) = moved(&self.engine, &done);
        Ok(Response::new(wire::RollbackResponse { attachments, from_versions }))
    }

    async fn detach(
        &self,
        request: Request<wire::DetachRequest>,
    ) -> Result<Response<wire::DetachResponse>, Status> {
        let request = request.into_inner();
        if !request.devices.is_empty() {
            return self.detach_devices(request).await;
        }
        let choice = convert::parse_choice(request.container, &request.capsule, request.target)?;
        let fate = convert::parse_fate(request.drop, request.keep)?;
        let what = name(&choice.capsule, None, choice.target.as_ref());
        let asked = Asked::new("detach", &choice.container, std::iter::once(what));
        let (engine, lazy) = (self.engine.clone(), request.lazy);
        let detached = to_the_end(async move {
            let detached = engine.detach(&choice, lazy, fate.as_ref()).await;
            detached.map_err(|error| asked.refused(&engine, error))
        });
        let detached = detached.await?;
        let attachments = named(&self.engine, detached.iter().map(|(a, users)| convert::detached(a, users)));
        Ok(Response::new(wire::DetachResponse { attachments }))
    }

    async fn resolve(
        &self,
        request: Request<wire::ResolveRequest>,
    ) -> Result<Response<wire::ResolveResponse>, Status> {
        let request = request.into_inner();
        let container = request.container.filter(|c| !c.id.is_empty());
        let container = container.map(|c| convert::parse_container(Some(c))).transpose()?;
        let specs = request.specs.into_iter().map(convert::parse_spec).collect::<Result<Vec<_>, _>>()?;
        let planned = self.engine.plan(container.as_ref(), &specs).await;
        let planned = planned.map_err(|error| refused(&self.engine, error))?;
        let planned = planned.iter().map(convert::planned).collect();
        Ok(Response::new(wire::ResolveResponse { planned }))
    }

    async fn list_attachments(
        &self,
        request: Request<wire::ListAttachmentsRequest>,
    ) -> Result<Response<wire::ListAttachmentsResponse>, Status> {
        let container = request.into_inner().container.filter(|c| !c.id.is_empty());
        let container = container.map(|c| convert::parse_container(Some(c))).transpose()?;
        let listed = self.engine.list(container.as_ref()).await;
        let listed = listed.map_err(|error| refused(&self.engine, error))?;
        let attachments = named(&self.engine, listed.iter().map(convert::listed));
        Ok(Response::new(wire::ListAttachmentsResponse { attachments }))
    }
}
