//! `diff`: what differs between two versions, from the wire to what is read. Pure but for [`read`].

use capsule_proto::capsule::v1::{self, EntryKind};
use serde::Serialize;

use crate::args::{CapsuleRef, DiffArgs};
use crate::client::Client;
use crate::error::Error;
use crate::text::{Text, escape_control, size};
use crate::view::Time;

/// Result of `diff`.
#[derive(Debug, Serialize)]
pub struct Differences {
    pub from: Version,
    pub to: Version,
    /// A directory comes before what it holds.
    pub changes: Vec<Change>,
}

/// A version that was found.
#[derive(Debug, Serialize)]
pub struct Version {
    pub capsule: String,
    pub version: String,
    pub digest: String,
}

/// One path.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Relative to the tree's root, which is `.`; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `added`, `removed` or `modified`.
    pub change: &'static str,
    /// Of a modified path, what differs: `kind`, `content`, `mode`, `owner`, `mtime`, `link`, `device`, `attributes`.
    pub what: Vec<&'static str>,
    pub from: Option<Entry>,
    pub to: Option<Entry>,
}

/// What one version has at a path.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub kind: &'static str,
    /// Permission bits, as a number.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Option<Time>,
    /// Bytes; `null` for what is no file.
    pub size: Option<u64>,
    /// Of a symbolic link, where it leads.
    pub link: Option<String>,
    /// `MAJOR:MINOR` of a device.
    pub device: Option<String>,
    /// Names of the extended attributes.
    pub attributes: Vec<String>,
}

/// Asks for the differences.
///
/// # Errors
/// capsuled's refusal; [`Error::Answer`] when the answer is incomplete.
pub async fn read(client: &Client, args: DiffArgs) -> Result<Differences, Error> {
    let request = v1::DiffTreesRequest { from: Some(reference(args.from)), to: Some(reference(args.to)) };
    let mut stream = client.trees().diff_trees(request).await?.into_inner();
    let first = stream.message().await?.ok_or(Error::Answer("diff"))?;
    let (Some(from), Some(to)) = (first.from, first.to) else { return Err(Error::Answer("diff")) };
    let mut changes = Vec::new();
    while let Some(message) = stream.message().await? {
        changes.extend(message.changes.into_iter().map(Change::from));
    }
    Ok(Differences { from: from.into(), to: to.into(), changes })
}

/// A version, for the wire.
pub fn reference(capsule: CapsuleRef) -> v1::VersionRef {
    v1::VersionRef {
        capsule: capsule.name,
        version: capsule.version.unwrap_or_default(),
        digest: String::new(),
    }
}

impl From<v1::VersionRef> for Version {
    fn from(v: v1::VersionRef) -> Self {
        Self { capsule: v.capsule, version: v.version, digest: v.digest }
    }
}

impl From<v1::TreeChange> for Change {
    fn from(change: v1::TreeChange) -> Self {
        let path = change.from.iter().chain(&change.to).map(|e| e.path.clone()).next().unwrap_or_default();
        let (kind, what) = match (&change.from, &change.to) {
            (Some(from), Some(to)) => ("modified", differing(from, to, change.content_differs)),
            (None, _) => ("added", Vec::new()),
            (_, None) => ("removed", Vec::new()),
        };
        Self {
            path: if path.is_empty() { ".".to_owned() } else { lossy(&path) },
            change: kind,
            what,
            from: change.from.map(Entry::from),
            to: change.to.map(Entry::from),
        }
    }
}

fn differing(from: &v1::TreeEntry, to: &v1::TreeEntry, content: bool) -> Vec<&'static str> {
    [
        ("kind", from.kind != to.kind),
        ("content", content),
        ("link", from.kind == to.kind && from.link_target != to.link_target),
        ("device", from.kind == to.kind && (from.major, from.minor) != (to.major, to.minor)),
        ("mode", from.mode != to.mode),
        ("owner", (from.uid, from.gid) != (to.uid, to.gid)),
        // When the root was written to last is no part of a tree.
        ("mtime", from.mtime != to.mtime && !from.path.is_empty()),
        ("attributes", from.xattrs != to.xattrs),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect()
}

