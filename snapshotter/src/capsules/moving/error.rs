//! What went wrong on the way. containerd says most of it in words alone; here they get a meaning.

use tonic::Code;

use crate::{
    capsules::model::{CapsuleName, Digest, Version},
    containerd::{AlteredMember, ContainerdError},
    full,
};

/// A version that did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Not a reference of a registry.
    #[error("{reference:?} is no image in a registry: {reason}")]
    Reference {
        /// As it was written.
        reference: String,
        /// What to write.
        reason: &'static str,
    },
    /// It could not be had, or not be sent.
    #[error("cannot {action} {reference}: {trouble}{hint} ({})", cause(answer))]
    Failed {
        /// "pull", "push", "load", "save" or "import".
        action: &'static str,
        /// What.
        reference: String,
        /// Why, as far as it is understood.
        trouble: Trouble,
        /// What to know beside that, after a semicolon; or nothing.
        hint: String,
        /// containerd's word.
        answer: Box<ContainerdError>,
    },
    /// It does not say what it is.
    #[error("{reference} says of no capsule and version that it is one: name them with --as NAME@VERSION")]
    Anonymous {
        /// What was to come.
        reference: String,
    },
    /// It is no image that can be attached.
    #[error("{reference} cannot be a version: {reason}")]
    Unusable {
        /// What was to come.
        reference: String,
        /// Why.
        reason: String,
    },
    /// A part of it is not what its digest says.
    #[error("cannot {action} {reference}: {reason}")]
    Altered {
        /// "take", "load" or "import".
        action: &'static str,
        /// What was to come.
        reference: String,
        /// Which part, and what to do.
        reason: String,
    },
    /// A version never changes.
    #[error(
        "{name}@{version} is here already as {here}, and {reference} is {came}: a version never changes; name it \
         another with --as NAME@VERSION"
    )]
    Differs {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// What was to come.
        reference: String,
        /// What is here.
        here: String,
        /// What came.
        came: Digest,
    },
    /// A version never changes, in a registry neither.
    #[error(
        "cannot push {name}@{version}: {reference} is {there} there, and this is {here}: a version never changes; publish \
         this under another version"
    )]
    Published {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Where it was to go.
        reference: String,
        /// What is there.
        there: String,
        /// What was to go there.
        here: Box<Digest>,
    },
    /// No more signatures of one version are read.
    #[error("{reference} would have more than {most} signatures: remove some of them there, and push again")]
    Signatures {
        /// Where they lie.
        reference: String,
        /// As many as may be.
        most: usize,
    },
    /// An archive without an image for this machine.
    #[error("the archive holds no image for this machine")]
    Empty,
    /// Not in the namespace that was named.
    #[error(
        "there is no image {image} in the containerd namespace {namespace}: see \"ctr -n {namespace} images ls\""
    )]
    NoImage {
        /// Its name.
        image: String,
        /// Where it should be.
        namespace: String,
    },
}

/// What containerd's words mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody answers, or not as a registry does.
    Unreachable,
    /// There is no such repository or tag.
    Unknown,
    /// The registry wants another name or password.
    Unauthorised,
    /// What came is not what was asked for.
    Altered,
    /// No room.
    DiskFull,
    /// containerd cannot do it.
    TooOld,
    /// The caller went away, or its archive broke off.
    BrokenOff,
    /// It is no archive of images.
    NoArchive,
    /// Something else.
    Other,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreachable => {
                "the registry does not answer as one; check its address, and containerd's registry hosts"
            }
            Self::Unknown => "there is no such image; check repository and tag",
            Self::Unauthorised => "the registry refuses; pass --user NAME with its password",
            Self::Altered => {
                "the content is not what its digest says; it was damaged or changed, and is not taken"
            }
            Self::DiskFull => full::CURE,
            Self::TooOld => "this containerd has no transfer service that can; use 2.0 or newer",
            Self::BrokenOff => "it broke off, and nothing is kept; repeat it",
            Self::NoArchive => "it is no OCI or Docker archive of images for this machine",
            Self::Other => "containerd failed",
        })
    }
}

impl Trouble {
    /// From containerd's answer: the code where it has one, else the words of its libraries
    /// (`core/remotes/docker`, `plugins/content/local`, Go's `net` and `syscall`).
    pub fn of(error: &ContainerdError) -> Self {
        let text = cause(error).to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        match error.code() {
            Some(Code::Unimplemented) => return Self::TooOld,
            Some(Code::Cancelled | Code::Aborted) => return Self::BrokenOff,
            _ => {}
        }
        if full::says(&text) {
            Self::DiskFull
        } else if says(&[
            "unexpected commit digest",
            "failed size validation",
            "unexpected commit size",
            "digest mismatch",
            "unexpected digest",
        ]) {
            Self::Altered
        } else if says(&[
            "401",
            "403 ",
            "unauthorized",
            "authorization failed",
            "insufficient_scope",
            "no basic auth",
        ]) {
            Self::Unauthorised
        } else if says(&[
            "connection refused",
            "no such host",
            "timeout",
            "connection reset",
            "no route to host",
            "network is unreachable",
            "eof",
            "http response to https client",
            "x509:",
            "tls:",
            "server misbehaving",
            "status from",
            "unexpected status",
        ]) && !says(&["404"])
        {
            Self::Unreachable
        } else if says(&[
            "unrecognized image format",
            "missing index.json",
            "invalid tar header",
            "no match for platform",
        ]) {
            Self::NoArchive
        } else if error.is_not_found() || says(&["not found", "404"]) {
            Self::Unknown
        } else {
            Self::Other
        }
    }
}

