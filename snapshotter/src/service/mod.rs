//! The gRPC services: from wire types to the engines and back, and errors to status codes.
//!
//! The only room that sees tonic's and ttrpc's server side. No decisions are made here.

mod attachments;
mod budgets;
mod capsules;
mod collect;
mod convert;
mod creation;
mod devices;
mod events;
mod health;
mod metrics;
mod node;
mod signatures;
mod snapshots;
mod status;
mod tags;
mod transfers;
mod trees;
mod uppers;
mod usage;

pub use self::{
    attachments::AttachmentsService,
    budgets::BudgetsService,
    capsules::CapsulesService,
    collect::CollectorService,
    devices::DevicesService,
    events::EventsService,
    health::HealthService,
    metrics::MetricsService,
    node::{NodeService, NodeServiceError},
    signatures::SignaturesService,
    snapshots::SnapshotsService,
    tags::TagsService,
    transfers::TransfersService,
    trees::TreesService,
    uppers::UppersService,
    usage::UsageService,
};

use std::error::Error;

use capsule_proto::capsule::v1 as wire;
use tonic::Status;
use tracing::Instrument as _;

use crate::{
    attachments::{Attachments, model::ContainerKey},
    containerd::Member,
};

/// Runs a call in a task of its own: to its end, with all that it has to clear up, also if the caller goes away in the middle.
async fn to_the_end<T, E>(call: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
{
    tokio::spawn(call.in_current_span())
        .await
        .map_err(|e| Status::internal(e.to_string()))?
        .map_err(Into::into)
}

/// With the names that clients call the containers by, and what these are in pods.
fn named(engine: &Attachments, all: impl Iterator<Item = wire::Attachment>) -> Vec<wire::Attachment> {
    let named = |one: wire::Attachment| {
        let key = ContainerKey { namespace: one.namespace.clone(), id: one.container.clone() };
        let Member { pod, container, .. } = engine.member(&key).unwrap_or_default();
        let container_name = engine.name_of(&key).unwrap_or_default();
        wire::Attachment { pod, pod_container: container.unwrap_or_default(), container_name, ..one }
    };
    all.map(named).collect()
}

/// An error and its sources in one line, as a status message has them.
fn error_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
