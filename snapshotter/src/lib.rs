//! capsuled, the node daemon of Resource Capsules.
//!
//! Rooms, each of which may use only those to its right:
//! `service` → `snapshots`, `capsules`, `attachments` → `store`, `dirs`, `containerd`, `shims` → `config`.
//! Only `service` sees tonic's server side, only `store` sees the database, only `dirs` names the paths on disk.
//! Nothing here enters a container: that is the shim's work.

pub mod config;
pub mod dirs;
pub mod notify;
pub mod server;
pub mod service;
pub mod snapshots;
pub mod store;
