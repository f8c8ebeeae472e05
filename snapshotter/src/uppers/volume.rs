//! What volumes are written to: made, found and removed by who keeps the volumes, which has each of them once.

use std::time::SystemTime;

use super::{
    UpperError, Uppers,
    disk::Retired,
    model::{About, FORMAT, Over, Place},
    uses::{Key, Taken},
};
use crate::{fresh_id, volumes::model::VolumeId};

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Over which version; none for a directory that is no capsule's.
    pub over: Option<Over>,
    /// How many bytes it is to hold; the node's default when none.
    pub size: Option<u64>,
    /// Whom its root is to belong to.
    pub owner: Option<(u32, u32)>,
    /// And its mode.
    pub permissions: Option<u32>,
    /// It goes with its last mount.
    pub ephemeral: bool,
}

impl Uppers {
    /// Makes what a volume is written to. Durable when this returns. Blocks for as long as a file system takes to be made.
    ///
    /// # Errors
    /// [`UpperError`]; then nothing is there.
    pub fn make_volume(&self, id: &VolumeId, new: &NewVolume) -> Result<About, UpperError> {
        let about = About {
            format: FORMAT,
            over: new.over.clone(),
            attachment: fresh_id(),
            limit: Some(self.size_of(new.size)),
            since: SystemTime::now(),
            pending: true,
            owner: new.owner,
            permissions: new.permissions,
            ephemeral: new.ephemeral,
        };
        self.disk.make(&Key::Volume(id.clone()), &about)?;
        Ok(about)
    }

    /// How many bytes one holds of which this was asked.
    pub fn size_of(&self, asked: Option<u64>) -> u64 {
        asked.unwrap_or(self.size)
    }

    /// What is known of one, and where it is; nothing when it is not there.
    ///
    /// # Errors
    /// [`UpperError::Disk`], [`UpperError::About`].
    pub fn volume(&self, id: &VolumeId) -> Result<Option<(About, Place)>, UpperError> {
        let key = Key::Volume(id.clone());
        if !self.disk.has(&key) {
            return Ok(None);
        }
        Ok(Some((self.disk.about(&key)?, self.disk.place(&key))))
    }

    /// Whether what was written to one is being published.
    pub fn is_volume_read(&self, id: &VolumeId) -> bool {
        self.uses().is_read(&Key::Volume(id.clone()))
    }

    /// Says something else of one.
    ///
    /// # Errors
    /// [`UpperError::Disk`]; then what was said before stands.
    pub fn tell_of_volume(&self, id: &VolumeId, about: &About) -> Result<(), UpperError> {
        self.disk.tell(&Key::Volume(id.clone()), about)
    }

    /// All that are there, with what is known of them; nothing of those where that is damaged.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn volumes(&self) -> Result<Vec<(VolumeId, Option<About>)>, UpperError> {
        let of = |key| match key {
            Key::Volume(id) => Some((id.clone(), self.known(&Key::Volume(id)))),
            Key::Own(_) | Key::Named(_) => None,
        };
        Ok(self.disk.list()?.into_iter().filter_map(of).collect())
    }

    /// Removes one, with all that was written, also where what is known of it is damaged. Its name is free when this returns; not
    /// there, it is a success. Blocks.
    ///
    /// # Errors
    /// [`UpperError::VolumeRead`], [`UpperError::Disk`].
    pub fn remove_volume(&self, id: &VolumeId) -> Result<(), UpperError> {
        let key = Key::Volume(id.clone());
        self.uses().remove(key.clone()).map_err(|taken| match taken {
            Taken::Removed => UpperError::VolumeGoes(id.clone()),
            Taken::By(_) | Taken::Read => UpperError::VolumeRead(id.clone()),
        })?;
        self.retire(&key).transpose()?.map_or(Ok(()), Retired::remove)
    }
}
