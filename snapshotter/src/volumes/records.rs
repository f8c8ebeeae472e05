//! What is known of mounted volumes, on disk: one file for each, in the run directory, which ends with the kernel as the mounts do.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{
    VolumeError,
    model::{Record, VolumeId},
};

/// The directory of all of them.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// Those in a directory, made when it is not there, and what they say. What cannot be read is left where it is, and said.
    ///
    /// # Errors
    /// [`VolumeError::Disk`].
    pub fn open(dir: PathBuf) -> Result<(Self, BTreeMap<VolumeId, Record>), VolumeError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed("make", &dir))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))?.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
            match read {
                Ok(record) => _ = known.insert(record.id.clone(), record),
                Err(error) => tracing::error!(?path, %error, "the record of a volume cannot be read"),
            }
        }
        Ok((Self(dir), known))
    }

    /// Writes one down.
    ///
    /// # Errors
    /// [`VolumeError::Disk`]; then what was there before stands.
    pub fn put(&self, record: &Record) -> Result<(), VolumeError> {
        let path = self.path(&record.id);
        let new = path.with_extension("new");
        let text =
            serde_json::to_vec_pretty(record).map_err(io::Error::from).map_err(failed("write", &path))?;
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("write", &path))
    }

    /// Removes one; not there, it is a success.
    ///
    /// # Errors
    /// [`VolumeError::Disk`].
    pub fn remove(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// No id has a `+`.
    fn path(&self, id: &VolumeId) -> PathBuf {
        self.0.join(format!("{}.json", id.to_string().replace('/', "+")))
    }
}

pub(super) fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Disk { step, path, source }
}
