//! Devices of the node by CDI, the Container Device Interface: which there are, and what a container needs for one.
//!
//! `name` (qualified names), `wire` (a spec as it is written), `spec` (read and validated), `edits` (what it asks of a container): pure
//! but for `edits`' look at a node of the host. `registry` reads the directories. Nothing here enters a container: the shim gets plain
//! edits and knows nothing of CDI.

mod edits;
mod name;
mod registry;
mod spec;
#[cfg(test)]
mod tests;
mod wire;

pub use edits::{Edits, Hook, HookPoint, IntelRdt, Mount, NetDevice, Node, NodeError, NodeKind};
pub use name::{DeviceName, InvalidName};
pub use registry::{Listed, Listing, Problem, Registry, ResolveError};
pub use spec::{Format, InvalidSpec, Spec};
