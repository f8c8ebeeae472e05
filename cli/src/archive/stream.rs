//! Reads the planned files and hands out the archive in chunks. Touches the file system, by `walk::open_below`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::encode::{END, encode_header, padding};
use super::plan::{Content, Member};
use super::walk::{Stamp, open_below};
use super::{Error, join};

/// Largest chunk handed out, in bytes: well under the 4 MiB that gRPC receivers accept.
pub const CHUNK: usize = 1 << 20;
/// How much is read at once of a file that is only hashed.
const HASHED: usize = 64 << 10;

/// See [`super::Plan::stream`].
pub fn stream(
    root: &OwnedFd,
    dir: &Path,
    members: &[Member],
    emit: impl FnMut(Vec<u8>) -> bool,
) -> Result<(), Error> {
    let mut chunks = Chunks { filling: Vec::with_capacity(CHUNK), emit };
    match stream_members(root, dir, members, &mut chunks) {
        Ok(()) | Err(Halt::Stopped) => Ok(()),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Nobody takes chunks any more.
struct Stopped;

/// Why streaming ends early.
enum Halt {
    Stopped,
    Failed(Error),
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

fn stream_members(
    root: &OwnedFd,
    dir: &Path,
    members: &[Member],
    chunks: &mut Chunks<impl FnMut(Vec<u8>) -> bool>,
) -> Result<(), Halt> {
    for member in members {
        chunks.push(&encode_header(member))?;
        if let Some(content) = &member.content {
            stream_content(root, content, chunks).map_err(|why| why.halt(dir, content))?;
        }
    }
    chunks.push(&END)?;
    Ok(chunks.flush()?)
}

/// Why a file's content could not be handed out in full.
enum Broken {
    Stopped,
    Io(&'static str, Errno),
    Changed(String),
}

impl From<Stopped> for Broken {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Broken {
    fn halt(self, dir: &Path, content: &Content) -> Halt {
        let path = join(dir, &content.path);
        match self {
            Self::Stopped => Halt::Stopped,
            Self::Io(step, errno) => Halt::Failed(Error::Read { step, path, errno }),
            Self::Changed(what) => Halt::Failed(Error::Changed { path, what }),
        }
    }
}

/// The file is compared with its stamp before the first byte and after the last: a replaced, grown, shrunk or
/// rewritten file is an error even when as many bytes could be read.
fn stream_content(
    root: &OwnedFd,
    content: &Content,
    chunks: &mut Chunks<impl FnMut(Vec<u8>) -> bool>,
) -> Result<(), Broken> {
    let fd = open_below(root.as_fd(), &content.path).map_err(|e| Broken::Io("open", e))?;
    check_stamp(&fd, content)?;
    let file = File::from(fd);
    let mut offset = 0;
    while offset < content.size {
        let read = chunks.fill(&file, offset, content.size - offset)?;
        if read == 0 {
            return Err(Broken::Changed(format!("it ends at {offset} of {} bytes", content.size)));
        }
        offset += read;
    }
    check_stamp(&file, content)?;
    chunks.push(&END[..padding(content.size)])?;
    Ok(())
}

/// SHA-256 of a file that was seen to have this stamp, and still has it afterwards.
///
/// # Errors
/// As [`super::Plan::stream`].
pub fn hash(root: &OwnedFd, dir: &Path, path: &[u8], stamp: Stamp) -> Result<[u8; 32], Error> {
    let content = Content { path: path.to_vec(), size: stamp.size, stamp };
    hash_content(root, &content).map_err(|why| match why.halt(dir, &content) {
        Halt::Failed(error) => error,
        // Nobody takes chunks here that could stop.
        Halt::Stopped => Error::Changed { path: join(dir, path), what: "it was not read".to_owned() },
    })
}

fn hash_content(root: &OwnedFd, content: &Content) -> Result<[u8; 32], Broken> {
    let fd = open_below(root.as_fd(), &content.path).map_err(|e| Broken::Io("open", e))?;
    check_stamp(&fd, content)?;
    let (mut sum, mut piece, mut file) = (Sha256::new(), vec![0; HASHED], File::from(fd));
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => sum.update(&piece[..length]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Broken::Io("read", Errno::from_io_error(&e).unwrap_or(Errno::IO))),
        }
    }
    check_stamp(&file, content)?;
    Ok(sum.finalize().into())
}

fn check_stamp(fd: impl AsFd, content: &Content) -> Result<(), Broken> {
    let now = Stamp::of(&rustix::fs::fstat(fd).map_err(|e| Broken::Io("read", e))?);
    let then = content.stamp;
    if now == then {
        return Ok(());
    }
    Err(Broken::Changed(if (now.device, now.inode) != (then.device, then.inode) {
        "it was replaced".to_owned()
    } else if now.size != then.size {
        format!("from {} to {} bytes", then.size, now.size)
    } else {
        "it was written to".to_owned()
    }))
}

/// Collects bytes into chunks and hands out the full ones.
struct Chunks<F> {
    filling: Vec<u8>,
    emit: F,
}

impl<F: FnMut(Vec<u8>) -> bool> Chunks<F> {
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.filling.len()));
            self.filling.extend_from_slice(now);
            bytes = later;
            self.flush_full()?;
        }
        Ok(())
    }

    /// Reads at most `limit` bytes into the chunk being filled; 0 at the file's end.
    fn fill(&mut self, file: &File, offset: u64, limit: u64) -> Result<u64, Broken> {
        let start = self.filling.len();
        let room = (CHUNK - start) as u64; // not 0: full chunks are handed out at once
        self.filling.resize(start + room.min(limit) as usize, 0);
        let read = loop {
            match file.read_at(&mut self.filling[start..], offset) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.filling.truncate(start + *read.as_ref().unwrap_or(&0));
        let read = read.map_err(|e| Broken::Io("read", Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        self.flush_full()?;
        Ok(read as u64)
    }

    fn flush_full(&mut self) -> Result<(), Stopped> {
        if self.filling.len() < CHUNK { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.filling, Vec::with_capacity(CHUNK));
        if (self.emit)(full) { Ok(()) } else { Err(Stopped) }
    }
}
