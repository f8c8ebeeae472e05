//! From errors to status codes: one line, whatever went wrong. A full disk is `ResourceExhausted` from every call.

use tonic::{Code, Status};

use crate::{
    attachments::{AttachmentError, DevicesError, LimitsError},
    capsules::{CapsuleError, MoveError, SignError, TagError, Trouble},
    devices::ResolveError,
    full::{self, one_line},
    shims::ShimError,
    uppers::UpperError,
    volumes::VolumeError,
};

impl From<CapsuleError> for Status {
    fn from(error: CapsuleError) -> Self {
        let code = match &error {
            CapsuleError::Model(_)
            | CapsuleError::Target(_)
            | CapsuleError::ReservedAnnotation(_)
            | CapsuleError::BaseAnnotation(_) => Code::InvalidArgument,
            CapsuleError::UnknownCapsule { .. }
            | CapsuleError::UnknownVersion { .. }
            | CapsuleError::NoneWithin { .. }
            | CapsuleError::UnknownImage { .. } => Code::NotFound,
            CapsuleError::Incomplete { .. }
            | CapsuleError::Image { .. }
            | CapsuleError::TooManyLayers { .. }
            | CapsuleError::Oci(_)
            | CapsuleError::Conflict(_)
            | CapsuleError::Declared { .. }
            | CapsuleError::Leaving { .. }
            | CapsuleError::OtherDigest { .. } => Code::FailedPrecondition,
            CapsuleError::Exists { .. } => Code::AlreadyExists,
            CapsuleError::Tag(error) => tag(error),
            CapsuleError::Move(error) => moving(error),
            CapsuleError::Sign(error) => signing(error),
            CapsuleError::Stream { .. } | CapsuleError::BaseMoved { .. } => Code::Aborted,
            CapsuleError::DiffId { .. } | CapsuleError::Damaged { .. } => Code::DataLoss,
            CapsuleError::Share(_) | CapsuleError::Thread(_) => Code::Internal,
            CapsuleError::DiskFull { .. } => Code::ResourceExhausted,
            CapsuleError::Containerd(e) => containerd(e),
        };
        let is_full = full::is(&error);
        answer(code, &error, is_full)
    }
}

impl From<AttachmentError> for Status {
    fn from(error: AttachmentError) -> Self {
        match error {
            AttachmentError::Upper(e) => e.into(),
            AttachmentError::Capsule(e) => e.into(),
            AttachmentError::Store(error) if error.has_failed_before() => Self::unavailable(
                "the metadata store has failed a moment ago and is being opened again: try again",
            ),
            other => answer(attachment(&other), &other, other.is_disk_full()),
        }
    }
}

fn attachment(error: &AttachmentError) -> Code {
    match error {
        AttachmentError::UnknownContainer { .. }
        | AttachmentError::UnknownMember { .. }
        | AttachmentError::NotAttached { .. } => Code::NotFound,
        AttachmentError::AmbiguousContainer { .. }
        | AttachmentError::WhichMember { .. }
        | AttachmentError::NoSpecs
        | AttachmentError::Named { .. }
        | AttachmentError::Target(_)
        | AttachmentError::RoRoot
        | AttachmentError::KeepOne { .. }
        | AttachmentError::WhichTarget { .. }
        | AttachmentError::NoTarget { .. }
        | AttachmentError::NoTargetOfRequired { .. }
        | AttachmentError::Model(_) => Code::InvalidArgument,
        AttachmentError::OtherRuntime { .. }
        | AttachmentError::NotRunning { .. }
        | AttachmentError::NoHistory { .. }
        | AttachmentError::Waiting { .. }
        | AttachmentError::Unmet { .. }
        | AttachmentError::ReadOnly { .. }
        | AttachmentError::Undecided { .. }
        | AttachmentError::NothingToDecide { .. }
        | AttachmentError::Writable { .. }
        | AttachmentError::InUse { .. } => Code::FailedPrecondition,
        AttachmentError::Devices(error) => devices(error),
        AttachmentError::Limits(error) => limits(error),
        AttachmentError::Occupied { .. } => Code::AlreadyExists,
        AttachmentError::Shim(error) => shim(error),
        AttachmentError::Again { source, .. } => attachment(source),
        AttachmentError::Unsettled { .. } => Code::Unavailable,
        AttachmentError::Unhealthy { .. } => Code::Aborted,
        AttachmentError::Store(_) | AttachmentError::Mark { .. } => Code::Internal,
        AttachmentError::DiskFull { .. } => Code::ResourceExhausted,
        AttachmentError::Containerd(e) => containerd(e),
        AttachmentError::Failed { source, .. } => attachment(source),
        // They have their own.
        AttachmentError::Capsule(_) | AttachmentError::Upper(_) => Code::Unknown,
    }
}

fn devices(error: &DevicesError) -> Code {
    match error {
        DevicesError::Resolve(ResolveError::Name(_)) => Code::InvalidArgument,
        DevicesError::Resolve(ResolveError::Unknown { .. }) | DevicesError::NotAttached { .. } => {
            Code::NotFound
        }
        DevicesError::Attached { .. } => Code::AlreadyExists,
        DevicesError::NotForPods { .. } => Code::PermissionDenied,
        DevicesError::Resolve(ResolveError::Node { .. })
        | DevicesError::NotLive { .. }
        | DevicesError::Conflict { .. }
        | DevicesError::Other { .. } => Code::FailedPrecondition,
        DevicesError::Thread(_) => Code::Internal,
    }
}

fn limits(error: &LimitsError) -> Code {
    match error {
        LimitsError::Declared { .. } | LimitsError::Disk(_) => Code::FailedPrecondition,
        LimitsError::Budget(_) => Code::ResourceExhausted,
        LimitsError::Pods(_) => Code::Unavailable,
    }
}

