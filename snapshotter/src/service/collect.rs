//! `capsule.v1.Collector`: removing versions that nobody needs.

use std::time::Duration;

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use super::{convert, error_line, in_words, to_the_end};
use crate::{
    attachments::Attachments,
    collect::{CollectError, Collector, Judged, Rules, Verdict},
};

/// The service.
#[derive(Clone)]
pub struct CollectorService {
    engine: Collector,
    attachments: Attachments,
}

impl CollectorService {
    /// Over the engine, with what knows the names of containers.
    pub fn new(engine: Collector, attachments: Attachments) -> Self {
        Self { engine, attachments }
    }

    fn judged(&self, one: &Judged) -> wire::Judged {
        let judged = wire_judged(one);
        wire::Judged { reason: self.attachments.in_words(&judged.reason), ..judged }
    }
}

#[tonic::async_trait]
impl wire::collector_server::Collector for CollectorService {
    async fn prune(
        &self,
        request: Request<wire::PruneRequest>,
    ) -> Result<Response<wire::PruneResponse>, Status> {
        let request = request.into_inner();
        let names =
            request.names.iter().map(|name| convert::parse_name(name)).collect::<Result<Vec<_>, _>>()?;
        let older_than = request.older_than.map(Duration::try_from).transpose();
        let rules = Rules {
            keep_last: usize::try_from(request.keep_last.unwrap_or(1)).unwrap_or(usize::MAX),
            keep_tagged: request.keep_tagged,
            older_than: older_than
                .map_err(|_| Status::invalid_argument("older_than is no length of time"))?,
        };
        let (engine, dry_run) = (self.engine.clone(), request.dry_run);
        let judged = to_the_end(async move { engine.prune(&names, &rules, dry_run).await }).await?;
        Ok(Response::new(wire::PruneResponse { judged: judged.iter().map(|one| self.judged(one)).collect() }))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveRequest>,
    ) -> Result<Response<wire::RemoveResponse>, Status> {
        let request = request.into_inner();
        let name = convert::parse_name(&request.name)?;
        let version = convert::parse_version(&request.version).map_err(convert::from_model)?;
        let version = version.ok_or_else(|| convert::malformed("the version to remove"))?;
        let engine = self.engine.clone();
        let removed = to_the_end(async move { engine.remove(&name, &version).await }).await;
        let removed = removed.map_err(|status| in_words(&self.attachments, &status))?;
        Ok(Response::new(wire::RemoveResponse { removed: Some(self.judged(&removed)) }))
    }
}

fn wire_judged(one: &Judged) -> wire::Judged {
    let (removed, reason) = match &one.verdict {
        Verdict::Remove => (true, String::new()),
        Verdict::Keep(reason) => (false, reason.clone()),
    };
    wire::Judged {
        capsule: one.published.name.to_string(),
        version: one.published.version.to_string(),
        digest: one.published.digest.to_string(),
        size: one.size(),
        removed,
        reason,
    }
}

impl From<CollectError> for Status {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Capsule(error) => error.into(),
            CollectError::Containerd(error) => crate::capsules::CapsuleError::from(error).into(),
            CollectError::Needed { .. } => Self::failed_precondition(error_line(&error)),
        }
    }
}
