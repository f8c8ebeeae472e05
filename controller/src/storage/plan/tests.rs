//! Plans against a cluster that is none: objects as the API server has them, and nodes whose agents do what they are told.

mod contracts;
mod everyday;
mod modified;
mod safe;
mod world;
