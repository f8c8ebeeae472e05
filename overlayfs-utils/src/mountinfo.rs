//! A namespace's mount table, as `/proc/PID/mountinfo` gives it (`proc_pid_mountinfo(5)`).
//!
//! `listmount` and `statmount` (Linux 6.8) know no paths relative to a process's root, take another namespace's id
//! only since 6.11, and cost a call per mount: the text is read in one go and holds on every supported kernel.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The id that `STATX_MNT_ID` gives; used again soon after the mount is gone.
    pub id: u64,
    /// The id of the mount it is on.
    pub parent: u64,
    /// Device number of the superblock: major, minor. For overlayfs, what `stat` gives for its directories.
    pub device: (u32, u32),
    /// Which directory of the filesystem is the mount's root.
    pub root: PathBuf,
    /// Where it is, from the root of the process.
    pub mount_point: PathBuf,
    /// Options of the mount, comma-separated.
    pub options: String,
    /// Who else has what is mounted on it.
    pub propagation: Propagation,
    /// Type of the filesystem.
    pub filesystem: String,
    /// What was mounted, as the filesystem names it.
    pub source: String,
    /// Options of the superblock, comma-separated.
    pub super_options: String,
}

/// Where mounts on a mount go (mount_namespaces(7), "Shared subtrees").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nowhere, and none comes.
    Private,
    /// They come from its master.
    Slave,
    /// To its peers, and theirs come; perhaps from a master, too.
    Shared,
}

/// Why a mount table could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line} of the mount table lacks its {field}")]
pub struct ParseMountInfoError {
    /// Which line, from 1.
    pub line: usize,
    /// The first field that is missing or malformed.
    pub field: &'static str,
}

/// Parses the text of a `mountinfo` file. Empty lines are skipped.
///
/// # Errors
/// [`ParseMountInfoError`] at the first line that is not as the manual says.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountEntry>, ParseMountInfoError> {
    text.split(|&b| b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(n, line)| parse_line(line).map_err(|field| ParseMountInfoError { line: n + 1, field }))
        .collect()
}

fn parse_line(line: &[u8]) -> Result<MountEntry, &'static str> {
    let mut fields = line.split(|&b| b == b' ');
    let mut next = |field| fields.next().ok_or(field);
    let id = parse_number(next("id")?).ok_or("id")?;
    let parent = parse_number(next("parent id")?).ok_or("parent id")?;
    let device = parse_device(next("device number")?).ok_or("device number")?;
    let root = unescape_path(next("root")?);
    let mount_point = unescape_path(next("mount point")?);
    let options = lossy(next("mount options")?);
    // Optional fields run up to a lone dash.
    let mut propagation = Propagation::Private;
    loop {
        match next("separator")? {
            b"-" => break,
            field if field.starts_with(b"shared:") => propagation = Propagation::Shared,
            field if field.starts_with(b"master:") && propagation == Propagation::Private => {
                propagation = Propagation::Slave;
            }
            _ => {}
        }
    }
    let filesystem = lossy(next("filesystem type")?);
    let source = lossy(&unescape(next("source")?));
    let super_options = lossy(next("superblock options")?);
    Ok(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        propagation,
        filesystem,
        source,
        super_options,
    })
}

fn parse_number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn parse_device(text: &[u8]) -> Option<(u32, u32)> {
    let colon = text.iter().position(|&b| b == b':')?;
    Some((parse_number(&text[..colon])?, parse_number(&text[colon + 1..])?))
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn unescape_path(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(text)))
}

/// Undoes the kernel's octal escapes (`\040` and the like, `mangle` of `fs/proc_namespace.c`). Anything else stays.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, octal(tail)) {
            (b'\\', Some(escaped)) => {
                plain.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.get(..3)?;
    digits.iter().try_fold(0_u8, |n, d| match d {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(d - b'0'),
        _ => None,
    })
}

/// The mounts a process sees, in the kernel's order: a mount comes after the one it is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable(Vec<MountEntry>);

impl MountTable {
    /// Parses the text of a `mountinfo` file.
    ///
    /// # Errors
    /// [`ParseMountInfoError`].
    pub fn parse(text: &[u8]) -> Result<Self, ParseMountInfoError> {
        parse_mountinfo(text).map(Self)
    }

    /// All mounts.
    #[must_use]
    pub fn entries(&self) -> &[MountEntry] {
        &self.0
    }

    /// The mount on top at exactly `path`.
    #[must_use]
    pub fn top_at(&self, path: &Path) -> Option<&MountEntry> {
        self.0.iter().rev().find(|m| m.mount_point == path)
    }

    /// Mounts strictly below `path`.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a MountEntry> {
        self.0.iter().filter(move |m| m.mount_point != path && m.mount_point.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 21 0:5 / /proc rw,nosuid - proc proc rw
31 21 0:40 / /a\\040b\\134c ro,nodev master:2 propagate_from:1 - overlay caps\\040ule ro,lowerdir+=/
32 31 0:41 /sub /a\\040b\\134c/d rw - tmpfs none rw
33 31 0:42 / /a\\040b\\134c/d rw - tmpfs top rw
";

    #[test]
    fn a_table_is_read_with_its_escapes() {
        let table = MountTable::parse(TABLE).unwrap();
        assert_eq!(table.entries().len(), 5);
        let overlay = &table.entries()[2];
        assert_eq!(overlay.mount_point, Path::new("/a b\\c"));
        assert_eq!((overlay.id, overlay.parent, overlay.device), (31, 21, (0, 40)));
        assert_eq!((&*overlay.filesystem, &*overlay.source), ("overlay", "caps ule"));
        assert_eq!(overlay.super_options, "ro,lowerdir+=/");
        let propagation: Vec<_> = table.entries()[..3].iter().map(|entry| entry.propagation).collect();
        assert_eq!(propagation, [Propagation::Shared, Propagation::Private, Propagation::Slave]);
        assert_eq!(table.top_at(Path::new("/a b\\c/d")).unwrap().source, "top");
        assert_eq!(table.below(Path::new("/a b\\c")).count(), 2);
        assert_eq!(table.below(Path::new("/a b")).count(), 0);
        assert_eq!(table.below(Path::new("/")).count(), 4);
    }

    #[test]
    fn a_malformed_line_is_named() {
        for (text, line, field) in [
            (&b"x"[..], 1, "id"),
            (b"\n\n21 1 254 / / rw - ext4 a b", 3, "device number"),
            (b"21 1 2:5 / / rw shared:1", 1, "separator"),
            (b"21 1 2:5 / / rw - ext4 a", 1, "superblock options"),
        ] {
            assert_eq!(parse_mountinfo(text), Err(ParseMountInfoError { line, field }));
        }
    }

    #[test]
    fn only_whole_octal_escapes_are_undone() {
        for (raw, plain) in [
            (&br"\040"[..], &b" "[..]),
            (br"\04", br"\04"),
            (br"\999", br"\999"),
            (br"\777", br"\777"),
            (br"\\134", br"\\"),
            (b"\\", b"\\"),
        ] {
            assert_eq!(unescape(raw), plain);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        // Every prefix, and every byte changed: the fuzz target in miniature.
        for cut in 0..TABLE.len() {
            let _ = parse_mountinfo(&TABLE[..cut]);
            for byte in [0, b' ', b'\\', b':', 0xff] {
                let mut text = TABLE.to_vec();
                text[cut] = byte;
                let _ = parse_mountinfo(&text);
            }
        }
    }
}
