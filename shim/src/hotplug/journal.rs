//! What is attached in a container, and what a call is about to do: one JSON file in the bundle.
//!
//! The bundle belongs to the host, so the journal is to be trusted; the container is not asked. Mounts end with the
//! container and with the machine, so the file is renamed into place and not synced: it has to survive this process only.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use overlayfs_utils::{ContainerPath, Created, CreatedFile, MountId, SuperBlock};
use serde::{Deserialize, Serialize};

use super::{
    edits::Edits,
    entry::Entry,
    error::JournalError,
    limited::Limits,
    model::{AttachmentId, Content, Spec},
};
use crate::devices::Ledger;

/// The file's name in the bundle.
pub(super) const FILE: &str = "capsule-hotplug.json";
/// Its format. Raised when a shim of before could not read it.
const VERSION: u32 = 1;

/// Which process the journal is about: a container started anew has none of the old one's mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// In the host's PID namespace.
    pub pid: i32,
    /// In clock ticks since boot.
    pub start_time: u64,
}

/// One mount of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where, without links.
    pub path: ContainerPath,
    /// The mount and its filesystem.
    pub block: SuperBlock,
    /// The directory is the capsule alone, rather than a union.
    pub alone: bool,
}

impl Mounted {
    /// The mount's id.
    #[must_use]
    pub fn id(&self) -> MountId {
        self.block.mount
    }
}

/// How far a call has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Mounts are being attached.
    Attaching,
    /// All mounts are there.
    Attached,
    /// Mounts are being replaced by those of this content.
    Replacing {
        /// The content to come.
        content: Content,
        /// Its mounts.
        mounts: Vec<Mounted>,
    },
    /// Mounts are being taken away.
    Detaching,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As it was asked for; the content is the present one.
    pub spec: Spec,
    /// How far the last call has got.
    pub state: State,
    /// Its mounts, in the order in which they were attached.
    pub mounts: Vec<Mounted>,
    /// Directories made for it, outermost first.
    pub created: Vec<Created>,
}

/// What one attachment's devices have made of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// The attachment.
    pub id: AttachmentId,
    /// What is made for them: what they ask for, but for what the container has by itself.
    pub edits: Edits,
    /// What they ask for, where that is more.
    #[serde(default)]
    pub asked: Option<Edits>,
    /// How far the last call has got.
    pub state: State,
    /// Their nodes, in the order of the edits. One that another attachment has too is in both records.
    pub nodes: Vec<CreatedFile>,
    /// Their mounts, likewise.
    pub mounts: Vec<Mounted>,
    /// Files made to mount on, likewise.
    pub placeholders: Vec<CreatedFile>,
    /// Directories made for it, outermost first.
    pub created: Vec<Created>,
}

impl DeviceRecord {
    /// Of devices that have made nothing yet.
    #[must_use]
    pub fn new(id: AttachmentId, edits: Edits) -> Self {
        let (nodes, mounts, placeholders, created) = Default::default();
        Self { id, edits, asked: None, state: State::Attaching, nodes, mounts, placeholders, created }
    }

    /// What they ask for.
    #[must_use]
    pub fn asked(&self) -> &Edits {
        self.asked.as_ref().unwrap_or(&self.edits)
    }

    /// Whether something of it is in a directory.
    #[must_use]
    pub fn has_in(&self, directory: &ContainerPath) -> bool {
        self.nodes.iter().any(|node| node.path.starts_with(directory))
            || self.mounts.iter().any(|mounted| mounted.path.starts_with(directory))
    }
}

/// Content that no path reaches any more, and that may still be in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// The attachment it was.
    pub id: AttachmentId,
    /// What it was.
    pub content: Content,
    /// Where it was asked to be.
    pub target: ContainerPath,
    /// Its filesystems.
    pub blocks: Vec<SuperBlock>,
    /// Since when, in seconds since the epoch.
    pub since: i64,
}

/// All that a container has, and has had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// Whose mounts these are.
    pub init: Init,
    /// Oldest first.
    pub attachments: Vec<Entry>,
    /// Oldest first.
    pub draining: Vec<Draining>,
    /// The devices of attachments, oldest first.
    #[serde(default)]
    pub devices: Vec<DeviceRecord>,
    /// What attachments do to limits.
    #[serde(default)]
    pub limits: Limits,
}

impl Journal {
    /// A journal of nothing.
    #[must_use]
    pub fn new(init: Init) -> Self {
        let (attachments, draining, devices, limits) = Default::default();
        Self { version: VERSION, init, attachments, draining, devices, limits }
    }

    /// Reads the journal of `bundle`; empty when there is none, or it is about another init process.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read, is damaged, or a newer shim wrote it.
    pub fn read(bundle: &Path, init: Init) -> Result<Self, JournalError> {
        let of_it = Self::read_any(bundle)?.filter(|journal| journal.init == init);
        Ok(of_it.unwrap_or_else(|| Self::new(init)))
    }

