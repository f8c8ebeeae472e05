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
mod volumes;

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
    volumes::VolumesService,
};

use std::{error::Error, sync::Arc};

use capsule_proto::capsule::v1 as wire;
use tonic::Status;
use tracing::Instrument as _;

use crate::{
    attachments::{AttachmentError, Attachments, called::Called, model::ContainerKey},
    capsules::{Capsules, model::Version},
    uppers::{Readable, Uppers},
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

/// An error as callers are told it: with names for containers, but where it is about which one of several is meant.
fn refused(engine: &Attachments, error: AttachmentError) -> Status {
    let is_which = matches!(error, AttachmentError::AmbiguousContainer { .. });
    let status = Status::from(error);
    if is_which { status } else { in_words(engine, &status) }
}

/// The same of what is said already.
fn in_words(engine: &Attachments, status: &Status) -> Status {
    Status::new(status.code(), engine.in_words(status.message()))
}

/// With the names that clients call the containers by, and what these are in pods.
fn named(engine: &Attachments, all: impl Iterator<Item = wire::Attachment>) -> Vec<wire::Attachment> {
    let named = |one: wire::Attachment| {
        let key = ContainerKey { namespace: one.namespace.clone(), id: one.container.clone() };
        let Called { name, pod, pod_container, pod_uid } = engine.called(&key);
        let [container_name, pod, pod_container, pod_uid] =
            [name, pod, pod_container, pod_uid].map(Option::unwrap_or_default);
        wire::Attachment { container_name, pod, pod_container, pod_uid, ..one }
    };
    all.map(named).collect()
}

/// Publishes what was written, as a version of its capsule with these tags: the version, whether it was there, and what it is made from.
async fn publish_written(
    (capsules, uppers, describing): (&Capsules, &Uppers, &CapsulesService),
    of: &Readable<'_>,
    version: &str,
    tags: &[String],
) -> Result<(wire::Version, bool, String), Status> {
    let version: Version = version.parse().map_err(convert::from_model)?;
    let tags = convert::parse_tags(tags)?;
    let reading = Arc::new(uppers.read(of)?);
    let base = uppers.base(capsules, &reading).await?;
    capsules.check_tags(&base.name, &version, &tags).await?;
    let from_version = base.version.to_string();
    let (own, uppers) = (capsules.clone(), uppers.clone());
    let published = to_the_end(async move { uppers.commit(&own, &reading, &base, (&version, &tags)).await });
    let (published, existed) = published.await?;
    Ok((describing.describe(&published).await?, existed, from_version))
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
