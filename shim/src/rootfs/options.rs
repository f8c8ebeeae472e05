//! The options of a mount, in the words of `fstab`. Pure.

use overlayfs_utils::IdMapping;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

use super::PlanError;

/// The options of one mount.
pub struct Parsed {
    /// The source is a directory, not a file system.
    pub bind: bool,
    /// With what is mounted below it.
    pub recursive: bool,
    /// What is mounted already is changed.
    pub remount: bool,
    /// Read-only and the like.
    pub flags: MountFlags,
    /// Shared, private and the like.
    pub propagation: Option<MountPropagationFlags>,
    /// `uidmap`.
    pub uids: Option<IdMapping>,
    /// `gidmap`.
    pub gids: Option<IdMapping>,
    /// The source is a file, to be attached to a loop device.
    pub looped: bool,
    /// What is for the file system itself.
    pub data: Vec<String>,
}

impl Parsed {
    /// # Errors
    /// [`PlanError`] for one that this shim does not follow.
    pub fn parse(options: &[String]) -> Result<Self, PlanError> {
        let mut parsed = Self {
            bind: false,
            recursive: false,
            remount: false,
            flags: MountFlags::empty(),
            propagation: None,
            uids: None,
            gids: None,
            looped: false,
            data: Vec::new(),
        };
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), PlanError> {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" => self.remount = true,
            "loop" => self.looped = true,
            _ if option.starts_with("X-containerd.") => return Err(PlanError::Option(option.into())),
            _ => {
                if let Some(mapping) = option.strip_prefix("uidmap=") {
                    self.uids = Some(parse_mapping("uidmap", mapping)?);
                } else if let Some(mapping) = option.strip_prefix("gidmap=") {
                    self.gids = Some(parse_mapping("gidmap", mapping)?);
                } else if let Some((clear, flag)) = flag(option) {
                    self.flags.set(flag, !clear);
                } else if let Some(propagation) = propagation(option) {
                    self.propagation = Some(propagation);
                } else if !option.is_empty() {
                    self.data.push(option.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Takes the option away that asks for a loop device to go past the page cache; whether it was there.
    pub fn take_direct(&mut self) -> bool {
        let before = self.data.len();
        self.data.retain(|option| option != "direct-io");
        self.data.len() < before
    }
}

fn parse_mapping(option: &'static str, text: &str) -> Result<IdMapping, PlanError> {
    IdMapping::parse(text).map_err(|source| PlanError::Mapping { option, source })
}

/// The flag of an `fstab` word, and whether the word clears it.
fn flag(option: &str) -> Option<(bool, MountFlags)> {
    Some(match option {
        "async" => (true, MountFlags::SYNCHRONOUS),
        "atime" => (true, MountFlags::NOATIME),
        "defaults" => (false, MountFlags::empty()),
        "dev" => (true, MountFlags::NODEV),
        "diratime" => (true, MountFlags::NODIRATIME),
        "dirsync" => (false, MountFlags::DIRSYNC),
        "exec" => (true, MountFlags::NOEXEC),
        "mand" => (false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "noatime" => (false, MountFlags::NOATIME),
        "nodev" => (false, MountFlags::NODEV),
        "nodiratime" => (false, MountFlags::NODIRATIME),
        "noexec" => (false, MountFlags::NOEXEC),
        "nomand" => (true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
        "norelatime" => (true, MountFlags::RELATIME),
        "nostrictatime" => (true, MountFlags::STRICTATIME),
        "nosuid" => (false, MountFlags::NOSUID),
        "relatime" => (false, MountFlags::RELATIME),
        "ro" => (false, MountFlags::RDONLY),
        "rw" => (true, MountFlags::RDONLY),
        "strictatime" => (false, MountFlags::STRICTATIME),
        "suid" => (true, MountFlags::NOSUID),
        "sync" => (false, MountFlags::SYNCHRONOUS),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (recursive, kind) = match option.strip_prefix('r') {
        Some(kind) => (MountPropagationFlags::REC, kind),
        None => (MountPropagationFlags::empty(), option),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

/// The same as flags of fsmount(2).
pub fn attributes(flags: MountFlags) -> MountAttrFlags {
    let table = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    table.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, attribute)| attribute).collect()
}
