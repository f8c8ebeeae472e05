//! The store's file without holes: what it grows by is written with zeros.
//!
//! redb grows its file by leaps (it doubles) and fills it page by page. In a hole, the first write to a page makes the
//! file system allocate a block, and the `fdatasync` behind it has to commit the file system's journal with everybody's
//! changes in it: on ext4 three to four times as slow as over a block that is there. And on a disk that fills up, what the
//! store has grown to is its own: a Remove, which makes room, finds its pages there.

use std::{io, ops::Bound};

use redb::{BackendError, StorageBackend};

/// What is written at once.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A storage backend in which every byte was written.
#[derive(Debug)]
pub(super) struct Filled<B> {
    backend: B,
}

impl<B: StorageBackend> Filled<B> {
    /// Fills what `backend` grows by; what it has is left as it is.
    pub(super) fn new(backend: B) -> Self {
        Self { backend }
    }

    fn fill(&self, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let zeros = &ZEROS[..ZEROS.len().min(usize::try_from(to - at).unwrap_or(usize::MAX))];
            self.backend.write(at, zeros)?;
            at += zeros.len() as u64;
        }
        Ok(())
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<B: StorageBackend> StorageBackend for Filled<B> {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    /// Where there is no room for all of it, what was added is a hole after all: redb asks for twice its size, and a
    /// Remove, which makes room, needs but a few pages.
    fn set_len(&self, length: u64) -> io::Result<()> {
        let before = self.backend.len()?;
        self.backend.set_len(length)?;
        match self.fill(before, length) {
            Err(error) if is_out_of_space(&error) => {
                self.backend.set_len(before)?;
                self.backend.set_len(length)
            }
            filled => filled,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use redb::backends::{FileBackend, InMemoryBackend};

    use super::*;

    /// A disk with room for so many bytes, and what it says when they are used up.
    #[derive(Debug)]
    struct Full(InMemoryBackend, u64, io::ErrorKind);

    impl StorageBackend for Full {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.0.set_len(length)
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let end = offset + data.len() as u64;
            if end > self.1 {
                return Err(self.2.into());
            }
            self.0.write(offset, data)
        }
    }

    #[test]
    fn what_a_file_grows_by_is_allocated() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let file = fs::File::create_new(&path).unwrap();
        let filled = Filled::new(FileBackend::new(file).unwrap());
        for length in [5000, 1_000_000, 70_000] {
            filled.set_len(length).unwrap();
            filled.sync_data().unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.len(), length);
            assert!(metadata.blocks() * 512 >= length, "{length}");
        }
    }

    #[test]
    fn where_there_is_no_room_for_zeros_the_file_grows_by_a_hole() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let filled = Filled::new(Full(InMemoryBackend::new(), 600_000, kind));
            filled.set_len(500_000).unwrap();
            filled.write(499_999, b"x").unwrap();
            filled.set_len(1_000_000).unwrap();
            assert_eq!(filled.len().unwrap(), 1_000_000);
            let mut found = [1; 3];
            filled.read(499_999, &mut found).unwrap();
            assert_eq!(&found, b"x\0\0");
            assert_eq!(filled.write(999_999, b"x").unwrap_err().kind(), kind);
        }
    }
}
