//! What was written as a layer of an OCI image, read while it may still be written to.
//!
//! Overlayfs's marks become those of the image specification (`layer.md`, "Whiteouts"): a character device 0:0 is
//! `.wh.NAME`, an opaque directory has `.wh..wh..opq`. Paths are in the order of their bytes within each directory; times
//! and owners are those of the files. Of extended attributes `security.capability` and `user.*` are kept, as of a
//! version that is built from a tree. Sockets are left out.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    thread::sleep,
    time::Duration,
};

use overlayfs_utils::{MADE, made_as};
use rustix::{
    io::Errno,
    time::{ClockId, clock_gettime},
};
use sha2::{Digest as _, Sha256};

use super::UpperError;
use crate::trees::{Attributes, Entry, Item, Kind, Layers, TreeError, open_file, read_layer};

/// Longest name and link that a header itself can hold.
const NAME_LENGTH: usize = 100;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// How much of a path a message says.
const SHOWN: usize = 160;

/// Why there is no layer.
#[derive(Debug)]
pub enum Broken {
    /// It was written to meanwhile.
    Changed(String),
    /// The reader of the tar has gone.
    Unwanted,
    /// Something else.
    Failed(UpperError),
}

impl From<TreeError> for Broken {
    fn from(error: TreeError) -> Self {
        match &error {
            // Listed a moment ago.
            TreeError::Read { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::Changed(format!("{} was removed while it was read", path.display()))
            }
            TreeError::Read { path, source, .. }
                if source.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) =>
            {
                Self::Failed(UpperError::LongPath(path.to_string_lossy().chars().take(SHOWN).collect()))
            }
            _ => Self::Failed(error.into()),
        }
    }
}

/// Writes the layer of number `layer` to `out` as a tar, and gives the number of its members that somebody has written: not the
/// directories that the shim has made for overlays to lie over.
///
/// # Errors
/// [`Broken`]; what is written then is not to be used.
pub fn write_layer(layers: &Layers, layer: usize, out: impl Write) -> Result<usize, Broken> {
    let mut tar = tar::Builder::new(out);
    let mut writing = Writing { layers, layer, links: HashMap::new(), members: 0 };
    let mut before = Seen::default();
    read_layer(layers, layer, |item| {
        before.add(item);
        writing.write(&mut tar, item)
    })?;
    let mut after = Seen::default();
    read_layer(layers, layer, |item| {
        after.add(item);
        Ok::<_, Broken>(())
    })?;
    if before.sum() != after.sum() {
        return Err(Broken::Changed("files were written to while they were read".to_owned()));
    }
    tar.into_inner().and_then(|mut out| out.flush()).map_err(|_| Broken::Unwanted)?;
    Ok(writing.members)
}

/// What tells one state of the tree from another.
#[derive(Default)]
struct Seen(Sha256);

impl Seen {
    fn add(&mut self, item: &Item) {
        match item {
            Item::Whiteout(path) => self.0.update([b"w", path.as_slice(), b"\0"].concat()),
            Item::Entry { entry, opaque } => {
                let Entry { path, kind, mode, uid, gid, mtime, ctime, inode, .. } = entry;
                self.0.update([path.as_slice(), b"\0"].concat());
                self.0
                    .update(format!("{kind:?} {mode} {uid} {gid} {mtime:?} {ctime:?} {inode:?} {opaque}\n"));
            }
        }
    }

    fn sum(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

fn is_as_made(entry: &Entry) -> bool {
    let made = entry.xattrs.get(MADE.as_bytes());
    made.is_some_and(|made| *made == made_as(entry.mode, entry.uid, entry.gid).into_bytes())
        && !entry.xattrs.keys().any(|name| is_kept(name))
}

/// Whether an image has this extended attribute.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability".as_slice() || name.starts_with(b"user.")
}

/// Waits until a write gives a file that was changed at `ctime` another time. Before Linux 6.13 the kernel takes the time of its last
/// tick, every 1 to 10 ms, and what is written twice in one tick has the same.
fn await_next_tick(ctime: (i64, u32)) {
    loop {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        if !is_this_tick(ctime, (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default())) {
            return;
        }
        sleep(Duration::from_millis(1));
    }
}

/// Whether what is written `now` may have that time. A clock that was set back gives it another one anyway.
fn is_this_tick(ctime: (i64, u32), now: (i64, u32)) -> bool {
    (now..(now.0 + 1, now.1)).contains(&ctime)
}

struct Writing<'a> {
    layers: &'a Layers,
    layer: usize,
    /// The first path of each file that has been written.
    links: HashMap<(u64, u64), Vec<u8>>,
    members: usize,
}

