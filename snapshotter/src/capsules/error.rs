//! What can go wrong with a capsule.

use overlayfs_utils::InvalidPath;

use super::{
    conflict::Conflict,
    model::{CapsuleName, Digest, ModelError, Version},
    moving::MoveError,
    oci::OciError,
    signing::SignError,
    tags::TagError,
};
use crate::{containerd::ContainerdError, dirs::DirsError, full};

/// A capsule that cannot be found, published or used. Each message names the capsule and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CapsuleError {
    /// A malformed name, version or mode.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A default target that no container can have.
    #[error("default target: {0}")]
    Target(#[from] InvalidPath),
    /// An annotation that is ours to set.
    #[error("annotation {0:?} is reserved: names under resourcecapsules.io/ are set by capsuled")]
    ReservedAnnotation(String),
    /// Another annotation that is ours to set.
    #[error("annotation {0:?} cannot be given with a base or an image: capsuled sets it")]
    BaseAnnotation(&'static str),
    /// The version that a delta was made against is another one now.
    #[error(
        "{name}@{version} is {found} now, not {wanted}, which this tree was compared with: build it again"
    )]
    BaseMoved {
        /// The base.
        name: CapsuleName,
        /// Its version.
        version: Version,
        /// What there is.
        found: Digest,
        /// What the delta was made against.
        wanted: Digest,
    },
    /// A version on a version on a version.
    #[error(
        "{name}@{version} has {layers} layers already, and no version may have more: publish this tree without --base"
    )]
    TooManyLayers {
        /// The base.
        name: CapsuleName,
        /// Its version.
        version: Version,
        /// How many.
        layers: usize,
    },
    /// containerd has no image of that name.
    #[error(
        "there is no image {reference:?} in the containerd namespace {namespace}: see \"ctr -n {namespace} images ls\""
    )]
    UnknownImage {
        /// What was asked for.
        reference: String,
        /// Where.
        namespace: String,
    },
    /// An image lacks a part, or is none.
    #[error("the image {reference} of the containerd namespace {namespace} cannot be published: {reason}")]
    Image {
        /// The image.
        reference: String,
        /// Where it is.
        namespace: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// No version of it is published.
    #[error(
        "capsule {name} is not known: publish it with \"capsulectl build DIR --name {name} --version VERSION\", or see \"capsulectl ls\""
    )]
    UnknownCapsule {
        /// What was asked for.
        name: CapsuleName,
    },
    /// Other versions are published.
    #[error("capsule {name} has no version {version}: it has {have}")]
    UnknownVersion {
        /// The capsule.
        name: CapsuleName,
        /// What was asked for.
        version: Version,
        /// What there is, newest first, joined by commas.
        have: String,
    },
    /// Other versions are published.
    #[error("capsule {name} has no version that is {range}: it has {have}")]
    NoneWithin {
        /// The capsule.
        name: CapsuleName,
        /// What was asked for, as `>=1.2, <2`.
        range: String,
        /// What there is, newest first, joined by commas.
        have: String,
    },
    /// The image lacks a part.
    #[error(
        "{name}@{version} is incomplete: {missing}; publish or pull it again into the containerd namespace {namespace}"
    )]
    Incomplete {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// What is missing, as "layer sha256:… is not in containerd's content store".
        missing: String,
        /// Where it should be.
        namespace: String,
    },
    /// Somebody removes it.
    #[error("{name}@{version} is being removed: publish or pull it again, or choose another version")]
    Leaving {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
    },
    /// Requirements that contradict each other.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Its annotations are not what they should be.
    #[error("{name}@{version} cannot be used: {reason}; publish it anew")]
    Declared {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Which, and how.
        reason: String,
    },
    /// Another content than the one asked for by its digest.
    #[error("{name}@{version} is {found} here, not {wanted}: pull that one, or resolve anew")]
    OtherDigest {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// What there is.
        found: Digest,
        /// What was asked for.
        wanted: Digest,
    },
    /// A published version never changes.
    #[error(
        "{name}@{version} is published already with other content ({existing}, this tree gives {digest}): choose another version"
    )]
    Exists {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Digest of what is published.
        existing: String,
        /// Digest of what was to be.
        digest: Digest,
    },
    /// Something about a tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// Something about a signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Something on its way from or to elsewhere.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// The stream of the tree broke off.
    #[error("the tree of {name}@{version} did not arrive whole: {reason}")]
    Stream {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Why.
        reason: String,
    },
    /// A layer does not hold what its configuration says.
    #[error(
        "layer {layer} unpacks to {found}, its image says {expected}: the content is damaged; publish or pull it again"
    )]
    DiffId {
        /// The layer's blob.
        layer: Digest,
        /// Digest of what came out.
        found: String,
        /// What the configuration says.
        expected: Digest,
    },
    /// What containerd has of it is not what its digests say.
    #[error("cannot {action} {name}@{version}: {source}")]
    Damaged {
        /// "publish" or "unpack".
        action: &'static str,
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Which part.
        #[source]
        source: Box<CapsuleError>,
    },
    /// The image's JSON is not that of a capsule.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// A layer's files could not be shared with others', and the layer has suffered.
    #[error("share files between layers: {0}")]
    Share(#[from] DirsError),
    /// A thread that works on layers is gone.
    #[error("share files between layers: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// No room for a version, in containerd's directories or ours.
    #[error("cannot {action} {name}@{version}: {} ({cause})", full::CURE)]
    DiskFull {
        /// "publish" or "unpack".
        action: &'static str,
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// What was being written, and who says that there is no room.
        cause: String,
    },
    /// containerd failed.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
}

impl CapsuleError {
    /// What this is to whoever wanted `name@version`: [`CapsuleError::DiskFull`] or [`CapsuleError::Damaged`] where that is
    /// why, else as it is.
    pub(super) fn of(self, action: &'static str, name: &CapsuleName, version: &Version) -> Self {
        match self {
            Self::Move(_) | Self::DiskFull { .. } => self,
            source @ (Self::DiffId { .. } | Self::Containerd(ContainerdError::Altered { .. })) => {
                let (name, version) = (name.clone(), version.clone());
                Self::Damaged { action, name, version, source: Box::new(source) }
            }
            error if full::is(&error) => {
                let cause = full::one_line(&error);
                Self::DiskFull { action, name: name.clone(), version: version.clone(), cause }
            }
            error => error,
        }
    }
}
