//! The gRPC services: from wire types to the engines and back, and errors to status codes.
//!
//! The only room that sees tonic's and ttrpc's server side. No decisions are made here.

mod attachments;
mod capsules;
mod collect;
mod convert;
mod events;
mod node;
mod signatures;
mod snapshots;
mod tags;
mod transfers;
mod trees;

pub use self::{
    attachments::AttachmentsService,
    capsules::CapsulesService,
    collect::CollectorService,
    events::EventsService,
    node::{NodeService, NodeServiceError},
    signatures::SignaturesService,
    snapshots::SnapshotsService,
    tags::TagsService,
    transfers::TransfersService,
    trees::TreesService,
};

use std::error::Error;

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
