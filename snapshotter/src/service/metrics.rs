//! `capsule.v1.Metrics`.

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use crate::{
    attachments::Attachments,
    capsules::Capsules,
    events::Feed,
    metrics::{Meters, Present},
};

/// The service.
#[derive(Clone)]
pub struct MetricsService {
    meters: Meters,
    attachments: Attachments,
    capsules: Capsules,
    feed: Feed,
}

impl MetricsService {
    /// Over what is counted, and what there is.
    pub fn new(meters: Meters, attachments: Attachments, capsules: Capsules, feed: Feed) -> Self {
        Self { meters, attachments, capsules, feed }
    }
}

#[tonic::async_trait]
impl wire::metrics_server::Metrics for MetricsService {
    async fn read_metrics(
        &self,
        _: Request<wire::ReadMetricsRequest>,
    ) -> Result<Response<wire::ReadMetricsResponse>, Status> {
        let containers = self.attachments.usage().await.unwrap_or_else(|error| {
            // containerd may be away for a moment. The rest is told nevertheless.
            tracing::debug!(%error, "what containers use is left out");
            self.attachments.unmeasured()
        });
        let present = Present {
            containers,
            budgets: self.attachments.budget_usage(),
            versions: self.capsules.catalogue().count(),
            events: self.feed.newest(),
            following: self.attachments.is_following(),
        };
        let text = self.meters.text(present).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ReadMetricsResponse { text }))
    }
}
