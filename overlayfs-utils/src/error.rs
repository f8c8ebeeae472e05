//! What a failed mount operation reports: the step, its object, the errno and the kernel's own words.

use std::fmt;

use rustix::io::Errno;
use thiserror::Error;

/// The system call that failed, and what it was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// `fsopen`: open a filesystem context.
    OpenContext,
    /// `fsconfig`: set an option of the filesystem context.
    SetOption,
    /// `fsconfig("lowerdir+")`: add a layer.
    AddLayer,
    /// `fsconfig(FSCONFIG_CMD_CREATE)`: make the superblock.
    CreateSuperblock,
    /// `fsmount`: make a detached mount of the superblock.
    Mount,
    /// `open_tree(OPEN_TREE_CLONE)`: clone a tree.
    CloneTree,
    /// `mount_setattr`: change a mount's attributes.
    SetAttributes,
    /// `move_mount`: attach.
    Attach,
    /// `move_mount(MOVE_MOUNT_BENEATH)`: attach under the mount on top.
    AttachBeneath,
    /// `fchdir` to the directory that holds the mount point.
    EnterParent,
    /// `umount2`.
    Unmount,
    /// `statx`: read a mount's id.
    ReadMountId,
    /// `unshare`, and a tmpfs: make a place that only one thread sees.
    Stage,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenContext => "open a filesystem context (fsopen)",
            Self::SetOption => "set a filesystem option (fsconfig)",
            Self::AddLayer => "add a layer (fsconfig lowerdir+)",
            Self::CreateSuperblock => "create the overlay (fsconfig create)",
            Self::Mount => "make a detached mount (fsmount)",
            Self::CloneTree => "clone a tree (open_tree)",
            Self::SetAttributes => "set mount attributes (mount_setattr)",
            Self::Attach => "attach (move_mount)",
            Self::AttachBeneath => "attach beneath (move_mount)",
            Self::EnterParent => "enter the mount point's directory (fchdir)",
            Self::Unmount => "unmount (umount2)",
            Self::ReadMountId => "read the mount id (statx)",
            Self::Stage => "set up a mount namespace",
        })
    }
}

/// A mount operation that the kernel refused.
///
/// The message names the step, the object (a target, a layer or an option) and what the kernel wrote to the mount
/// context's log; the errno is the error's source as well as part of [`Self::errno`].
#[derive(Debug, Error)]
#[error("cannot {step} for {object}{}", Log(log))]
pub struct MountError {
    /// What was tried.
    pub step: Step,
    /// The target, layer or option it was tried on, as a person can read it.
    pub object: String,
    /// What the kernel wrote to the filesystem context's log, oldest first, without its level prefix.
    pub log: Vec<String>,
    #[source]
    errno: Errno,
}

impl MountError {
    pub(crate) fn new(step: Step, object: impl Into<String>, errno: Errno) -> Self {
        Self { step, object: object.into(), log: Vec::new(), errno }
    }

    pub(crate) fn with_log(mut self, log: Vec<String>) -> Self {
        self.log = log;
        self
    }

    /// Names another object, where the kernel was told of it in a way that says nothing to a person.
    pub(crate) fn about(mut self, object: String) -> Self {
        self.object = object;
        self
    }

    /// The kernel's error number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

struct Log<'a>(&'a [String]);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (kernel: {})", self.0.join("; ")) }
    }
}
