//! What happens on the node, in order: written with what it tells of, followed by watchers, passed on to containerd.
//!
//! `model` (pure) ← {`feed`, `publish`} ← [`crate::service`]. The journal of [`crate::store::attachments`] writes them.

mod feed;
mod model;
mod publish;

pub use self::{
    feed::{Feed, FeedError, Filter, Watcher},
    model::{Event, Kind, Place},
};
