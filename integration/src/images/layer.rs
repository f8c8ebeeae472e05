//! A layer as an archive: every kind of file that a layer can carry, in tar with the POSIX extensions.
//!
//! Numbers and names that the fields of ustar cannot hold go into extension records, as Docker and Go write them:
//! `mtime` with a fraction or before 1970, `uid` and `gid` above 2097151, `path` and `linkpath` above 100 bytes,
//! `SCHILY.xattr.NAME`, and GNU's sparse format 1.0.

use anyhow::{Context as _, Result};
use tar::{Builder, EntryType, Header};

/// The largest number that seven octal digits hold.
const OCTAL_LIMIT: u64 = 0o7777777;
/// What a name field of ustar holds.
const NAME_FIELD: usize = 100;

/// One member of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Vec<u8>,
    kind: Kind,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder,
    File(Vec<u8>),
    Sparse { size: u64, offset: u64, data: Vec<u8> },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Device(EntryType, u32, u32),
    Fifo,
}

impl Entry {
    /// Owned by root, of 1970, as everything here until it is told otherwise. Paths have no leading slash.
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        Self { path: path.as_ref().to_owned(), kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }

    /// A folder that everybody may read.
    pub fn folder(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Folder, 0o755)
    }

    /// A file that everybody may read.
    pub fn file(path: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(content.into()), 0o644)
    }

    /// A file of `size` bytes that holds `data` at `offset` and nothing else.
    pub fn sparse(path: impl AsRef<[u8]>, size: u64, offset: u64, data: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::Sparse { size, offset, data: data.into() }, 0o644)
    }

    /// A symbolic link to `to`.
    pub fn symlink(path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Symlink(to.as_ref().to_owned()), 0o777)
    }

    /// Another name of `to`, which is a member of the same layer. It must be given the file's mode and owner again:
    /// who unpacks it applies them to the one file that both are.
    pub fn hard_link(path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::HardLink(to.as_ref().to_owned()), 0o644)
    }

    /// A character device.
    pub fn character_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Device(EntryType::Char, major, minor), 0o600)
    }

    /// A block device.
    pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Device(EntryType::Block, major, minor), 0o600)
    }

    /// A named pipe.
    pub fn fifo(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Fifo, 0o600)
    }

    /// The whiteout of `folder/name`, which a lower layer has.
    pub fn removed(folder: &str, name: &str) -> Self {
        Self::file(format!("{folder}/.wh.{name}"), [])
    }

    /// Hides everything that lower layers have in `folder`.
    pub fn opaque(folder: &str) -> Self {
        Self::file(format!("{folder}/.wh..wh..opq"), [])
    }

    /// With these permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With this owner and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Last changed then: seconds since 1970, and nanoseconds after them.
    pub fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    /// With an extended attribute.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// The records that extend the header.
    fn records(&self) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        if self.path.len() > NAME_FIELD {
            records.push(("path".to_owned(), self.path.clone()));
        }
        match &self.kind {
            Kind::Symlink(to) | Kind::HardLink(to) if to.len() > NAME_FIELD => {
                records.push(("linkpath".to_owned(), to.clone()));
            }
            _ => {}
        }
        for (name, number) in [("uid", self.uid), ("gid", self.gid)] {
            if number > OCTAL_LIMIT {
                records.push((name.to_owned(), number.to_string().into()));
            }
        }
        if self.mtime.0 < 0 || self.mtime.1 > 0 {
            records.push(("mtime".to_owned(), decimal(self.mtime).into()));
        }
        if let Kind::Sparse { size, .. } = self.kind {
            for (name, value) in
                [("major", "1".into()), ("minor", "0".into()), ("realsize", size.to_string())]
            {
                records.push((format!("GNU.sparse.{name}"), value.into()));
            }
            records.push(("GNU.sparse.name".to_owned(), self.path.clone()));
        }
        records
            .extend(self.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        records
    }

    fn append_to(&self, tar: &mut Builder<Vec<u8>>) -> std::io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            tar.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
        }
        let mut header = Header::new_ustar();
        header.set_mode(self.mode);
        header.set_uid(self.uid.min(OCTAL_LIMIT));
        header.set_gid(self.gid.min(OCTAL_LIMIT));
        header.set_mtime(u64::try_from(self.mtime.0).unwrap_or(0));
        let old = header.as_old_mut();
        copy(&mut old.name, &self.path);
        let mut data = Vec::new();
        let kind = match &self.kind {
            Kind::Folder => EntryType::Directory,
            Kind::Fifo => EntryType::Fifo,
            Kind::File(content) => {
                data.clone_from(content);
                EntryType::Regular
            }
            Kind::Sparse { size, offset, data: part } => {
                data = sparse(*size, *offset, part);
                EntryType::Regular
            }
            Kind::Symlink(to) => {
                copy(&mut old.linkname, to);
                EntryType::Symlink
            }
            Kind::HardLink(to) => {
                copy(&mut old.linkname, to);
                EntryType::Link
            }
            Kind::Device(kind, major, minor) => {
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                *kind
            }
        };
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data.as_slice())
    }
}

