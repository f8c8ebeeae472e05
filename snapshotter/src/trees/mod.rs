//! What a stack of layers shows as one tree, and what differs between two stacks.
//!
//! `walk` → {`layers` (reads), `merge`, `compare` (pure)} → `entry`. Layers are merged by overlayfs's rules without a mount
//! of them; that they are the kernel's rules is tested against the kernel. What is in a layer was chosen by whoever made it: it
//! is never followed through a link.

mod compare;
mod entry;
mod layers;
mod merge;
mod single;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use self::layers::hash;
pub use self::{
    compare::Change,
    entry::{Attributes, Entry, Kind},
    layers::{Layers, TreeError},
    single::{Item, open_file, read_layer},
    walk::{Reading, read_changes, read_entries},
};