impl Writing<'_> {
    fn write<W: Write>(&mut self, tar: &mut tar::Builder<W>, item: &Item) -> Result<(), Broken> {
        match item {
            Item::Whiteout(path) => self.member(tar, &mut mark(beside(path)), io::empty()),
            Item::Entry { entry, opaque } => {
                let name = entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
                if name.starts_with(WHITEOUT) {
                    let path = String::from_utf8_lossy(&entry.path).into_owned();
                    return Err(Broken::Failed(UpperError::WhiteoutName(path)));
                }
                self.write_entry(tar, entry)?;
                if !opaque && is_as_made(entry) {
                    self.members -= 1;
                }
                if *opaque {
                    let path = [entry.path.as_slice(), b"/", OPAQUE].concat();
                    self.member(tar, &mut mark(path), io::empty())?;
                }
                Ok(())
            }
        }
    }

    fn write_entry<W: Write>(&mut self, tar: &mut tar::Builder<W>, entry: &Entry) -> Result<(), Broken> {
        let Some(mut member) = Member::of(entry) else { return Ok(()) };
        let Kind::File { size } = entry.kind else { return self.member(tar, &mut member, io::empty()) };
        if let Some(first) = self.links.get(&entry.inode) {
            member.header.set_entry_type(tar::EntryType::Link);
            member.header.set_size(0);
            member.link.clone_from(first);
            return self.member(tar, &mut member, io::empty());
        }
        self.links.insert(entry.inode, entry.path.clone());
        await_next_tick(entry.ctime);
        let file = open_file(self.layers, self.layer, &entry.path)?;
        let mut exact = Exact { file: file.take(size), left: size };
        self.member(tar, &mut member, &mut exact)?;
        if exact.left > 0 {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(Broken::Changed(format!("{path} became shorter while it was read")));
        }
        Ok(())
    }

    fn member<W: Write>(
        &mut self,
        tar: &mut tar::Builder<W>,
        member: &mut Member,
        content: impl Read,
    ) -> Result<(), Broken> {
        self.members += 1;
        let records = member.records();
        if !records.is_empty() {
            let pairs = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            tar.append_pax_extensions(pairs).map_err(|_| Broken::Unwanted)?;
        }
        member.header.set_cksum();
        // Reading fails too, and the kernel says why.
        tar.append(&member.header, content).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Broken::Unwanted,
            _ => Broken::Changed(format!("{}: {error}", String::from_utf8_lossy(&member.path))),
        })
    }
}

/// One member, before what does not fit into a header is taken out of it.
struct Member {
    header: tar::Header,
    path: Vec<u8>,
    link: Vec<u8>,
    xattrs: Attributes,
}

impl Member {
    /// None of a socket, which no image can hold.
    fn of(entry: &Entry) -> Option<Self> {
        let (kind, size, device, link) = match &entry.kind {
            Kind::Directory => (tar::EntryType::Directory, 0, None, &[][..]),
            Kind::File { size } => (tar::EntryType::Regular, *size, None, &[][..]),
            Kind::Symlink { target } => (tar::EntryType::Symlink, 0, None, target.as_slice()),
            Kind::Fifo => (tar::EntryType::Fifo, 0, None, &[][..]),
            Kind::Device { block: true, major, minor } => {
                (tar::EntryType::Block, 0, Some((*major, *minor)), &[][..])
            }
            Kind::Device { block: false, major, minor } => {
                (tar::EntryType::Char, 0, Some((*major, *minor)), &[][..])
            }
            Kind::Socket => return None,
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_size(size);
        header.set_mtime(u64::try_from(entry.mtime.0).unwrap_or_default());
        if let (Some((major, minor)), Some(ustar)) = (device, header.as_ustar_mut()) {
            ustar.set_device_major(major);
            ustar.set_device_minor(minor);
        }
        let xattrs = entry.xattrs.iter().filter(|(name, _)| is_kept(name));
        let xattrs = xattrs.map(|(name, value)| (name.clone(), value.clone())).collect();
        Some(Self { header, path: entry.path.clone(), link: link.to_vec(), xattrs })
    }

    /// Puts path and link into the header, and gives what has no room there, as PAX records.
    fn records(&mut self) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        let old = self.header.as_old_mut();
        for (key, text, field) in
            [("path", &self.path, &mut old.name), ("linkpath", &self.link, &mut old.linkname)]
        {
            let fits = text.len().min(NAME_LENGTH);
            field[..fits].copy_from_slice(&text[..fits]);
            if text.len() > NAME_LENGTH {
                records.push((key.to_owned(), text.clone()));
            }
        }
        for (name, value) in &self.xattrs {
            // A name that is no text cannot be told apart from what ends it.
            if let Ok(name) = std::str::from_utf8(name)
                && !name.contains('=')
            {
                records.push((format!("SCHILY.xattr.{name}"), value.clone()));
            }
        }
        records
    }
}

/// An empty file that means something by its name.
fn mark(path: Vec<u8>) -> Member {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    Member { header, path, link: Vec::new(), xattrs: Attributes::new() }
}

/// The name of the whiteout of `path`.
fn beside(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    [&path[..at], WHITEOUT, &path[at..]].concat()
}

/// Counts what is left of a file.
struct Exact<R> {
    file: io::Take<R>,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
