//! Disks without room: told from other failures at whatever depth of an error, and said in one way by every call.

use std::{error::Error, io};

use tonic::Status;

use crate::store::StoreError;

/// What to do about it, as every message says it.
pub const CURE: &str = "the disk is full; make room and repeat it";

/// Whether the kernel refused for want of room, or of a quota.
pub fn is_kind(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether another program says so: containerd has nothing but the kernel's words (Go's `syscall`, `zerrors_linux_*.go`), the
/// shim those of Rust's library.
pub fn says(text: &str) -> bool {
    let text = text.to_lowercase();
    ["no space left on device", "disk quota exceeded"].iter().any(|words| text.contains(words))
}

/// Whether a full disk is what this is from. Only what the kernel, the store or containerd says counts, and never words of ours,
/// which repeat what callers wrote.
pub fn is(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let full = error.downcast_ref::<io::Error>().is_some_and(is_kind)
            || error.downcast_ref::<rustix::io::Errno>().is_some_and(|e| is_kind(&(*e).into()))
            || error.downcast_ref::<StoreError>().is_some_and(StoreError::is_out_of_space)
            || answer(error).is_some_and(|status| says(status.message()));
        if full {
            return true;
        }
        next = error.source();
    }
    false
}

/// A gRPC status, as our errors hold one: a box is an error of its own.
fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    error.downcast_ref::<Status>().or_else(|| error.downcast_ref::<Box<Status>>().map(|status| &**status))
}

/// A message in one line, whatever containerd or a runtime put into it; its sources once, where it does not repeat
/// them. Of a gRPC status it has what the message itself says of it.
pub fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        if answer(e).is_some() {
            break;
        }
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = e.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, path::PathBuf};

    use super::*;
    use crate::{capsules::CapsuleError, containerd::ContainerdError, uppers::UpperError};

    fn answered(message: &str) -> CapsuleError {
        let source = Box::new(Status::unknown(message));
        ContainerdError::Call { what: "write a blob".to_owned(), source }.into()
    }

    #[test]
    fn a_full_disk_is_seen_through_what_wraps_it() {
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let disk = UpperError::Disk { step: "make", path: PathBuf::from("/a"), source: kind.into() };
            assert!(is(&disk), "{kind:?}");
        }
        let other = UpperError::Disk {
            step: "make",
            path: PathBuf::from("/no space left on device"),
            source: ErrorKind::PermissionDenied.into(),
        };
        assert!(!is(&other));
        assert!(is(&answered("write /var/lib/containerd/x: no space left on device")));
        assert!(is(&answered("mkdir /a: disk quota exceeded: unknown")));
        assert_eq!(one_line(&answered("no\nroom")), "containerd could not write a blob: no room");
        assert!(!is(&answered("unexpected commit digest")));
        let named = CapsuleError::ReservedAnnotation("no space left on device".to_owned());
        assert!(!is(&named));
    }

    #[test]
    fn the_kernels_own_words_are_known() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            assert!(says(&io::Error::from(errno).to_string()), "{errno}");
        }
    }
}
