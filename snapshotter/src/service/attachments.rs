//! `capsule.v1.Attachments`: capsules in live containers.

use std::future::Future;

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    attachments::{AttachmentError, Attachments, model::Attachment},
    capsules::model::Version,
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

/// Runs a call to its end even if the caller goes away in the middle.
async fn to_the_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, AttachmentError>> + Send + 'static,
) -> Result<T, Status> {
    Ok(tokio::spawn(call).await.map_err(|e| Status::internal(e.to_string()))??)
}

fn moved(moved: Vec<(Attachment, Version)>) -> (Vec<wire::Attachment>, Vec<String>) {
    moved.iter().map(|(a, from)| (convert::attachment(a), from.to_string())).unzip()
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
        let engine = self.engine.clone();
        let attached = to_the_end(async move { engine.attach(&container, &specs).await }).await?;
        let attachments = attached.iter().map(convert::attachment).collect();
        Ok(Response::new(wire::AttachResponse { attachments }))
    }

    async fn upgrade(
        &self,
        request: Request<wire::UpgradeRequest>,
    ) -> Result<Response<wire::UpgradeResponse>, Status> {
        let request = request.into_inner();
        let choice = convert::parse_choice(request.container, &request.capsule, request.target)?;
        let version = convert::parse_version(&request.version).map_err(convert::from_model)?;
        let engine = self.engine.clone();
        let done = to_the_end(async move { engine.upgrade(&choice, version.as_ref()).await }).await?;
        let (attachments, from_versions) = moved(done);
        Ok(Response::new(wire::UpgradeResponse { attachments, from_versions }))
    }

    async fn rollback(
        &self,
        request: Request<wire::RollbackRequest>,
    ) -> Result<Response<wire::RollbackResponse>, Status> {
        let request = request.into_inner();
        let choice = convert::parse_choice(request.container, &request.capsule, request.target)?;
        let engine = self.engine.clone();
        let done = to_the_end(async move { engine.rollback(&choice).await }).await?;
        let (attachments, from_versions) = moved(done);
        Ok(Response::new(wire::RollbackResponse { attachments, from_versions }))
    }

    async fn detach(
        &self,
        request: Request<wire::DetachRequest>,
    ) -> Result<Response<wire::DetachResponse>, Status> {
        let request = request.into_inner();
        let choice = convert::parse_choice(request.container, &request.capsule, request.target)?;
        let engine = self.engine.clone();
        let detached = to_the_end(async move { engine.detach(&choice, request.lazy).await }).await?;
        let attachments = detached.iter().map(|(a, users)| convert::detached(a, users)).collect();
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
        let planned = self.engine.plan(container.as_ref(), &specs).await?;
        let planned = planned.iter().map(convert::planned).collect();
        Ok(Response::new(wire::ResolveResponse { planned }))
    }

    async fn list_attachments(
        &self,
        request: Request<wire::ListAttachmentsRequest>,
    ) -> Result<Response<wire::ListAttachmentsResponse>, Status> {
        let container = request.into_inner().container.filter(|c| !c.id.is_empty());
        let container = container.map(|c| convert::parse_container(Some(c))).transpose()?;
        let listed = self.engine.list(container.as_ref()).await?;
        let attachments = listed.iter().map(convert::listed).collect();
        Ok(Response::new(wire::ListAttachmentsResponse { attachments }))
    }
}