/// As much as fits: what does not is in a record.
fn copy(field: &mut [u8], value: &[u8]) {
    field.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}

/// Seconds with their fraction; before 1970 both count backwards from it.
fn decimal((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (..0, _) => {
            let (seconds, nanoseconds) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
            format!("-{seconds}.{nanoseconds:09}")
        }
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// The data of a sparse member: a map of one extent, padded to a block, and the extent. The map ends with an empty extent
/// at the file's end, as GNU tar writes it.
fn sparse(size: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = format!("2\n{offset}\n{}\n{size}\n0\n", data.len()).into_bytes();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(data);
    bytes
}

/// The layer's archive. The same entries give the same bytes. A folder must come before what is in it.
pub fn archive(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries {
        entry
            .append_to(&mut tar)
            .with_context(|| format!("add {} to a layer", String::from_utf8_lossy(&entry.path)))?;
    }
    tar.into_inner().context("finish a layer")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_layer_is_the_same_twice_and_holds_what_it_was_given() {
        let entries = [
            Entry::folder("a"),
            Entry::file("a/b", "x").mode(0o4755).owner(3_000_000, 7).mtime(12, 500_000_000),
            Entry::symlink("c", "a/b"),
            Entry::removed("a", "gone"),
        ];
        let bytes = archive(&entries).unwrap();
        assert_eq!(bytes, archive(&entries).unwrap());
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let records: Vec<_> = entry
                .pax_extensions()
                .unwrap()
                .into_iter()
                .flatten()
                .map(|record| record.unwrap())
                .map(|record| format!("{}={}", record.key().unwrap(), record.value().unwrap()))
                .collect();
            seen.push((entry.path().unwrap().display().to_string(), records));
        }
        let plain = |path: &str| (path.to_owned(), vec![]);
        let extended = ("a/b".to_owned(), vec!["uid=3000000".to_owned(), "mtime=12.500000000".to_owned()]);
        assert_eq!(seen, [plain("a"), extended, plain("c"), plain("a/.wh.gone")]);
    }

    #[test]
    fn times_count_from_1970_in_both_directions() {
        for (time, text) in [
            ((5, 0), "5"),
            ((5, 7), "5.000000007"),
            ((-5, 0), "-5"),
            ((-2, 250_000_000), "-1.750000000"),
            ((-1, 999_999_999), "-0.000000001"),
        ] {
            assert_eq!(decimal(time), text, "{time:?}");
        }
    }

    /// GNU tar is on every Debian system, and knows all of these.
    #[test]
    fn another_program_reads_every_kind() {
        let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
        let entries = [
            Entry::folder("d".repeat(200)),
            Entry::file(&long, "content"),
            Entry::sparse("holes", 1 << 20, 65536, "data"),
            Entry::symlink("link", "t".repeat(150)),
            Entry::hard_link("hard", &long),
            Entry::character_device("char", 1, 3),
            Entry::block_device("block", 259, 70000),
            Entry::fifo("fifo"),
            Entry::file("xattr", "").xattr("user.a", "value"),
            Entry::file(b"not\xffutf8", ""),
        ];
        let mut tar = Command::new("tar")
            .args(["-tv", "--utc", "--numeric-owner", "--quoting-style=escape", "--xattrs"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive(&entries).unwrap()).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let words = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let text: String = text.lines().map(|line| words(line) + "\n").collect();
        for expected in [
            format!(" {long}\n"),
            "1048576 1970-01-01 00:00 holes\n".to_owned(),
            format!("link -> {}\n", "t".repeat(150)),
            format!("hard link to {long}\n"),
            "crw------- 0/0 1,3 ".to_owned(),
            "brw------- 0/0 259,70000 ".to_owned(),
            "prw-------".to_owned(),
            "-rw-r--r--* 0/0".to_owned(),
            "not\\377utf8\n".to_owned(),
        ] {
            assert!(text.contains(&expected), "{expected:?} is not in:\n{text}");
        }
    }
}
