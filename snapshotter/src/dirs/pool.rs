//! Files that layers share: `ROOT/pool/KEY` is one more name of a file of a committed layer, by what the file is.
//!
//! Two files of one key are the same in all that a container can see: content, mode, owner, modification time, extended
//! attributes. A layer that is about to be committed gets a link in the place of each file that the pool has (see
//! [`Dirs::share`]), and what the pool does not have is added when the commit has made it durable (see [`Dirs::offer`]): a
//! power cut can thus never leave a name here for content that did not reach the disk. An entry whose only name is the
//! one here belongs to nobody any more (see [`Dirs::sweep`]).
//!
//! All of it is a matter of space: what cannot be linked stays a file of its own.

use std::{
    collections::HashMap,
    error::Error,
    ffi::{CStr, CString},
    io,
    path::PathBuf,
    sync::atomic::Ordering,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fstat, futimens,
        linkat, openat, openat2, renameat, statat, unlinkat,
    },
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Dirs, DirsError, failed, make_directory};
use crate::{fresh_id, trees::hash};

/// Beginning of the names of links on their way to a layer. No key begins so.
const TEMPORARY: &str = "new-";
/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of Linux.
const XATTR_MAX: usize = 65_536;
/// What the keys are made of: another number when that changes.
const FORMAT: &[u8] = b"capsule pool 1\0";

type Key = [u8; 32];

/// What a layer has that the pool had not, to be added when it is committed.
#[derive(Debug, Default)]
pub struct Fresh {
    id: u64,
    /// Where each is in the layer, and whether the pool's own has as many names as a file can have.
    files: HashMap<Key, (Box<[u8]>, bool)>,
    /// Files that were replaced by a link, and their bytes.
    shared: (u64, u64),
}

/// Why a layer's files are shared no further.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// The layer is no longer what was unpacked.
    #[error(transparent)]
    Broken(DirsError),
    /// The rest stays as it is.
    #[error(transparent)]
    Enough(io::Error),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Enough(errno.into())
    }
}

impl Dirs {
    fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    fn open_pool(&self) -> Result<OwnedFd, DirsError> {
        let path = self.pool();
        if !path.exists() {
            make_directory(&path, 0o700).or_else(|e| if path.exists() { Ok(()) } else { Err(e) })?;
        }
        openat(CWD, &path, DIRECTORY, Mode::empty()).map_err(|e| failed("open", &path)(e.into()))
    }

    /// Puts a link in the place of each file of the snapshot `id` that the pool has. To be called when its layer is
    /// unpacked and before it is committed, while nobody else writes to it. What stands in the way of a link (too
    /// many, another file system, no space) leaves a file as it is.
    ///
    /// # Errors
    /// When a directory could not be given back the times that it had: the snapshot is not what was unpacked any more.
    pub fn share(&self, id: u64) -> Result<Fresh, DirsError> {
        let mut fresh = Fresh { id, ..Fresh::default() };
        let layer = self.upper(id);
        let done = (|| {
            let pool = self.open_pool().map_err(|e| Stop::Enough(io::Error::other(e)))?;
            let root = openat(CWD, &layer, DIRECTORY, Mode::empty())?;
            let mut sharing = Sharing { root, pool, fresh: &mut fresh, buffer: vec![0; XATTR_MAX] };
            sharing.run().map_err(|stop| match stop {
                Stop::Broken(error) => Stop::Broken(DirsError { path: layer.clone(), ..error }),
                enough => enough,
            })
        })();
        match done {
            Ok(()) => {}
            Err(Stop::Broken(error)) => return Err(error),
            Err(Stop::Enough(error)) => {
                let error: &dyn Error = &error;
                tracing::warn!(layer = %layer.display(), error, "not all files of the layer could be shared");
            }
        }
        let (files, bytes) = fresh.shared;
        tracing::debug!(layer = %layer.display(), files, bytes, fresh = fresh.files.len(), "shared files");
        Ok(fresh)
    }

