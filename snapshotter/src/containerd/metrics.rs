//! What tasks use, as their shims measure it.

use std::{collections::BTreeMap, time::SystemTime};

use capsule_proto::containerd::{
    cgroups::{Metrics, PsiStats},
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

/// A task's waiting, by what it waited for.
pub trait Pressures {
    /// For CPUs, memory and I/O; none where the kernel does not account for it.
    fn pressures(&self) -> [(&'static str, Option<&PsiStats>); 3];
}

impl Pressures for Metrics {
    fn pressures(&self) -> [(&'static str, Option<&PsiStats>); 3] {
        [
            ("cpu", self.cpu.as_ref().and_then(|cpu| cpu.psi.as_ref())),
            ("memory", self.memory.as_ref().and_then(|memory| memory.psi.as_ref())),
            ("io", self.io.as_ref().and_then(|io| io.psi.as_ref())),
        ]
    }
}

impl Scope {
    /// What these containers' tasks use. One without a task, or whose shim cannot say, is left out.
    ///
    /// # Errors
    /// containerd's.
    pub async fn metrics(&self, ids: &[String]) -> Result<BTreeMap<String, Measured>, ContainerdError> {
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
