//! `capsule.v1.Capsules`: publishing and looking at versions.

use capsule_proto::capsule::v1 as wire;
use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{convert, to_the_end};
use crate::{
    attachments::Attachments,
    capsules::{
        BaseRef, Capsules, Declaration, Declared, ImageRef, Origin, Published, requirement::Requirement,
    },
};

/// The service.
#[derive(Clone)]
pub struct CapsulesService {
    capsules: Capsules,
    attachments: Attachments,
}

impl CapsulesService {
    /// Over the two engines.
    pub fn new(capsules: Capsules, attachments: Attachments) -> Self {
        Self { capsules, attachments }
    }

    pub(super) async fn describe(&self, published: &Published) -> Result<wire::Version, Status> {
        let missing = match &published.image {
            Ok(image) => self.capsules.missing(image).await?,
            Err(why) => Some(why.clone()),
        };
        let attachments = self.attachments.users_of(published.digest.as_str()).len();
        let attachments = u32::try_from(attachments).unwrap_or(u32::MAX);
        let tags = self.capsules.catalogue().tags_of(published);
        Ok(wire::Version {
            tags: tags.iter().map(ToString::to_string).collect(),
            ..convert::version(published, self.capsules.namespace(), missing, attachments)
        })
    }
}

#[tonic::async_trait]
impl wire::capsules_server::Capsules for CapsulesService {
    async fn build(
        &self,
        request: Request<Streaming<wire::BuildRequest>>,
    ) -> Result<Response<wire::BuildResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|m| m.part);
        let Some(wire::build_request::Part::Header(header)) = first else {
            return Err(convert::malformed("its header, which must be the first message"));
        };
        let name = convert::parse_name(&header.name)?;
        let seccomp = header.seccomp.unwrap_or_default();
        let declared = Declared::parse(
            &name,
            &header.requires,
            header.environment.into_iter().collect(),
            (header.resources.into_iter().collect(), header.caps.into_iter().collect()),
            header.devices,
            (&seccomp.level, seccomp.deny),
        );
        let declaration = Declaration {
            declared: declared.map_err(convert::from_model)?,
            name,
            version: header.version.parse().map_err(convert::from_model)?,
            default_target: convert::non_empty(header.default_target),
            default_mode: convert::parse_mode(header.default_mode)?,
            annotations: header.annotations.into_iter().collect(),
        };
        let tags = convert::parse_tags(&header.tags)?;
        self.capsules.check_tags(&declaration.name, &declaration.version, &tags).await?;
        let origin = origin(header.base, header.image, pieces(parts))?;
        let this = self.clone();
        // A caller who goes away ends the stream, and so the call.
        let published = to_the_end(async move { this.capsules.publish(declaration, &tags, origin).await });
        let (published, existed) = published.await?;
        let version = Some(self.describe(&published).await?);
        Ok(Response::new(wire::BuildResponse { version, existed }))
    }

    async fn list_capsules(
        &self,
        request: Request<wire::ListCapsulesRequest>,
    ) -> Result<Response<wire::ListCapsulesResponse>, Status> {
        let name = convert::non_empty(request.into_inner().name);
        let name = name.map(|n| convert::parse_name(&n)).transpose()?;
        let catalogue = self.capsules.listed().await?;
        if let Some(name) = &name {
            catalogue.find(name, None)?;
        }
        let mut versions = Vec::new();
        for published in catalogue.list(name.as_ref()) {
            versions.push(self.describe(&published).await?);
        }
        Ok(Response::new(wire::ListCapsulesResponse { versions }))
    }

    async fn inspect_capsule(
        &self,
        request: Request<wire::InspectCapsuleRequest>,
    ) -> Result<Response<wire::InspectCapsuleResponse>, Status> {
        let request = request.into_inner();
        let name = convert::parse_name(&request.name)?;
        let catalogue = self.capsules.listed().await?;
        let published = match Requirement::is_range(&request.version) {
            true => {
                let wanted = format!("{name} {}", request.version).parse().map_err(convert::from_model)?;
                catalogue.find_within(&wanted)?
            }
            false => {
                let version = convert::parse_version(&request.version).map_err(convert::from_model)?;
                catalogue.find(&name, version.as_ref())?
            }
        };
        let users = self.attachments.users_of(published.digest.as_str());
        let annotations = published.image.as_ref().map(|i| i.annotations.clone()).unwrap_or_default();
        Ok(Response::new(wire::InspectCapsuleResponse {
            version: Some(self.describe(&published).await?),
            layers: convert::layers(&published),
            annotations: annotations.into_iter().collect(),
            attachments: super::named(&self.attachments, users.iter().map(convert::attachment)),
        }))
    }
}

/// What the version is made from.
fn origin<T>(
    base: Option<wire::BuildBase>,
    image: Option<wire::BuildImage>,
    tar: T,
) -> Result<Origin<T>, Status> {
    match (base, image) {
        (None, None) => Ok(Origin::Tree(tar)),
        (Some(base), None) => {
            let base = BaseRef {
                name: convert::parse_name(&base.capsule)?,
                version: base.version.parse().map_err(convert::from_model)?,
                digest: base.digest.parse().map_err(convert::from_model)?,
            };
            Ok(Origin::Delta(base, tar))
        }
        (None, Some(image)) => {
            let reference = convert::non_empty(image.reference);
            let reference = reference.ok_or_else(|| convert::malformed("the name of an image"))?;
            Ok(Origin::Image(ImageRef { reference, namespace: convert::non_empty(image.namespace) }))
        }
        (Some(_), Some(_)) => {
            Err(Status::invalid_argument("an image has layers of its own: it cannot be built on a base"))
        }
    }
}

/// The tar's pieces; an error as text ends them. A stream that ends by the caller's death is an error, not an end.
fn pieces(
    parts: Streaming<wire::BuildRequest>,
) -> impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin {
    let pieces = stream::unfold(Some(parts), |parts| async move {
        let mut parts = parts?;
        let piece = match parts.message().await {
            Ok(None) => return None,
            Ok(Some(wire::BuildRequest { part: Some(wire::build_request::Part::Tar(bytes)) })) => Ok(bytes),
            Ok(Some(_)) => Err("a message after the header holds no tar".to_owned()),
            Err(status) => Err(status.message().to_owned()),
        };
        let rest = piece.is_ok().then_some(parts);
        Some((piece, rest))
    });
    pieces.boxed()
}