impl MoveError {
    /// For a call of containerd's that failed.
    pub fn failed(action: &'static str, reference: &str, answer: ContainerdError) -> Self {
        let trouble = match (action, Trouble::of(&answer)) {
            // No registry has a part in it.
            ("load" | "save" | "import", Trouble::Unreachable) => Trouble::BrokenOff,
            (_, trouble) => trouble,
        };
        let answer = Box::new(answer);
        Self::Failed { action, reference: reference.to_owned(), trouble, hint: String::new(), answer }
    }

    /// For an archive, or an image on its way as one, with a blob that is altered.
    pub fn altered(action: &'static str, reference: &str, member: &AlteredMember) -> Self {
        let AlteredMember { digest, found } = member;
        let reason = format!(
            "its blob {digest} is altered, with bytes of the digest {found}; nothing of it is taken: get it anew from where \
             it comes from"
        );
        Self::Altered { action, reference: reference.to_owned(), reason }
    }

    /// With something to know beside it.
    pub fn with_hint(self, more: &str) -> Self {
        match self {
            Self::Failed { action, reference, trouble, answer, .. } => {
                Self::Failed { action, reference, trouble, hint: format!("; {more}"), answer }
            }
            other => other,
        }
    }
}

/// containerd's own words, without ours around them.
fn cause(error: &ContainerdError) -> String {
    match error {
        ContainerdError::Call { source, .. } => source.message().to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tonic::Status;

    use super::*;

    fn call(code: Code, text: &str) -> ContainerdError {
        ContainerdError::Call { what: "pull x".into(), source: Box::new(Status::new(code, text)) }
    }

    /// Answers of containerd 2.1.9 and 1.7.24.
    #[test]
    fn containerds_words_have_a_meaning() {
        for (code, text, trouble) in [
            (
                Code::Unknown,
                "failed to resolve image: failed to do request: Head \"http://127.0.0.1:5001/v2/a/manifests/1\": dial \
                 tcp 127.0.0.1:5001: connect: connection refused",
                Trouble::Unreachable,
            ),
            (Code::NotFound, "failed to resolve image: 127.0.0.1:5000/a:9: not found", Trouble::Unknown),
            (
                Code::Unknown,
                "failed to resolve image: unexpected status from HEAD request to https://h/v2/a/manifests/1: 401 \
                 Unauthorized",
                Trouble::Unauthorised,
            ),
            (
                Code::Unknown,
                "failed to resolve image: unexpected status from HEAD request to https://h/v2/a/manifests/1: 500 \
                 Internal Server Error",
                Trouble::Unreachable,
            ),
            (
                Code::FailedPrecondition,
                "failed commit on ref \"layer-sha256:00\": unexpected commit digest sha256:11, expected sha256:00: \
                 failed precondition",
                Trouble::Altered,
            ),
            (
                Code::FailedPrecondition,
                "failed commit on ref \"layer-sha256:00\": \"layer-sha256:00\" failed size validation: 3 != 4: failed \
                 precondition",
                Trouble::Altered,
            ),
            (
                Code::Unknown,
                "write /var/lib/containerd/io.containerd.content.v1.content/ingest/1/data: no space left on device",
                Trouble::DiskFull,
            ),
            (
                Code::Unimplemented,
                "unknown service containerd.services.transfer.v1.Transfer",
                Trouble::TooOld,
            ),
            (
                Code::Unknown,
                "failed to copy: httpReadSeeker: failed open: unexpected EOF",
                Trouble::Unreachable,
            ),
            (Code::Unknown, "unrecognized image format", Trouble::NoArchive),
            (Code::Unknown, "something new", Trouble::Other),
        ] {
            assert_eq!(Trouble::of(&call(code, text)), trouble, "{text}");
        }
        assert_eq!(Trouble::of(&ContainerdError::Abandoned), Trouble::BrokenOff);
        let gone = ContainerdError::Unreachable {
            address: PathBuf::from("/c.sock"),
            source: Box::new(Status::unavailable("")),
        };
        assert_eq!(Trouble::of(&gone), Trouble::Other);
    }

    #[test]
    fn a_failure_is_one_line_with_cause_and_cure() {
        let error = MoveError::failed("pull", "h:1/a:1", call(Code::NotFound, "h:1/a:1: not found"));
        let line = error.with_hint("containerd 1.7 has its limits").to_string();
        assert_eq!(
            line,
            "cannot pull h:1/a:1: there is no such image; check repository and tag; containerd 1.7 has its limits \
             (h:1/a:1: not found)"
        );
    }
}
