//! What this kernel can do, found by doing it where nothing lasts.

use std::{fmt, os::fd::BorrowedFd};

use linux_raw_sys::general::{STATMOUNT_SB_BASIC, mount_attr};
use rustix::io::Errno;
use thiserror::Error;

use crate::{
    detached::{DetachedMount, LayerDir, LayersBy, Tree},
    error::MountError,
    namespace::{NamespaceError, in_new_mount_namespace},
    plan::{Lower, OverlayPlan},
    point::{MountId, MountPoint, Unmounted, attach, swap},
    stage::Stage,
    sys,
};

/// A kernel's version: what decides about support; features are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl KernelVersion {
    /// The oldest kernel supported.
    pub const OLDEST: Self = Self { major: 6, minor: 6 };

    /// Parses a release such as "6.6.13-1-amd64", as `uname` gives it. Nothing if it has no two leading numbers.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let (major, rest) = release.split_once('.')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major: major.parse().ok()?, minor: rest[..end].parse().ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why this kernel, or this process on it, cannot do what capsules need.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It is too old.
    #[error("Linux {found} is too old: capsules need Linux {} or newer", KernelVersion::OLDEST)]
    TooOld {
        /// What `uname` says.
        found: KernelVersion,
    },
    /// `uname` says something else than a version.
    #[error("cannot tell the kernel's version from its release {0:?}")]
    Release(String),
    /// No mount namespace of one's own can be made.
    #[error("cannot make a mount namespace to probe the kernel in: CAP_SYS_ADMIN is needed")]
    Namespace(#[from] NamespaceError),
    /// A directory for the probe could not be set up.
    #[error("cannot set up the probe")]
    SetUp(#[source] Errno),
    /// No overlay can be mounted with the new mount API.
    #[error("this kernel cannot mount an overlay with the new mount API: is overlayfs enabled?")]
    Overlay(#[source] MountError),
    /// No mount can be put beneath another.
    #[error("this kernel cannot mount beneath another mount")]
    Beneath(#[source] MountError),
}

/// What the kernel can do. All that is required is there if this value is; its fields are what may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The kernel.
    pub version: KernelVersion,
    /// How layers are named.
    pub layers_by: LayersBy,
    /// Unique mount ids (`STATX_MNT_ID_UNIQUE`, Linux 6.8).
    pub unique_mount_ids: bool,
    /// `mount_setattr` (Linux 5.12), which id-mapping needs.
    pub mount_setattr: bool,
    /// `statmount` and `listmount` (Linux 6.8).
    pub statmount: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |b| if b { "yes" } else { "no" };
        let by = match self.layers_by {
            LayersBy::Descriptor => "descriptor",
            LayersBy::Path => "path",
            LayersBy::Joined => "paths in one option",
        };
        write!(
            f,
            "Linux {}; mount beneath: yes; layers by {by}; unique mount ids: {}; mount_setattr: {}; statmount: {}",
            self.version,
            yes(self.unique_mount_ids),
            yes(self.mount_setattr),
            yes(self.statmount)
        )
    }
}

/// Finds out what the running kernel can do. Nothing lasts: it happens in a mount namespace that ends with the call.
///
/// # Errors
/// [`ProbeError`] when something required is missing, the kernel's age first.
pub fn probe() -> Result<Features, ProbeError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = check_version(&release)?;
    in_new_mount_namespace(|| probe_here(version))?
}

/// The version of a release, if it is new enough. Pure.
fn check_version(release: &str) -> Result<KernelVersion, ProbeError> {
    match KernelVersion::parse(release) {
        None => Err(ProbeError::Release(release.to_owned())),
        Some(found) if found < KernelVersion::OLDEST => Err(ProbeError::TooOld { found }),
        Some(version) => Ok(version),
    }
}

