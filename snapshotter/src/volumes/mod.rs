//! Volumes: versions of capsules, and directories that are written to, at paths of the node, for who mounts for others.
//!
//! `mount`, `replace`, `engine` → {`records` (what is mounted, on disk), `build` (overlays, attached nowhere), `node` (the only part that attaches
//! and detaches at paths of the node)} → `model`. What is written lies in the [`uppers`](crate::uppers) room.
//!
//! ```text
//! RUN/volumes/[STACK+]NAME.json    what is mounted where: ends with the kernel
//! ROOT/volumes/STACK/NAME/         what is written
//! ```
//!
//! All mounts of a volume are of one file system, whose name in mount tables is the volume's alone: by both they are found wherever they
//! are, and no container can make one that looks like it, as it cannot choose a device number.

mod build;
mod engine;
mod error;
pub mod model;
mod mount;
mod node;
mod records;
mod replace;
mod stat;

pub use self::{engine::Volumes, error::VolumeError, replace::Replaced, stat::Room};