impl From<v1::TreeEntry> for Entry {
    fn from(e: v1::TreeEntry) -> Self {
        let kind = e.kind();
        let device = matches!(kind, EntryKind::EntryBlockDevice | EntryKind::EntryCharacterDevice);
        Self {
            kind: kind_name(kind),
            mode: e.mode,
            uid: e.uid,
            gid: e.gid,
            size: (kind == EntryKind::EntryFile).then_some(e.size),
            link: (kind == EntryKind::EntrySymlink).then(|| lossy(&e.link_target)),
            device: device.then(|| format!("{}:{}", e.major, e.minor)),
            attributes: e.xattrs.iter().map(|x| lossy(&x.name)).collect(),
            mtime: e.mtime.map(Time),
        }
    }
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Unspecified => "unknown",
        EntryKind::EntryFile => "file",
        EntryKind::EntryDirectory => "directory",
        EntryKind::EntrySymlink => "symlink",
        EntryKind::EntryFifo => "fifo",
        EntryKind::EntryCharacterDevice => "character device",
        EntryKind::EntryBlockDevice => "block device",
        EntryKind::EntrySocket => "socket",
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Text for Differences {
    fn text(&self, _: std::time::SystemTime) -> String {
        let mut text = String::new();
        for change in &self.changes {
            text.push_str(&escape_control(&change.line()));
            text.push('\n');
        }
        let count = |kind: &str| self.changes.iter().filter(|c| c.change == kind).count();
        let (added, removed, modified) = (count("added"), count("removed"), count("modified"));
        let of = |v: &Version| escape_control(&format!("{}@{}", v.capsule, v.version));
        let (from, to) = (of(&self.from), of(&self.to));
        text.push_str(&format!("{from} → {to}: {added} added, {removed} removed, {modified} modified\n"));
        text
    }
}

impl Change {
    fn line(&self) -> String {
        let directory = |e: &Entry| e.kind == "directory";
        let entry = self.to.as_ref().or(self.from.as_ref());
        let slash = if entry.is_some_and(directory) { "/" } else { "" };
        let path = format!("{}{slash}", self.path);
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => {
                let what: Vec<_> = self.what.iter().map(|what| detail(what, from, to)).collect();
                format!("M {path} ({})", what.join(", "))
            }
            (None, Some(Entry { size: Some(bytes), .. })) => format!("A {path} ({})", size(*bytes)),
            (None, _) => format!("A {path}"),
            (_, None) => format!("D {path}"),
        }
    }
}

fn detail(what: &str, from: &Entry, to: &Entry) -> String {
    let text = |link: &Option<String>| link.clone().unwrap_or_default();
    match what {
        "content" if from.size == to.size => "content".to_owned(),
        "content" => {
            format!("content {}→{} bytes", from.size.unwrap_or_default(), to.size.unwrap_or_default())
        }
        "kind" => format!("{}→{}", from.kind, to.kind),
        "mode" => format!("mode {:o}→{:o}", from.mode, to.mode),
        "owner" => format!("owner {}:{}→{}:{}", from.uid, from.gid, to.uid, to.gid),
        "link" => format!("link {}→{}", text(&from.link), text(&to.link)),
        "device" => format!("device {}→{}", text(&from.device), text(&to.device)),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind) -> v1::TreeEntry {
        v1::TreeEntry { path: b"d/f".to_vec(), kind: kind.into(), mode: 0o644, ..v1::TreeEntry::default() }
    }

    fn change(from: Option<v1::TreeEntry>, to: Option<v1::TreeEntry>, content: bool) -> Change {
        v1::TreeChange { from, to, content_differs: content }.into()
    }

    #[test]
    fn lines() {
        use EntryKind::{EntryCharacterDevice, EntryDirectory, EntryFile, EntrySymlink};
        let file = |size| v1::TreeEntry { size, ..entry(EntryFile) };
        let link = |to: &str| v1::TreeEntry { link_target: to.into(), ..entry(EntrySymlink) };
        let device = |minor| v1::TreeEntry { major: 1, minor, ..entry(EntryCharacterDevice) };
        let time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        let xattr = v1::ExtendedAttribute { name: b"user.x".to_vec(), value: Vec::new() };
        let all = v1::TreeEntry { mode: 0o600, uid: 7, mtime: time, xattrs: vec![xattr], ..file(14) };
        for (change, want) in [
            (change(None, Some(file(2048)), false), "A d/f (2.0 KiB)"),
            (change(None, Some(entry(EntryDirectory)), false), "A d/f/"),
            (change(Some(entry(EntryDirectory)), None, false), "D d/f/"),
            (change(Some(file(3)), Some(file(3)), true), "M d/f (content)"),
            (
                change(Some(file(12)), Some(all), true),
                "M d/f (content 12→14 bytes, mode 644→600, owner 0:0→7:0, mtime, attributes)",
            ),
            (change(Some(file(1)), Some(link("x")), false), "M d/f (file→symlink)"),
            (change(Some(link("a")), Some(link("b")), false), "M d/f (link a→b)"),
            (change(Some(device(3)), Some(device(5)), false), "M d/f (device 1:3→1:5)"),
        ] {
            assert_eq!(change.line(), want);
        }
    }
}
