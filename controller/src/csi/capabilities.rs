//! How a volume is to be used, and whether it can be. Pure.
//!
//! A volume that is only read is the same on every node that has its version. One that is written to lies on one node: it is never of the
//! modes `MULTI_NODE_*`.

use capsule_proto::csi::v1::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};
use tonic::Status;

/// How a volume is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Who may use it, and how.
    pub mode: Mode,
    /// Nothing is to be written, whatever the mode says: the mount flag `ro`.
    pub read_only: bool,
}

/// Why it cannot be used so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The call lacks something.
    Missing(&'static str),
    /// This driver has no such volumes, or not this one.
    Unsupported(String),
}

impl From<Unfit> for Status {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Missing(what) => Self::invalid_argument(format!("{what} is missing")),
            Unfit::Unsupported(what) => Self::invalid_argument(what),
        }
    }
}

impl Asked {
    /// From what was sent.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn parse(capability: &VolumeCapability) -> Result<Self, Unfit> {
        let unsupported = |what: String| Err(Unfit::Unsupported(what));
        let mount = match &capability.access_type {
            None => return Err(Unfit::Missing("access_type of the volume capability")),
            Some(AccessType::Block(_)) => {
                return unsupported(
                    "there are no block volumes here: ask for volumeMode Filesystem".to_owned(),
                );
            }
            Some(AccessType::Mount(mount)) => mount,
        };
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        let mode = match Mode::try_from(mode) {
            Ok(Mode::Unknown) => return Err(Unfit::Missing("access_mode of the volume capability")),
            Ok(mode) => mode,
            Err(_) => return unsupported(format!("access mode {mode} is not known")),
        };
        if !mount.fs_type.is_empty() {
            return unsupported(format!(
                "file system type {:?} cannot be chosen: leave fsType out",
                mount.fs_type
            ));
        }
        if !mount.volume_mount_group.is_empty() {
            return unsupported(
                "volumes are mounted for no group: this driver has no VOLUME_MOUNT_GROUP".to_owned(),
            );
        }
        // Flags may be secret: they are not told.
        if mount.mount_flags.iter().any(|flag| flag != "ro") {
            return unsupported("of mount options there is only \"ro\"".to_owned());
        }
        Ok(Self { mode, read_only: !mount.mount_flags.is_empty() })
    }

    /// All of them.
    ///
    /// # Errors
    /// [`Unfit`]; also when there is none.
    pub fn all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Unfit> {
        if capabilities.is_empty() {
            return Err(Unfit::Missing("volume capability"));
        }
        capabilities.iter().map(Self::parse).collect()
    }

    /// Whether a volume can be used so that is written to, or only read.
    ///
    /// # Errors
    /// [`Unfit::Unsupported`].
    pub fn fits(self, writable: bool) -> Result<(), Unfit> {
        let mode = self.mode.as_str_name();
        match (self.mode, writable) {
            (Mode::SingleNodeReaderOnly, _) | (Mode::MultiNodeReaderOnly, false) => Ok(()),
            (Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter, _)
                if writable || self.read_only =>
            {
                Ok(())
            }
            (_, true) => Err(Unfit::Unsupported(format!(
                "access mode {mode} is not possible: what is written to lies on one node; ask for ReadWriteOnce"
            ))),
            (_, false) => Err(Unfit::Unsupported(format!(
                "access mode {mode} is not possible: nothing is written to this volume; ask for ReadOnlyMany, or for parameter mode rw"
            ))),
        }
    }

    /// The same of a volume that is on this node: who asks for many nodes has pods on this one alone, for it is on no other.
    ///
    /// # Errors
    /// [`Unfit::Unsupported`].
    pub fn fits_here(self, writable: bool) -> Result<(), Unfit> {
        let many = [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter];
        if writable && many.contains(&self.mode) { Ok(()) } else { self.fits(writable) }
    }

    /// Whether all that use it only read.
    pub fn only_reads(self) -> bool {
        self.read_only || matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
    }

    /// Whether it can be at one path alone: the table of the specification, NodePublishVolume, for drivers that have
    /// `SINGLE_NODE_MULTI_WRITER`.
    pub fn is_exclusive(self) -> bool {
        matches!(
            self.mode,
            Mode::SingleNodeWriter | Mode::SingleNodeReaderOnly | Mode::SingleNodeSingleWriter
        )
    }
}

#[cfg(test)]
mod tests {
    use capsule_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn capability(mode: Mode, mount: MountVolume) -> VolumeCapability {
        let access_mode = Some(AccessMode { mode: mode.into() });
        VolumeCapability { access_mode, access_type: Some(AccessType::Mount(mount)) }
    }

    #[test]
    fn modes_fit_what_is_read_and_what_is_written_to() {
        for (mode, read, written) in [
            (Mode::SingleNodeWriter, false, true),
            (Mode::SingleNodeReaderOnly, true, true),
            (Mode::MultiNodeReaderOnly, true, false),
            (Mode::MultiNodeSingleWriter, false, false),
            (Mode::MultiNodeMultiWriter, false, false),
            (Mode::SingleNodeSingleWriter, false, true),
            (Mode::SingleNodeMultiWriter, false, true),
        ] {
            let asked = Asked::parse(&capability(mode, MountVolume::default())).unwrap();
            assert_eq!(asked.fits(false).is_ok(), read, "{mode:?}");
            assert_eq!(asked.fits(true).is_ok(), written, "{mode:?}");
            assert!(asked.fits_here(true).is_ok() && asked.fits_here(false).is_ok() == read, "{mode:?}");
            assert_eq!(asked.only_reads(), mode.as_str_name().ends_with("READER_ONLY"), "{mode:?}");
        }
    }

    #[test]
    fn the_flag_makes_a_writer_a_reader() {
        let flags = |flags: &[&str]| MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..MountVolume::default()
        };
        let asked = Asked::parse(&capability(Mode::SingleNodeWriter, flags(&["ro"]))).unwrap();
        assert!(asked.fits(false).is_ok() && asked.only_reads());
        let error =
            Asked::parse(&capability(Mode::SingleNodeWriter, flags(&["ro", "password=1"]))).unwrap_err();
        assert!(!format!("{error:?}").contains("password"), "{error:?}");
    }

    #[test]
    fn what_is_not_here_is_refused() {
        let none = VolumeCapability::default();
        assert_eq!(Asked::parse(&none), Err(Unfit::Missing("access_type of the volume capability")));
        let unknown = capability(Mode::Unknown, MountVolume::default());
        assert_eq!(Asked::parse(&unknown), Err(Unfit::Missing("access_mode of the volume capability")));
        assert_eq!(Asked::all(&[]), Err(Unfit::Missing("volume capability")));
        let block = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            ..capability(Mode::SingleNodeWriter, MountVolume::default())
        };
        let ext4 = MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() };
        let group = MountVolume { volume_mount_group: "1".to_owned(), ..MountVolume::default() };
        for wrong in
            [block, capability(Mode::SingleNodeWriter, ext4), capability(Mode::SingleNodeWriter, group)]
        {
            assert!(matches!(Asked::parse(&wrong), Err(Unfit::Unsupported(_))), "{wrong:?}");
        }
        let future = VolumeCapability {
            access_mode: Some(AccessMode { mode: 99 }),
            ..capability(Mode::SingleNodeWriter, MountVolume::default())
        };
        assert!(matches!(Asked::parse(&future), Err(Unfit::Unsupported(_))));
    }
}
