//! Which device a limit of I/O is about.
//!
//! `io.max` takes whole disks by their numbers and refuses partitions with `ENODEV` (`block/blk-cgroup.c`, `blkg_conf_open_bdev`).

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    sync::Arc,
};

use super::{
    amount::Amount,
    model::{Resources, Wanted},
};

/// The word for the disk of capsuled's own directory.
pub(super) const STORE: &str = "store";
const SYSFS: &str = "/sys/dev/block";

/// Why a disk is none.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is not there, or no disk.
    #[error("io.max: {disk} {reason}")]
    NoDisk {
        /// As it was written.
        disk: String,
        /// What it is.
        reason: String,
    },
    /// Two names of one.
    #[error("io.max: {disk} is named twice")]
    Twice {
        /// Its second name.
        disk: String,
    },
}

/// Gives the numbers of a disk for its name.
type Find = dyn Fn(&str) -> Result<String, DiskError> + Send + Sync;

/// The disks of this node: which numbers one has that is called so now. Over a reboot they may be another disk's.
#[derive(Clone)]
pub struct Disks {
    find: Arc<Find>,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks").finish_non_exhaustive()
    }
}

impl Disks {
    /// `root` is on the disk that is called `store`.
    pub fn new(root: &Path) -> Self {
        let root = root.to_owned();
        Self { find: Arc::new(move |disk| find(&root, disk)) }
    }

    /// Disks that there need not be.
    #[cfg(test)]
    pub fn of(find: impl Fn(&str) -> Result<String, DiskError> + Send + Sync + 'static) -> Self {
        Self { find: Arc::new(find) }
    }

    /// With numbers for the names of disks.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn settle(&self, wanted: &Wanted) -> Result<Resources, DiskError> {
        wanted.settle(|amount| self.settle_amount(amount))
    }

    /// The same of one amount.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn settle_amount(&self, amount: &Amount) -> Result<Amount, DiskError> {
        let twice = |disk: &str| DiskError::Twice { disk: disk.to_owned() };
        amount.clone().with_disks(|disk| self.find(disk), twice)
    }

    /// The numbers of the whole disk.
    ///
    /// # Errors
    /// [`DiskError::NoDisk`].
    pub fn find(&self, disk: &str) -> Result<String, DiskError> {
        (self.find)(disk)
    }
}

fn find(root: &Path, disk: &str) -> Result<String, DiskError> {
    let no_disk = |reason: String| DiskError::NoDisk { disk: disk.to_owned(), reason };
    let number = match disk {
        STORE => fs::metadata(root).map(|meta| meta.dev()).map_err(|e| no_disk(e.to_string()))?,
        path if path.starts_with('/') => {
            let meta = fs::metadata(path).map_err(|e| no_disk(format!("cannot be looked at: {e}")))?;
            if !meta.file_type().is_block_device() {
                return Err(no_disk("is no block device".to_owned()));
            }
            meta.rdev()
        }
        numbers => return whole(numbers).map_err(|e| no_disk(format!("is no block device here ({e})"))),
    };
    let numbers = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    whole(&numbers).map_err(|_| {
        no_disk(format!("({numbers}) is a file system of no single disk: name the disk, as /dev/vda"))
    })
}

/// Of a partition, its disk.
fn whole(numbers: &str) -> io::Result<String> {
    let device = fs::canonicalize(Path::new(SYSFS).join(numbers))?;
    if !device.join("partition").exists() {
        return Ok(numbers.to_owned());
    }
    let disk = device.parent().map(|disk| disk.join("dev")).ok_or(io::ErrorKind::NotFound)?;
    Ok(fs::read_to_string(disk)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_said() {
        let disks = Disks::new(Path::new("/proc"));
        for (disk, reason) in [
            (STORE, "no single disk"),
            ("/dev/null", "no block device"),
            ("/dev/not/there", "cannot be looked at"),
            ("4095:77", "no block device here"),
        ] {
            let error = disks.find(disk).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(disk), "{error}");
        }
    }

    #[test]
    fn a_partition_is_its_disk() {
        // Whatever disks this machine has: none is a partition afterwards.
        for entry in fs::read_dir(SYSFS).into_iter().flatten().flatten() {
            let numbers = entry.file_name().into_string().unwrap();
            let found = Disks::new(Path::new("/")).find(&numbers).unwrap();
            assert!(!Path::new(SYSFS).join(&found).join("partition").exists(), "{numbers} → {found}");
        }
    }
}
