//! What a process knows of a container's journal without reading it again.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    error::JournalError,
    journal::{FILE, Init, Journal},
};

/// The journal of one bundle as this process has last read or written it. A container with many attachments has a long
/// one, which is not read again as long as the file is the same.
#[derive(Debug, Default)]
pub struct Known(Option<(Stamp, Journal)>);

/// Which file it was. Each write makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(file)?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { inode: meta.ino(), size: meta.size(), changed })
    }
}

impl Known {
    /// As [`Journal::read`].
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn read(&mut self, bundle: &Path, init: Init) -> Result<Journal, JournalError> {
        // Of before the reading: of a file that changes meanwhile, it is the wrong one, and it is read again.
        let stamp = Stamp::of(&bundle.join(FILE)).ok();
        match &self.0 {
            Some((known, journal)) if Some(*known) == stamp && journal.init == init => Ok(journal.clone()),
            _ => {
                let journal = Journal::read(bundle, init)?;
                self.0 = stamp.map(|stamp| (stamp, journal.clone()));
                Ok(journal)
            }
        }
    }

    /// As [`Journal::write`].
    ///
    /// # Errors
    /// As [`Journal::write`].
    pub fn write(&mut self, journal: &Journal, bundle: &Path) -> Result<(), JournalError> {
        self.0 = None;
        journal.write(bundle)?;
        self.0 = Stamp::of(&bundle.join(FILE)).ok().map(|stamp| (stamp, journal.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use overlayfs_utils::ContainerPath;

    use super::super::{
        journal::Draining,
        model::{AttachmentId, Content},
    };
    use super::*;
    use crate::seccomp::Denied;

    fn draining() -> Draining {
        Draining {
            id: AttachmentId::parse("a".into()).unwrap(),
            content: Content {
                capsule: "tz".into(),
                version: "1".into(),
                digest: "sha256:0".into(),
                layers: Vec::new(),
                env: Vec::new(),
                denied: Denied::default(),
            },
            target: ContainerPath::parse("/opt").unwrap(),
            blocks: Vec::new(),
            since: 0,
        }
    }

    #[test]
    fn what_is_known_is_what_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let (init, other) = (Init { pid: 1, start_time: 2 }, Init { pid: 1, start_time: 3 });
        let mut known = Known::default();
        let mut journal = known.read(dir.path(), init).unwrap();
        journal.draining.push(draining());
        // What a call did not write, the next one does not see.
        assert_eq!(known.read(dir.path(), init).unwrap(), Journal::new(init));
        known.write(&journal, dir.path()).unwrap();
        assert_eq!(known.read(dir.path(), init).unwrap(), journal);
        assert_eq!(known.read(dir.path(), other).unwrap(), Journal::new(other));
        // Somebody else's writing is seen, and that the file is gone.
        let mut longer = journal.clone();
        longer.draining.push(draining());
        longer.write(dir.path()).unwrap();
        assert_eq!(known.read(dir.path(), init).unwrap(), longer);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(known.read(dir.path(), init).unwrap(), Journal::new(init));
        // One that could not be written is not known.
        known.write(&longer, dir.path()).unwrap();
        fs::create_dir(dir.path().join(format!(".{FILE}.new"))).unwrap();
        known.write(&journal, dir.path()).unwrap_err();
        assert_eq!(known.read(dir.path(), init).unwrap(), longer);
    }
}