fn tag(error: &TagError) -> Code {
    match error {
        TagError::IsVersion { .. } | TagError::Taken { .. } => Code::AlreadyExists,
        TagError::IsItself { .. } => Code::InvalidArgument,
        TagError::Unknown { .. } => Code::NotFound,
        TagError::Foreign { .. } => Code::FailedPrecondition,
    }
}

fn signing(error: &SignError) -> Code {
    match error {
        SignError::Unsigned { .. } | SignError::Untrusted { .. } => Code::PermissionDenied,
        SignError::Other { .. } => Code::InvalidArgument,
    }
}

fn moving(error: &MoveError) -> Code {
    match error {
        MoveError::Reference { .. } | MoveError::Anonymous { .. } => Code::InvalidArgument,
        MoveError::Failed { trouble, .. } => match trouble {
            Trouble::Unreachable => Code::Unavailable,
            Trouble::Unknown => Code::NotFound,
            Trouble::Unauthorised => Code::PermissionDenied,
            Trouble::Altered => Code::DataLoss,
            Trouble::DiskFull => Code::ResourceExhausted,
            Trouble::TooOld => Code::FailedPrecondition,
            Trouble::BrokenOff => Code::Aborted,
            Trouble::NoArchive => Code::InvalidArgument,
            Trouble::Other => Code::Internal,
        },
        MoveError::Altered { .. } => Code::DataLoss,
        MoveError::Unusable { .. } | MoveError::Empty => Code::FailedPrecondition,
        MoveError::Signatures { .. } => Code::FailedPrecondition,
        MoveError::Differs { .. } | MoveError::Published { .. } => Code::AlreadyExists,
        MoveError::NoImage { .. } => Code::NotFound,
    }
}

fn shim(error: &ShimError) -> Code {
    match error {
        ShimError::Refused { code, .. } => *code,
        ShimError::Unreachable { .. } => Code::Unavailable,
        ShimError::NoShim(_) | ShimError::Older { .. } => Code::FailedPrecondition,
        ShimError::Registration { .. } | ShimError::RegistrationVersion { .. } => Code::Internal,
    }
}

fn containerd(error: &crate::containerd::ContainerdError) -> Code {
    error.code().unwrap_or(Code::Internal)
}

/// The answer to a call that failed. A disk without room has one code, whoever met it, and one cure.
fn answer(code: Code, error: &dyn std::error::Error, is_full: bool) -> Status {
    let line = one_line(error);
    match is_full {
        true if line.contains(full::CURE) => Status::new(Code::ResourceExhausted, line),
        true => Status::new(Code::ResourceExhausted, format!("{line}: {}", full::CURE)),
        false => Status::new(code, line),
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let code = match error {
            VolumeError::Upper(error) => return error.into(),
            VolumeError::Capsule(error) => return error.into(),
            VolumeError::Id(_)
            | VolumeError::Spec { .. }
            | VolumeError::TooLarge { .. }
            | VolumeError::Path { .. } => Code::InvalidArgument,
            VolumeError::Unknown(_) | VolumeError::NotMade(_) => Code::NotFound,
            VolumeError::Exists { .. } => Code::AlreadyExists,
            VolumeError::Mounted { .. }
            | VolumeError::Written { .. }
            | VolumeError::NoCapsule(_)
            | VolumeError::InUse(_)
            | VolumeError::Occupied(_)
            | VolumeError::Target { .. }
            | VolumeError::Part { .. } => Code::FailedPrecondition,
            VolumeError::Elsewhere(..) => Code::PermissionDenied,
            VolumeError::Unstable(_) => Code::Aborted,
            VolumeError::Mount { .. }
            | VolumeError::Node(_)
            | VolumeError::Namespace(_)
            | VolumeError::Probe(_)
            | VolumeError::Layer(_)
            | VolumeError::Plan(_)
            | VolumeError::Place { .. }
            | VolumeError::Disk { .. }
            | VolumeError::Thread(_) => Code::Internal,
        };
        let is_full = full::is(&error);
        answer(code, &error, is_full)
    }
}

impl From<UpperError> for Status {
    fn from(error: UpperError) -> Self {
        let code = match &error {
            UpperError::Name(_) | UpperError::TooSmall(_) => Code::InvalidArgument,
            UpperError::Unknown(_) => Code::NotFound,
            UpperError::Exists(_) => Code::AlreadyExists,
            UpperError::InUse { .. }
            | UpperError::BeingRead(_)
            | UpperError::BeingRemoved(_)
            | UpperError::VolumeGoes(_)
            | UpperError::VolumeRead(_)
            | UpperError::Ended(_)
            | UpperError::NoBase { .. }
            | UpperError::OtherBase { .. }
            | UpperError::OtherCapsule { .. }
            | UpperError::OtherSize { .. }
            | UpperError::WhiteoutName(_)
            | UpperError::LongPath(_)
            | UpperError::Nothing => Code::FailedPrecondition,
            UpperError::DiskFull { .. } => Code::ResourceExhausted,
            UpperError::Changed(_) => Code::Aborted,
            UpperError::About { .. } => Code::DataLoss,
            UpperError::MakeFileSystem { .. }
            | UpperError::Disk { .. }
            | UpperError::Image(_)
            | UpperError::Tree(_) => Code::Internal,
            UpperError::Capsule(_) => Code::Unknown,
        };
        match error {
            UpperError::Capsule(error) => error.into(),
            other => {
                let is_full = full::is(&other);
                answer(code, &other, is_full)
            }
        }
    }
}
