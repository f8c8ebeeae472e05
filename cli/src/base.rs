//! The version that `build --base` is told of, from the wire to what a tree is compared with.

use capsule_proto::capsule::v1::{self, EntryKind};

use crate::archive;
use crate::args::CapsuleRef;
use crate::client::Client;
use crate::commands::diff::reference;
use crate::error::Error;

/// A version that another is built on.
pub struct Base {
    /// As it was found: the newest has its number.
    pub version: v1::BuildBase,
    pub tree: archive::Base,
}

/// Asks capsuled what is in the version.
///
/// # Errors
/// capsuled's refusal; [`Error::Answer`] for an answer that is incomplete.
pub async fn read(client: &Client, capsule: CapsuleRef) -> Result<Base, Error> {
    let request = v1::ListTreeRequest { version: Some(reference(capsule)), with_digests: true };
    let mut stream = client.trees().list_tree(request).await?.into_inner();
    let first = stream.message().await?.and_then(|message| message.version);
    let v1::VersionRef { capsule, version, digest } = first.ok_or(Error::Answer("build"))?;
    let mut tree = archive::Base::new();
    while let Some(message) = stream.message().await? {
        for entry in message.entries.into_iter().filter(|entry| !entry.path.is_empty()) {
            let (path, entry) = parse(entry).ok_or(Error::Answer("build"))?;
            tree.insert(path, entry);
        }
    }
    Ok(Base { version: v1::BuildBase { capsule, version, digest }, tree })
}

/// `None` for an entry that lacks something.
fn parse(entry: v1::TreeEntry) -> Option<(Vec<u8>, archive::BaseEntry)> {
    use archive::BaseKind;
    let device = |block| BaseKind::Device { block, major: entry.major, minor: entry.minor };
    let kind = match entry.kind() {
        EntryKind::Unspecified => return None,
        EntryKind::EntryFile => {
            BaseKind::File { size: entry.size, sha256: entry.sha256.as_slice().try_into().ok()? }
        }
        EntryKind::EntryDirectory => BaseKind::Directory,
        EntryKind::EntrySymlink => BaseKind::Symlink { target: entry.link_target },
        EntryKind::EntryFifo => BaseKind::Fifo,
        EntryKind::EntryCharacterDevice => device(false),
        EntryKind::EntryBlockDevice => device(true),
        EntryKind::EntrySocket => BaseKind::Socket,
    };
    let mtime = entry.mtime?;
    let read = archive::BaseEntry {
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: (mtime.seconds, u32::try_from(mtime.nanos).ok()?),
        xattrs: entry.xattrs.into_iter().map(|x| (x.name, x.value)).collect(),
    };
    Some((entry.path, read))
}
