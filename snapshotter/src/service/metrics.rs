//! `capsule.v1.Metrics`.

use std::path::PathBuf;

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use crate::{
    attachments::Attachments,
    capsules::Capsules,
    events::Feed,
    metrics::{Disk, Meters, Present},
    volumes::Volumes,
};

/// The service.
#[derive(Clone)]
pub struct MetricsService {
    meters: Meters,
    attachments: Attachments,
    capsules: Capsules,
    volumes: Volumes,
    feed: Feed,
    root: PathBuf,
}

impl MetricsService {
    /// Over what is counted, what there is, and capsuled's root.
    pub fn new(
        meters: Meters,
        attachments: Attachments,
        capsules: Capsules,
        volumes: Volumes,
        feed: Feed,
        root: PathBuf,
    ) -> Self {
        Self { meters, attachments, capsules, volumes, feed, root }
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
        let (versions, version_bytes) = self.capsules.catalogue().count();
        let (volume_mounts, volumes_draining) = self.volumes.count();
        let present = Present {
            containers,
            budgets: self.attachments.budget_usage(),
            versions,
            version_bytes,
            volume_mounts,
            volumes_draining,
            disk: Disk::read(&self.root),
            events: self.feed.newest(),
            following: self.attachments.is_following(),
        };
        let text = self.meters.text(present).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ReadMetricsResponse { text }))
    }
}
