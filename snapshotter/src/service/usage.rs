//! `capsule.v1.Usage`.

use capsule_proto::{
    capsule::v1 as wire,
    containerd::cgroups::{IoEntry, PsiData, PsiStats},
};
use tonic::{Request, Response, Status};

use crate::{
    attachments::{Attachments, ContainerUsage, model::Attachment},
    containerd::Measured,
};

/// What a limit of none is in a shim's answer.
const NO_LIMIT: u64 = u64::MAX;

/// The service.
#[derive(Clone)]
pub struct UsageService {
    attachments: Attachments,
}

impl UsageService {
    /// Over what is attached.
    pub fn new(attachments: Attachments) -> Self {
        Self { attachments }
    }
}

#[tonic::async_trait]
impl wire::usage_server::Usage for UsageService {
    async fn list_usage(
        &self,
        _: Request<wire::ListUsageRequest>,
    ) -> Result<Response<wire::ListUsageResponse>, Status> {
        let containers = self.attachments.usage().await?.into_iter().map(container).collect();
        Ok(Response::new(wire::ListUsageResponse { containers }))
    }
}

fn container(usage: ContainerUsage) -> wire::ContainerUsage {
    let of_it = wire::ContainerUsage {
        namespace: usage.container.namespace,
        container: usage.container.id,
        pod: usage.pod.unwrap_or_default(),
        name: usage.name.unwrap_or_default(),
        attachments: usage.attachments.iter().map(Attachment::label).collect(),
        ..Default::default()
    };
    match usage.measured {
        Some(measured) => measure(of_it, measured),
        None => of_it,
    }
}

fn measure(of_it: wire::ContainerUsage, measured: Measured) -> wire::ContainerUsage {
    let Some(metrics) = measured.metrics else { return of_it };
    let limit = |limit: u64| Some(limit).filter(|limit| *limit != NO_LIMIT && *limit != 0);
    let (memory, cpu) = (metrics.memory.unwrap_or_default(), metrics.cpu.unwrap_or_default());
    let (pids, io) = (metrics.pids.unwrap_or_default(), metrics.io.unwrap_or_default());
    let bytes = |of: fn(&IoEntry) -> u64| io.usage.iter().fold(0_u64, |all, one| all.saturating_add(of(one)));
    wire::ContainerUsage {
        measured_at: Some(measured.at.into()),
        memory: memory.usage,
        memory_limit: limit(memory.usage_limit),
        swap: memory.swap_usage,
        cpu_us: cpu.usage_usec,
        throttled_us: cpu.throttled_usec,
        pids: pids.current,
        pids_limit: limit(pids.limit),
        read_bytes: bytes(|one| one.rbytes),
        written_bytes: bytes(|one| one.wbytes),
        oom_kills: metrics.memory_events.unwrap_or_default().oom_kill,
        cpu_pressure: cpu.psi.as_ref().map(pressure),
        memory_pressure: memory.psi.as_ref().map(pressure),
        io_pressure: io.psi.as_ref().map(pressure),
        ..of_it
    }
}

fn pressure(stats: &PsiStats) -> wire::Pressure {
    let of = |data: Option<PsiData>| data.unwrap_or_default();
    let (some, full) = (of(stats.some), of(stats.full));
    wire::Pressure { some: some.avg10, full: full.avg10, some_us: some.total, full_us: full.total }
}
