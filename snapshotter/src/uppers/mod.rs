//! What is written to attachments: upper directories, how long each is kept, and what was written as a layer.
//!
//! `commit` → `engine`, `reading` → {`uses` (pure: who has which, what may go), `disk` (the only part that makes, renames and removes), `layer` (reads)} → `model`.
//!
//! ```text
//! ROOT/attachments/ID/      what is written to one attachment; goes with it
//! ROOT/uppers/NAME/         what has a name, and stays until it is removed
//!     about.json            of which capsule it is, and which attachment had it last
//!     upper/, work/         what overlayfs is given, or
//!     image                 an ext4 file system with both, of a fixed size
//! ROOT/volumes/STACK/NAME/  what a volume has; a STACK of `_` where it has none
//! ROOT/{attachments,uppers,volumes/STACK}/.new-ID, .gone-ID    being made, being removed
//! ```

mod commit;
mod disk;
mod engine;
mod error;
mod layer;
pub mod model;
mod reading;
mod uses;
mod volume;

pub use self::{
    engine::{Listed, Readable, Uppers, Wanted, kept_as},
    error::UpperError,
    volume::NewVolume,
};