/// Runs on a thread whose mount namespace ends with it.
fn probe_here(version: KernelVersion) -> Result<Features, ProbeError> {
    let set_up = |error: MountError| ProbeError::SetUp(error.errno());
    let stage = Stage::open().map_err(set_up)?;
    let [layer, empty, target] = ["layer", "empty", "target"].map(|name| stage.make(name).map_err(set_up));
    let (layer, empty, target) = (layer?, empty?, target?);
    let (layers_by, overlay) = probe_layers(&layer, &empty)?;
    let unique_mount_ids = overlay.id().map_err(ProbeError::Overlay)?.unique;
    check_beneath(stage, &overlay, &layer, &target)?;
    Ok(Features {
        version,
        layers_by,
        unique_mount_ids,
        mount_setattr: has_mount_setattr(overlay.fd()),
        statmount: has_statmount(overlay.fd()),
    })
}

/// The best way to name layers that works, and an overlay made that way.
fn probe_layers(layer: &LayerDir, empty: &LayerDir) -> Result<(LayersBy, DetachedMount), ProbeError> {
    let plan =
        OverlayPlan::ro(vec![Lower::Dir(layer)], empty).map_err(|_| ProbeError::SetUp(Errno::INVAL))?;
    let [best, rest @ ..] = LayersBy::ALL;
    let mut tried = DetachedMount::overlay(&plan, best, "probe").map(|mount| (best, mount));
    for by in rest {
        tried = tried.or_else(|_| DetachedMount::overlay(&plan, by, "probe").map(|mount| (by, mount)));
    }
    tried.map_err(ProbeError::Overlay)
}

fn check_beneath(
    stage: Stage,
    overlay: &DetachedMount,
    layer: &LayerDir,
    target: &LayerDir,
) -> Result<(), ProbeError> {
    attach(overlay, target.fd(), "target".as_ref()).map_err(ProbeError::Overlay)?;
    let next = Tree::clone_of(layer).map_err(ProbeError::Overlay)?.into_mount();
    let old = overlay.id().map_err(ProbeError::Beneath)?;
    let point = MountPoint::new(stage.into_fd(), "target".into(), "target".into());
    match swap(&next, &point, old).map_err(ProbeError::Beneath)? {
        Unmounted::Done => Ok(()),
        Unmounted::Busy | Unmounted::NotThere => Err(ProbeError::SetUp(Errno::BUSY)),
    }
}

/// An empty change is accepted wherever the call is known.
fn has_mount_setattr(mount: BorrowedFd<'_>) -> bool {
    let nothing = mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    sys::mount_setattr(mount, &nothing, false).is_ok()
}

fn has_statmount(mount: BorrowedFd<'_>) -> bool {
    let root = u64::MAX; // LSMT_ROOT
    let listed = sys::listmount(root, &mut [0; 4]).is_ok();
    let unique = MountId::of_fd(mount, "the probe").is_ok_and(|id| id.unique);
    // Any id will do: an unknown one is ENOENT, an unknown call ENOSYS.
    let known = sys::statmount(1, u64::from(STATMOUNT_SB_BASIC), &mut [0; 128]) != Err(Errno::NOSYS);
    listed && unique && known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_the_old_refused_by_number() {
        for (release, want) in [
            ("6.6.13-1-amd64", Some((6, 6))),
            ("6.18", Some((6, 18))),
            ("7.1-rc2", Some((7, 1))),
            ("6.12+deb13-amd64", Some((6, 12))),
            ("", None),
            ("6", None),
            ("linux-6.6", None),
            ("6.x", None),
        ] {
            assert_eq!(KernelVersion::parse(release).map(|v| (v.major, v.minor)), want, "{release}");
        }
        assert!(check_version("6.6.0").is_ok() && check_version("10.0.1").is_ok());
        let old = check_version("6.5.9").unwrap_err().to_string();
        assert_eq!(old, "Linux 6.5 is too old: capsules need Linux 6.6 or newer");
        assert!(check_version("unknown").is_err());
    }

    #[test]
    fn privileged_this_kernel_is_supported() {
        let features = probe().unwrap();
        assert!(features.to_string().starts_with("Linux 6."), "{features}");
        assert!(features.mount_setattr);
    }
}