    /// Adds to the pool what a layer has that was not there. To be called when the layer is committed, and so durable.
    /// What cannot be added is not shared with later layers.
    pub fn offer(&self, fresh: &Fresh) {
        let layer = self.upper(fresh.id);
        let offered = (|| {
            let pool = self.open_pool().map_err(io::Error::other)?;
            let root = openat(CWD, &layer, DIRECTORY, Mode::empty())?;
            fresh.files.iter().try_for_each(|(key, (path, full))| add(&pool, &root, key, path, *full))
        })();
        match offered {
            Ok(()) => {}
            // The snapshot may be removed as soon as it is committed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let error: &dyn Error = &error;
                tracing::warn!(layer = %layer.display(), error, "not all files of the layer can be shared");
            }
        }
    }

    /// Removes the files that no layer has any more, if a layer has gone since the last time. `at_start`: whether or not,
    /// and with the links of calls that a crash has ended. Gives how many went.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn sweep(&self, at_start: bool) -> Result<u64, DirsError> {
        let path = self.pool();
        if !(self.gone.swap(false, Ordering::AcqRel) || at_start) || !path.exists() {
            return Ok(0);
        }
        let pool = self.open_pool()?;
        let swept = sweep(&pool, at_start).map_err(|errno| failed("sweep", &path)(errno.into()));
        if swept.is_err() {
            self.gone.store(true, Ordering::Release);
        }
        swept
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn sweep(pool: &OwnedFd, at_start: bool) -> Result<u64, Errno> {
    let mut swept = 0;
    for entry in Dir::read_from(pool)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let goes = if name.to_bytes().starts_with(TEMPORARY.as_bytes()) {
            at_start
        } else {
            match statat(pool, name, AtFlags::SYMLINK_NOFOLLOW) {
                // Who links it at this moment keeps the file, and the pool does not: the next layer adds its own.
                Ok(stat) => stat.st_nlink == 1,
                Err(Errno::NOENT) => false,
                Err(errno) => return Err(errno),
            }
        };
        if goes && unlinkat(pool, name, AtFlags::empty()).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

/// Opens what the layer has at a path. No link is followed.
fn open_below(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

/// The directory that holds a path of the layer, open, and the name in it.
fn open_parent<'a>(root: &OwnedFd, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), Errno> {
    let at = path.iter().rposition(|b| *b == b'/');
    let (parent, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
    Ok((open_below(root, parent, OFlags::DIRECTORY)?, name))
}

fn name_of(key: &Key) -> String {
    crate::hex(key)
}

fn add(pool: &OwnedFd, root: &OwnedFd, key: &Key, path: &[u8], full: bool) -> io::Result<()> {
    let (parent, name) = open_parent(root, path)?;
    let entry = name_of(key);
    match linkat(&parent, name, pool, &entry, AtFlags::empty()) {
        Err(Errno::EXIST) if full => {
            let temporary = format!("{TEMPORARY}{}", fresh_id());
            linkat(&parent, name, pool, &temporary, AtFlags::empty())?;
            Ok(renameat(pool, &temporary, pool, &entry)?)
        }
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A layer whose files are being shared.
struct Sharing<'a> {
    root: OwnedFd,
    pool: OwnedFd,
    fresh: &'a mut Fresh,
    buffer: Vec<u8>,
}

impl Sharing<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let directory = open_below(&self.root, &path, OFlags::DIRECTORY)?;
            let before = fstat(&directory)?;
            let replaced = self.share_directory(&directory, &path, &mut pending);
            // Whatever stopped it: links that were put in have changed the directory's times.
            restore_times(&directory, &before).map_err(|errno| {
                Stop::Broken(DirsError {
                    step: "restore times in",
                    path: PathBuf::new(),
                    source: errno.into(),
                })
            })?;
            replaced?;
        }
        Ok(())
    }

    fn share_directory(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        pending: &mut Vec<Vec<u8>>,
    ) -> Result<(), Stop> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        for name in names {
            let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let below = || match path {
                [] => name.as_bytes().to_vec(),
                _ => [path, b"/", name.as_bytes()].concat(),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => pending.push(below()),
                // An empty file has no blocks to share, and a name in the pool is not cheaper than its inode.
                FileType::RegularFile if stat.st_size > 0 => {
                    self.share_file(directory.as_fd(), &name, below(), &stat)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn share_file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), Stop> {
        let Some(key) = self.key(directory, name, stat)? else { return Ok(()) };
        let entry = CString::new(name_of(&key)).unwrap_or_default(); // hexadecimal digits
        let mut full = false;
        // Not what a hand has put there, nor what a hand has changed since.
        let is_same = |found: &Stat| essence(found) == essence(stat);
        match statat(&self.pool, &entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if is_same(&found) => {
                match self.replace(self.pool.as_fd(), &entry, &found, directory, name, stat) {
                    Err(Errno::MLINK) => full = true,
                    done => return self.count(done, stat),
                }
            }
            Ok(_) => full = true,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        // One of this layer itself will do as well, but for the pool.
        if let Some((first, _)) = self.fresh.files.get(&key) {
            let (parent, first) = open_parent(&self.root, first)?;
            let first = CString::new(first).unwrap_or_default(); // as the kernel gave it
            let found = statat(&parent, &first, AtFlags::SYMLINK_NOFOLLOW)?;
            match self.replace(parent.as_fd(), &first, &found, directory, name, stat) {
                Err(Errno::MLINK) => {}
                done => return self.count(done, stat),
            }
        }
        self.fresh.files.insert(key, (path.into(), full));
        Ok(())
    }

    /// Puts a link to `from/source` in the place of `directory/name`; false if they are one file.
    fn replace(
        &self,
        from: BorrowedFd<'_>,
        source: &CStr,
        found: &Stat,
        directory: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> Result<bool, Errno> {
        if (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(false); // rename(2) of two names of one file would do nothing and leave both
        }
        let temporary = format!("{TEMPORARY}{}", fresh_id());
        linkat(from, source, &self.pool, &temporary, AtFlags::empty())?;
        if let Err(errno) = renameat(&self.pool, &temporary, directory, name) {
            unlinkat(&self.pool, &temporary, AtFlags::empty()).ok(); // the next start would
            return Err(errno);
        }
        Ok(true)
    }

    fn count(&mut self, replaced: Result<bool, Errno>, stat: &Stat) -> Result<(), Stop> {
        if replaced? {
            self.fresh.shared.0 += 1;
            self.fresh.shared.1 += u64::try_from(stat.st_size).unwrap_or_default();
        }
        Ok(())
    }

    /// `None` for a file that overlayfs has marked.
    fn key(&mut self, directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<Option<Key>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(directory, name, flags, Mode::empty())?;
        let mut sum = Sha256::new();
        sum.update(FORMAT);
        let Some(content) = hash(&file, || true)? else { return Ok(None) };
        sum.update(content);
        let (size, mode, uid, gid, mtime, nanoseconds) = essence(stat);
        sum.update(size.to_le_bytes());
        [mode, uid, gid].iter().for_each(|part| sum.update(part.to_le_bytes()));
        sum.update(mtime.to_le_bytes());
        sum.update(nanoseconds.to_le_bytes());
        let length = match rustix::fs::flistxattr(&file, &mut self.buffer[..]) {
            Err(Errno::NOTSUP) => 0,
            length => length?,
        };
        let mut names: Vec<Vec<u8>> =
            self.buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        if names.iter().any(|n| n.starts_with(b"trusted.overlay.") || n.starts_with(b"user.overlay.")) {
            return Ok(None);
        }
        names.sort();
        for name in names {
            let length = rustix::fs::fgetxattr(&file, name.as_slice(), &mut self.buffer[..])?;
            for part in [name.as_slice(), &self.buffer[..length]] {
                sum.update((part.len() as u64).to_le_bytes());
                sum.update(part);
            }
        }
        Ok(Some(sum.finalize().into()))
    }
}

/// What of a file's state belongs to it wherever it is.
fn essence(stat: &Stat) -> (i64, u32, u32, u32, i64, u64) {
    (stat.st_size, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec)
}

fn restore_times(directory: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    futimens(directory, &times)
}

#[cfg(test)]
mod tests;
