//! Versions on their way: from and to registries, archives and other containerd namespaces. containerd's transfer service
//! moves the bytes and checks their digests; here is judged what came, and it becomes a version with its last step, the
//! image record.
//!
//! | room | what |
//! | --- | --- |
//! | `reference` | where an image is in a registry (pure) |
//! | `transit` | what is on its way: a lease and a name that nobody sees, both gone in the end |
//! | `arrival` | what came becomes versions, all of it or none |
//! | `registry`, `push`, `archive` | the calls |
//! | `error` | what failed, in words (pure) |

mod archive;
mod arrival;
mod error;
mod push;
mod reference;
mod registry;
mod transit;

pub use self::{
    arrival::Arrived,
    error::{MoveError, Trouble},
    transit::TRANSIT,
};
