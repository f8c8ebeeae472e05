//! `capsule.v1.Uppers`: what is written to attachments.

use capsule_proto::capsule::v1 as wire;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use super::{CapsulesService, convert};
use crate::{
    attachments::{Attachments, model::Attachment},
    capsules::Capsules,
    uppers::{Listed, Readable, model::UpperName},
};

/// The service.
#[derive(Clone)]
pub struct UppersService {
    capsules: Capsules,
    attachments: Attachments,
    describing: CapsulesService,
}

/// What is to be published.
enum Source {
    Attachment(Box<Attachment>),
    Named(UpperName),
}

impl UppersService {
    /// Over the two engines, and the service that describes versions.
    pub fn new(capsules: Capsules, attachments: Attachments, describing: CapsulesService) -> Self {
        Self { capsules, attachments, describing }
    }

    /// What is meant.
    async fn find(&self, of: Option<wire::commit_request::Of>) -> Result<Source, Status> {
        match of {
            None => Err(convert::malformed("what is to be published")),
            Some(wire::commit_request::Of::Attachment(of)) => {
                let choice = convert::parse_choice(of.container, &of.capsule, of.target)?;
                let attachment = self.attachments.find_written(&choice).await;
                let attachment = attachment.map_err(|error| super::refused(&self.attachments, error))?;
                Ok(Source::Attachment(Box::new(attachment)))
            }
            Some(wire::commit_request::Of::Upper(name)) => {
                let name: UpperName = name.parse().map_err(Status::from)?;
                Ok(Source::Named(name))
            }
        }
    }
}

#[tonic::async_trait]
impl wire::uppers_server::Uppers for UppersService {
    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let wire::CommitRequest { version, tags, of } = request.into_inner();
        let source = self.find(of).await?;
        let readable = match &source {
            Source::Attachment(attachment) => Readable::Attachment(attachment),
            Source::Named(name) => Readable::Named(name),
        };
        let with = (&self.capsules, self.attachments.uppers(), &self.describing);
        let (version, existed, from_version) =
            super::publish_written(with, &readable, &version, &tags).await?;
        let version = Some(version);
        Ok(Response::new(wire::CommitResponse { version, existed, from_version }))
    }

    async fn list_uppers(
        &self,
        _: Request<wire::ListUppersRequest>,
    ) -> Result<Response<wire::ListUppersResponse>, Status> {
        let uppers = self.attachments.uppers().list()?.into_iter().map(upper).collect();
        Ok(Response::new(wire::ListUppersResponse { uppers }))
    }

    async fn remove_upper(
        &self,
        request: Request<wire::RemoveUpperRequest>,
    ) -> Result<Response<wire::RemoveUpperResponse>, Status> {
        let name: UpperName = request.into_inner().name.parse().map_err(Status::from)?;
        self.attachments.look_whether_it_drains(&name).await;
        let uppers = self.attachments.uppers().clone();
        let removed = spawn_blocking(move || uppers.remove(&name)).await;
        let upper = Some(upper(removed.map_err(|error| Status::internal(error.to_string()))??));
        Ok(Response::new(wire::RemoveUpperResponse { upper }))
    }
}

fn upper(listed: Listed) -> wire::Upper {
    let Listed { name, about, used_by } = listed;
    let (name, used_by) = (name.to_string(), used_by.unwrap_or_default());
    let Some(about) = about else { return wire::Upper { name, used_by, ..Default::default() } };
    let over =
        about.over.map(|over| (over.capsule.to_string(), over.version.to_string(), over.digest.to_string()));
    let (capsule, version, digest) = over.unwrap_or_default();
    wire::Upper {
        name,
        capsule,
        version,
        digest,
        size: about.limit.unwrap_or_default(),
        created_at: Some(about.since.into()),
        used_by,
    }
}
