//! What can go wrong with what is written.

use std::{io, path::PathBuf};

use overlayfs_utils::ImageError;

use super::model::UpperName;
use crate::{
    capsules::{
        CapsuleError,
        model::{CapsuleName, Digest, Version},
    },
    trees::TreeError,
    volumes::model::VolumeId,
};

/// A call that failed, having changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// Not a name.
    #[error(
        "{0:?} is no name for what is written: use lower-case letters, digits and single '.', '_' or '-' between them"
    )]
    Name(String),
    /// Nothing has this name.
    #[error("nothing that was written is kept as {0}: see \"capsulectl uppers\"")]
    Unknown(UpperName),
    /// Something has it already.
    #[error("{0} is there already: choose another name, or remove it with \"capsulectl uppers rm {0}\"")]
    Exists(UpperName),
    /// Two overlays over one upper directory would not see each other's writes.
    #[error(
        "{name} is in use by attachment {by}: detach that one, and wait until it does not drain any more"
    )]
    InUse {
        /// The name.
        name: UpperName,
        /// Which attachment, and where.
        by: String,
    },
    /// A publish reads it.
    #[error("{0} is being published: try again when that is done")]
    BeingRead(UpperName),
    /// It will be gone in a moment.
    #[error("{0} is being removed: try again in a moment")]
    BeingRemoved(UpperName),
    /// It will be gone in a moment.
    #[error("volume {0} is being removed")]
    VolumeGoes(VolumeId),
    /// It is read by a publish.
    #[error("volume {0} is being published: try again when that is done")]
    VolumeRead(VolumeId),
    /// The attachment has ended.
    #[error(
        "attachment {0} has been detached meanwhile: commit what was kept, if anything was (\"capsulectl uppers\")"
    )]
    Ended(String),
    /// The version below is not there.
    #[error(
        "{capsule}@{version}, over which it was written, is not there any more: build or pull it again, or attach what was written over another version first"
    )]
    NoBase {
        /// The capsule.
        capsule: CapsuleName,
        /// The version.
        version: Version,
    },
    /// The version below is another one.
    #[error(
        "it was written over {capsule}@{version} of digest {was}, and the version of that name is {now}: attach what was written over this one first"
    )]
    OtherBase {
        /// The capsule.
        capsule: CapsuleName,
        /// The version.
        version: Version,
        /// What it was.
        was: Digest,
        /// What it is.
        now: Digest,
    },
    /// It was written over another capsule.
    #[error("{name} was written over the capsule {of}, and this is {wanted}: choose another name")]
    OtherCapsule {
        /// The name.
        name: UpperName,
        /// What it is of.
        of: CapsuleName,
        /// What it was to be for.
        wanted: CapsuleName,
    },
    /// It has another size, or none.
    #[error("{name} holds {has}, which --size cannot change: leave --size out, or choose another name")]
    OtherSize {
        /// The name.
        name: UpperName,
        /// What it can hold, in words.
        has: String,
    },
    /// Too little for a file system.
    #[error("{0} bytes are too few for a file system: give at least {MIN_SIZE}")]
    TooSmall(u64),
    /// The disk cannot hold it.
    #[error("the disk has no {size} bytes to spare for what is written ({}): free some, or give a smaller --size", path.display())]
    DiskFull {
        /// What was asked for.
        size: u64,
        /// Where.
        path: PathBuf,
    },
    /// The file system could not be made.
    #[error("cannot make a file system in {}: {reason}", path.display())]
    MakeFileSystem {
        /// The image.
        path: PathBuf,
        /// What the program said, or why it did not run.
        reason: String,
    },
    /// A directory or file.
    #[error("cannot {step} {}", path.display())]
    Disk {
        /// What was to be done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is said of it cannot be understood.
    #[error("{} is damaged, or of a newer capsuled: {reason}", path.display())]
    About {
        /// The file.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// Nothing was written.
    #[error("nothing was written that could be published")]
    Nothing,
    /// A name that an OCI layer reserves.
    #[error(
        "{0} would not be a file in an image: names that begin with .wh. delete files of the version below; rename it"
    )]
    WhiteoutName(String),
    /// No program that unpacks images makes it.
    #[error("{0}… is longer than a path in an image can be (4096 bytes): move or remove it")]
    LongPath(String),
    /// It never stood still.
    #[error("{0}: stop what writes to it, or pause the container while it is published")]
    Changed(String),
    /// Its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The version that it is to become.
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
}

/// The smallest image that ext4 with a journal makes sense in.
pub const MIN_SIZE: u64 = 4 << 20;
