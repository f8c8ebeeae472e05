//! What tasks use, as their shims measure it.

use std::{collections::BTreeMap, time::SystemTime};

use capsule_proto::containerd::{
    cgroups::Metrics,
    services::tasks::v1::{MetricsRequest, tasks_client::TasksClient},
};
use prost::{Message, Name};

use super::{ContainerdError, Scope};

/// What a task used until some instant.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// When.
    pub at: SystemTime,
    /// What; none where its control groups are of version 1.
    pub metrics: Option<Metrics>,
}

impl Scope {
    /// What these containers' tasks use. One without a task, or whose shim cannot say, is left out.
    ///
    /// # Errors
    /// containerd's.
    pub async fn metrics(&self, ids: &[&str]) -> Result<BTreeMap<String, Measured>, ContainerdError> {
        // No filter at all would mean all tasks.
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let filters = ids.iter().map(|id| format!("id=={id:?}")).collect();
        let reply = TasksClient::new(self.channel())
            .metrics(self.request(MetricsRequest { filters }))
            .await
            .map_err(|e| self.failed("measure what its tasks use", e))?;
        let one = |metric: capsule_proto::containerd::types::Metric| {
            let at = metric.timestamp.and_then(|at| SystemTime::try_from(at).ok());
            let unified = metric.data.filter(|data| data.type_url.ends_with(&Metrics::full_name()));
            let metrics = unified.and_then(|data| Metrics::decode(&*data.value).ok());
            (metric.id, Measured { at: at.unwrap_or_else(SystemTime::now), metrics })
        };
        Ok(reply.into_inner().metrics.into_iter().map(one).collect())
    }
}
