//! The remote API: `capsule.v1` over TLS, for clients with certificates.
//!
//! A process of its own, because capsuled has all of a node's files in reach and listens on no network: what strangers can send
//! bytes to has no capability, and reaches capsuled's socket alone (docs/adr/0027). It knows no message but to tell what a
//! call is about; bytes go on as they came.
//!
//! Rooms, each of which may use only those to its right:
//! `server` (connections) → `service` (one call) → `rules` (who may call what), `clients` (how much), `audit` (what was
//! called), `upstream` (capsuled), `message` (the first message of a call); `tls` is whom connections are from.

pub mod audit;
pub mod clients;
pub mod message;
pub mod rules;
pub mod server;
pub mod service;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod upstream;
