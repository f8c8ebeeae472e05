//! Capsules for the pods of a cluster: custom resources ([`api`]), the controller that plans for all nodes ([`cluster`]), and the agent of one
//! ([`agent`]). Kubernetes is the engine: what is wanted and what is so are objects of its API, and nothing else is kept.

pub mod agent;
pub mod api;
pub mod cluster;
