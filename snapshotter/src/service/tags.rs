//! `capsule.v1.Tags`: names of versions that move.

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use super::{CapsulesService, convert, to_the_end};
use crate::capsules::Capsules;

/// The service.
#[derive(Clone)]
pub struct TagsService {
    capsules: Capsules,
    describing: CapsulesService,
}

impl TagsService {
    /// Over the capsules, and the service that describes them.
    pub fn new(capsules: Capsules, describing: CapsulesService) -> Self {
        Self { capsules, describing }
    }
}

#[tonic::async_trait]
impl wire::tags_server::Tags for TagsService {
    async fn tag(&self, request: Request<wire::TagRequest>) -> Result<Response<wire::TagResponse>, Status> {
        let request = request.into_inner();
        let name = convert::parse_name(&request.name)?;
        let version = convert::parse_version(&request.version).map_err(convert::from_model)?;
        let tags = convert::parse_tags(&request.tags)?;
        if tags.is_empty() {
            return Err(convert::malformed("a tag"));
        }
        let capsules = self.capsules.clone();
        let tagged = to_the_end(async move { capsules.tag(&name, version.as_ref(), &tags).await }).await?;
        let version = Some(self.describing.describe(&tagged).await?);
        Ok(Response::new(wire::TagResponse { version }))
    }

    async fn untag(
        &self,
        request: Request<wire::UntagRequest>,
    ) -> Result<Response<wire::UntagResponse>, Status> {
        let request = request.into_inner();
        let name = convert::parse_name(&request.name)?;
        let tag = request.tag.parse().map_err(convert::from_model)?;
        let capsules = self.capsules.clone();
        let version = match to_the_end(async move { capsules.untag(&name, &tag).await }).await? {
            Some(published) => Some(self.describing.describe(&published).await?),
            None => None,
        };
        Ok(Response::new(wire::UntagResponse { version }))
    }
}
