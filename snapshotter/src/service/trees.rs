//! `capsule.v1.Trees`: what is in versions, and what differs between them.

use std::pin::Pin;

use capsule_proto::capsule::v1 as wire;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{convert, error_line};
use crate::{
    capsules::{Capsules, Resolved},
    trees::{Change, Entry, Kind, TreeError, read_changes, read_entries},
};

/// Messages that wait for a slow caller.
const MESSAGES_IN_FLIGHT: usize = 4;
/// A message is sent when it has so many bytes: an entry with all that the kernel lets it have still fits gRPC's usual limit.
const MESSAGE: usize = 256 << 10;
/// What an entry takes beside its path and attributes, roughly.
const ENTRY: usize = 96;

/// The service.
#[derive(Clone)]
pub struct TreesService {
    capsules: Capsules,
}

impl TreesService {
    /// Over the capsules of this node.
    pub fn new(capsules: Capsules) -> Self {
        Self { capsules }
    }

    async fn find(&self, version: Option<wire::VersionRef>) -> Result<Resolved, Status> {
        let version = version.ok_or_else(|| convert::malformed("a version"))?;
        let name = convert::parse_name(&version.capsule)?;
        let wanted = convert::parse_version(&version.version).map_err(convert::from_model)?;
        Ok(self.capsules.resolve(&name, wanted.as_ref()).await?)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl wire::trees_server::Trees for TreesService {
    type ListTreeStream = Answers<wire::ListTreeResponse>;
    type DiffTreesStream = Answers<wire::DiffTreesResponse>;

    async fn list_tree(
        &self,
        request: Request<wire::ListTreeRequest>,
    ) -> Result<Response<Self::ListTreeStream>, Status> {
        let request = request.into_inner();
        let version = self.find(request.version).await?;
        let held = self.capsules.hold(&version).await?;
        let mut layers = self.capsules.layers();
        let top = held.open(&mut layers)?;
        let first = wire::ListTreeResponse { version: Some(reference(&version)), entries: Vec::new() };
        let make = |entries| wire::ListTreeResponse { version: None, entries };
        Ok(answer(first, make, move |batch| {
            let _held = held; // until all is read
            let layers = layers.until(batch.given_up());
            let take = |entry| {
                let size = entry_size(&entry);
                batch.add(wire_entry(entry), size)
            };
            read_entries(&layers, &top, request.with_digests, take).map(drop)
        }))
    }

    async fn diff_trees(
        &self,
        request: Request<wire::DiffTreesRequest>,
    ) -> Result<Response<Self::DiffTreesStream>, Status> {
        let request = request.into_inner();
        let versions = [self.find(request.from).await?, self.find(request.to).await?];
        let held = [self.capsules.hold(&versions[0]).await?, self.capsules.hold(&versions[1]).await?];
        let mut layers = self.capsules.layers();
        let (from, to) = (held[0].open(&mut layers)?, held[1].open(&mut layers)?);
        let [left, right] = versions.each_ref().map(reference);
        let first = wire::DiffTreesResponse { from: Some(left), to: Some(right), changes: Vec::new() };
        let make = |changes| wire::DiffTreesResponse { from: None, to: None, changes };
        Ok(answer(first, make, move |batch| {
            let _held = held; // as above
            let layers = layers.until(batch.given_up());
            let take = |change: Change| {
                let size = change.from.iter().chain(&change.to).map(entry_size).sum();
                batch.add(wire_change(change), size)
            };
            read_changes(&layers, &from, &to, take).map(drop)
        }))
    }
}

/// What is collected for the next message.
struct Batch<T, M> {
    items: Vec<T>,
    size: usize,
    make: fn(Vec<T>) -> M,
    sender: mpsc::Sender<Result<M, Status>>,
}

impl<T, M: Send + 'static> Batch<T, M> {
    /// False when nobody listens any more.
    fn add(&mut self, item: T, size: usize) -> bool {
        self.items.push(item);
        self.size += size;
        self.size < MESSAGE || self.flush()
    }

    /// Tells whether the caller has gone: much can be read before there is anything to send, and capsuled itself is
    /// not to wait for it when it ends.
    fn given_up(&self) -> impl Fn() -> bool + Send + use<T, M> {
        let sender = self.sender.clone();
        move || sender.is_closed()
    }

    fn flush(&mut self) -> bool {
        self.size = 0;
        let message = (self.make)(std::mem::take(&mut self.items));
        self.sender.blocking_send(Ok(message)).is_ok()
    }
}

/// Reads on a thread that may block, and answers as it goes; an error is the last message.
fn answer<T: Send + 'static, M: Send + 'static>(
    first: M,
    make: fn(Vec<T>) -> M,
    read: impl FnOnce(&mut Batch<T, M>) -> Result<(), TreeError> + Send + 'static,
) -> Response<Answers<M>> {
    let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let mut batch = Batch { items: Vec::new(), size: 0, make, sender: sender.clone() };
        // One that nobody takes any more is no failure.
        if sender.blocking_send(Ok(first)).is_err() {
            return;
        }
        match read(&mut batch) {
            Ok(()) => _ = batch.items.is_empty() || batch.flush(),
            Err(error) => _ = sender.blocking_send(Err(error.into())),
        }
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

fn reference(version: &Resolved) -> wire::VersionRef {
    wire::VersionRef {
        capsule: version.name.to_string(),
        version: version.version.to_string(),
        digest: version.digest.to_string(),
    }
}

fn entry_size(entry: &Entry) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    ENTRY + entry.path.len() + xattrs
}

fn wire_change(change: Change) -> wire::TreeChange {
    wire::TreeChange {
        from: change.from.map(wire_entry),
        to: change.to.map(wire_entry),
        content_differs: change.content_differs,
    }
}

fn wire_entry(entry: Entry) -> wire::TreeEntry {
    use wire::EntryKind as Wire;
    let size = entry.size().unwrap_or_default();
    let (kind, link_target, device) = match entry.kind {
        Kind::File { .. } => (Wire::EntryFile, Vec::new(), (0, 0)),
        Kind::Directory => (Wire::EntryDirectory, Vec::new(), (0, 0)),
        Kind::Symlink { target } => (Wire::EntrySymlink, target, (0, 0)),
        Kind::Fifo => (Wire::EntryFifo, Vec::new(), (0, 0)),
        Kind::Socket => (Wire::EntrySocket, Vec::new(), (0, 0)),
        Kind::Device { block: true, major, minor } => (Wire::EntryBlockDevice, Vec::new(), (major, minor)),
        Kind::Device { major, minor, .. } => (Wire::EntryCharacterDevice, Vec::new(), (major, minor)),
    };
    let attribute = |(name, value)| wire::ExtendedAttribute { name, value };
    wire::TreeEntry {
        path: entry.path,
        kind: kind.into(),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Some(prost_types::Timestamp {
            seconds: entry.mtime.0,
            nanos: i32::try_from(entry.mtime.1).unwrap_or_default(),
        }),
        size,
        link_target,
        major: device.0,
        minor: device.1,
        xattrs: entry.xattrs.into_iter().map(attribute).collect(),
        sha256: entry.sha256.map(Vec::from).unwrap_or_default(),
    }
}

impl From<TreeError> for Status {
    fn from(error: TreeError) -> Self {
        match &error {
            TreeError::Read { .. } => Self::internal(error_line(&error)),
            TreeError::GivenUp => Self::cancelled(error_line(&error)),
            TreeError::Attribute { .. } => Self::failed_precondition(error_line(&error)),
        }
    }
}