    /// Reads the journal of `bundle`, whatever process it is about; nothing when there is none.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_any(bundle: &Path) -> Result<Option<Self>, JournalError> {
        let path = bundle.join(FILE);
        match fs::read(&path) {
            Ok(text) => parse_journal(&text, &path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JournalError::Read { path, source }),
        }
    }

    /// Writes it: a reader sees the old or the new one, whole.
    ///
    /// # Errors
    /// [`JournalError::Write`]; then the old one stands.
    pub fn write(&self, bundle: &Path) -> Result<(), JournalError> {
        let path = bundle.join(FILE);
        let temporary = bundle.join(format!(".{FILE}.new"));
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| JournalError::Write { path, source })
    }

    /// The attachment with this id.
    #[must_use]
    pub fn find(&self, id: &AttachmentId) -> Option<&Record> {
        self.attachments.iter().find(|r| r.spec.id == *id).map(|entry| &**entry)
    }

    /// Puts `record` in the place of the one with its id, or at the end.
    pub fn put(&mut self, record: Record) {
        match self.attachments.iter_mut().find(|r| r.spec.id == record.spec.id) {
            Some(there) => *there = record.into(),
            None => self.attachments.push(record.into()),
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, id: &AttachmentId) {
        self.attachments.retain(|r| r.spec.id != *id);
    }

    /// The devices of the attachment with this id.
    #[must_use]
    pub fn find_devices(&self, id: &AttachmentId) -> Option<&DeviceRecord> {
        self.devices.iter().find(|r| r.id == *id)
    }

    /// Puts `record` in the place of the one with its id, or at the end.
    pub fn put_devices(&mut self, record: DeviceRecord) {
        match self.devices.iter_mut().find(|r| r.id == record.id) {
            Some(there) => *there = record,
            None => self.devices.push(record),
        }
    }

    /// Takes the devices of an attachment out.
    pub fn remove_devices(&mut self, id: &AttachmentId) {
        self.devices.retain(|r| r.id != *id);
    }

    /// Which devices are to be allowed: those of all attachments but of what is being taken away.
    #[must_use]
    pub fn device_ledger(&self) -> Ledger {
        self.devices.iter().fold(Ledger::default(), |all, record| match record.state {
            State::Detaching => all.without(&record.id.to_string()),
            _ => all.with(&record.id.to_string(), record.edits.grants()),
        })
    }

    /// The attachments, by the paths of their mounts.
    #[must_use]
    pub fn owners(&self) -> HashMap<&OsStr, &Record> {
        let pairs = self.attachments.iter().flat_map(|record| {
            record.mounts.iter().map(move |mounted| (OsStr::new(mounted.path.as_str()), &**record))
        });
        pairs.collect()
    }
}

fn parse_journal(text: &[u8], path: &Path) -> Result<Journal, JournalError> {
    #[derive(Deserialize)]
    struct Format {
        version: u32,
    }
    let damaged = |source| JournalError::Damaged { path: PathBuf::from(path), source };
    let format: Format = serde_json::from_slice(text).map_err(damaged)?;
    if format.version != VERSION {
        return Err(JournalError::Version { path: path.into(), found: format.version, known: VERSION });
    }
    serde_json::from_slice(text).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::super::model::Mode;
    use super::*;
    use crate::seccomp::Denied;

    fn record(id: &str) -> Record {
        let path = |p| ContainerPath::parse(p).unwrap();
        let content = Content {
            capsule: "tz".into(),
            version: "1".into(),
            digest: "sha256:0".into(),
            layers: vec!["/l".into()],
            env: Vec::new(),
            denied: Denied::default(),
        };
        let block = SuperBlock { mount: MountId { id: 7, unique: true }, device: (0, 40), table_id: 7 };
        let mounts = vec![Mounted { path: path("/usr/share/zoneinfo"), block, alone: true }];
        Record {
            spec: Spec {
                id: AttachmentId::parse(id.into()).unwrap(),
                content: content.clone(),
                target: path("/usr/share/zoneinfo"),
                mode: Mode::Ro,
                upper: None,
            },
            state: State::Replacing { content, mounts: mounts.clone() },
            mounts,
            created: vec![Created { path: path("/usr/share"), identity: (0, 3, 9) }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let init = Init { pid: 1, start_time: 2 };
        let mut journal = Journal::read(dir.path(), init).unwrap();
        assert_eq!(journal, Journal::new(init));
        journal.put(record("a"));
        journal.put(record("b"));
        journal.put(record("a"));
        assert_eq!(journal.attachments.len(), 2);
        let block = journal.attachments[0].mounts[0].block;
        let (id, content, target) = (record("c").spec.id, record("c").spec.content, record("c").spec.target);
        journal.draining.push(Draining { id, content, target, blocks: vec![block], since: 5 });
        journal.write(dir.path()).unwrap();
        assert_eq!(Journal::read(dir.path(), init).unwrap(), journal);
        assert_eq!(journal.owners()[OsStr::new("/usr/share/zoneinfo")].spec.id.to_string(), "b");
        // What is written again, and what is written as it was read, is the same.
        let text = fs::read(dir.path().join(FILE)).unwrap();
        journal.write(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), text);
        Journal::read(dir.path(), init).unwrap().write(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), text);
        // And what is changed is another one.
        let mut changed = journal.attachments[0].to_record();
        changed.state = State::Attached;
        journal.put(changed.clone());
        journal.write(dir.path()).unwrap();
        assert_eq!(Journal::read(dir.path(), init).unwrap().find(&changed.spec.id), Some(&changed));
        // Another process with the same number is another container's life.
        let other = Init { pid: 1, start_time: 3 };
        assert_eq!(Journal::read(dir.path(), other).unwrap(), Journal::new(other));
    }

    #[test]
    fn a_damaged_or_newer_journal_is_refused_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let init = Init { pid: 1, start_time: 2 };
        Journal::new(init).write(dir.path()).unwrap();
        let good = fs::read(dir.path().join(FILE)).unwrap();
        for cut in 0..good.len() {
            fs::write(dir.path().join(FILE), &good[..cut]).unwrap();
            assert!(Journal::read(dir.path(), init).is_err(), "cut at {cut}");
        }
        let newer = String::from_utf8(good).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(dir.path().join(FILE), newer).unwrap();
        assert!(matches!(Journal::read(dir.path(), init), Err(JournalError::Version { found: 2, .. })));
    }
}
