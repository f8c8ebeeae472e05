//! containerd's content store: blobs by digest.

use std::collections::HashMap;

use capsule_proto::containerd::services::content::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse, content_client::ContentClient,
};
use prost_types::FieldMask;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{ContainerdError, Scope, archive::sha256_text};

/// Largest piece of a blob in one message: well under gRPC's usual limit of 4 MiB.
const CHUNK: usize = 1 << 20;
/// Beginnings of labels that are about a blob's content and not about what one namespace does with it.
const KEPT_LABELS: [&str; 2] = ["containerd.io/uncompressed", "containerd.io/distribution.source."];

impl Scope {
    /// The labels of a blob; `None` if the namespace has no such blob.
    pub async fn blob_labels(
        &self,
        digest: &str,
    ) -> Result<Option<HashMap<String, String>>, ContainerdError> {
        let request = self.request(InfoRequest { digest: digest.to_owned() });
        match ContentClient::new(self.channel()).info(request).await {
            Ok(reply) => Ok(Some(reply.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("look up the blob {digest}"), status)),
        }
    }

    /// A whole small blob (manifest, configuration); `None` if the namespace has no such blob. More than `limit`
    /// bytes are an error.
    ///
    /// # Errors
    /// As [`Scope::check_blob`].
    pub async fn read_blob(&self, digest: &str, limit: usize) -> Result<Option<Vec<u8>>, ContainerdError> {
        let mut bytes = Vec::new();
        let found = self.read_checked(digest, |piece| {
            if bytes.len() + piece.len() > limit {
                return Err(Status::out_of_range(format!("it is larger than {limit} bytes")));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        });
        Ok(found.await?.then_some(bytes))
    }

    /// Reads a blob of any size for its digest alone; false if the namespace has no such blob.
    ///
    /// # Errors
    /// [`ContainerdError::Altered`]: containerd hashes what it writes, and not what it reads.
    pub async fn check_blob(&self, digest: &str) -> Result<bool, ContainerdError> {
        self.read_checked(digest, |_| Ok(())).await
    }

    /// Every way to a blob's bytes that are used here: `take` gets them in order, and they are what the digest says if this
    /// succeeds.
    async fn read_checked(
        &self,
        digest: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Status>,
    ) -> Result<bool, ContainerdError> {
        let what = format!("read the blob {digest}");
        let request = self.request(ReadContentRequest { digest: digest.to_owned(), ..Default::default() });
        let mut stream = match ContentClient::new(self.channel()).read(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(false),
            Err(status) => return Err(self.failed(&what, status)),
        };
        let mut sum = Sha256::new();
        loop {
            match stream.message().await {
                Ok(Some(part)) => {
                    sum.update(&part.data);
                    take(&part.data).map_err(|status| self.failed(&what, status))?;
                }
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(false),
                Err(status) => return Err(self.failed(&what, status)),
            }
        }
        let found = sha256_text(sum);
        if found == digest {
            return Ok(true);
        }
        let namespace = String::from_utf8_lossy(self.namespace.as_bytes()).into_owned();
        Err(ContainerdError::Altered { digest: digest.to_owned(), namespace, found })
    }

    /// Begins to write a blob under an ingest reference of the caller's choice (unique in the namespace).
    pub async fn write_blob(&self, reference: &str) -> Result<BlobWriter, ContainerdError> {
        let mut writer = self.open_writer(reference, "", 0).await?;
        writer.begin_again().await?;
        Ok(writer)
    }

    /// Opens a writer. With the digest and size that are expected, containerd gives one that has all of it already if
    /// another namespace has it and shares (containerd, `core/metadata/content.go`, `Writer`), and fails with `AlreadyExists`,
    /// the blob then being held by the scope's lease, if this namespace has it.
    async fn open_writer(
        &self,
        reference: &str,
        expected: &str,
        size: u64,
    ) -> Result<BlobWriter, ContainerdError> {
        let what = format!("write the blob {reference}");
        let (sender, receiver) = mpsc::channel(4);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            expected: expected.to_owned(),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        // The channel is empty and has room: this cannot fail.
        sender.try_send(first).ok();
        let mut replies = ContentClient::new(self.channel())
            .write(self.request(ReceiverStream::new(receiver)))
            .await
            .map_err(|e| self.failed(&what, e))?
            .into_inner();
        let begun = replies.message().await.map_err(|e| self.failed(&what, e))?;
        let begun = begun.ok_or(ContainerdError::Incomplete { what, missing: "a status" })?;
        let (scope, reference) = (self.clone(), reference.to_owned());
        Ok(BlobWriter { scope, reference, sender, replies, offset: begun.offset })
    }

    /// Holds a blob that the namespace has by this scope's lease: `None`. Otherwise a writer of it, which has all of it
    /// already if another namespace shares it.
    async fn hold_blob(
        &self,
        digest: &str,
        size: u64,
        reference: &str,
    ) -> Result<Option<BlobWriter>, ContainerdError> {
        match self.open_writer(reference, digest, size).await {
            Ok(writer) => Ok(Some(writer)),
            Err(error) if error.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that this namespace has a blob of another (or the same) one, held by this scope's lease. False if that one
    /// has no such blob. Nothing is copied where containerd shares content between namespaces, as it does unless it is
    /// told not to. `reference` is as for [`Scope::write_blob`].
    pub async fn share_blob(
        &self,
        from: &Self,
        digest: &str,
        size: u64,
        reference: &str,
    ) -> Result<bool, ContainerdError> {
        let Some(mut labels) = from.blob_labels(digest).await? else { return Ok(false) };
        labels.retain(|name, _| KEPT_LABELS.iter().any(|kept| name.starts_with(kept)));
        let Some(mut writer) = self.hold_blob(digest, size, reference).await? else { return Ok(true) };
        if let Err(error) = from.copy_blob(digest, size, &mut writer).await {
            writer.abort().await.ok(); // the first error is the one to tell
            return if error.is_not_found() { Ok(false) } else { Err(error) };
        }
        writer.commit(digest, labels).await.map(|()| true)
    }

    /// Appends to `writer` what it lacks of a blob.
    async fn copy_blob(
        &self,
        digest: &str,
        size: u64,
        writer: &mut BlobWriter,
    ) -> Result<(), ContainerdError> {
        if writer.written() >= size {
            return Ok(());
        }
        let what = format!("read the blob {digest}");
        let (digest, offset) = (digest.to_owned(), writer.offset);
        let request = self.request(ReadContentRequest { digest, offset, ..Default::default() });
        let reply = ContentClient::new(self.channel()).read(request).await;
        let mut stream = reply.map_err(|e| self.failed(&what, e))?.into_inner();
        while let Some(part) = stream.message().await.map_err(|e| self.failed(&what, e))? {
            writer.write(part.data).await?;
        }
        Ok(())
    }

    /// Writes a small blob whole, with `labels`. A blob of the same digest that is there already is a success; it then
    /// gets those of the labels that it lacks, and keeps its others. It is held by the scope's lease in any case.
    pub async fn put_blob(
        &self,
        digest: &str,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let reference = format!("capsule-{digest}");
        let mut writer = match self.hold_blob(digest, bytes.len() as u64, &reference).await? {
            Some(writer) => writer,
            None => return self.add_labels(digest, labels).await,
        };
        if writer.written() < bytes.len() as u64 {
            writer.begin_again().await?;
            writer.write(bytes.to_vec()).await?;
        }
        writer.commit(digest, labels).await
    }

    async fn add_labels(&self, digest: &str, labels: HashMap<String, String>) -> Result<(), ContainerdError> {
        let present = self.blob_labels(digest).await?.unwrap_or_default();
        let lacks = labels.into_iter().filter(|(name, value)| present.get(name) != Some(value)).collect();
        self.label_blob(digest, lacks).await
    }

    /// Gives a blob labels, beside those that it has. It must be there.
    pub async fn label_blob(
        &self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Default::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        match ContentClient::new(self.channel()).update(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.failed(&format!("label the blob {digest}"), status)),
        }
    }
}

/// A blob being written. Dropped without [`BlobWriter::commit`], it leaves an ingest that
/// [`BlobWriter::abort`] or containerd's garbage collector removes.
#[derive(Debug)]
pub struct BlobWriter {
    scope: Scope,
    reference: String,
    sender: mpsc::Sender<WriteContentRequest>,
    replies: Streaming<WriteContentResponse>,
    offset: i64,
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.offset.unsigned_abs()
    }

    /// Drops what an earlier try under the same reference has left.
    async fn begin_again(&mut self) -> Result<(), ContainerdError> {
        if self.offset == 0 {
            return Ok(());
        }
        self.offset = 0;
        self.send(WriteAction::Write, Vec::new(), HashMap::new()).await
    }

    /// Appends.
    pub async fn write(&mut self, bytes: Vec<u8>) -> Result<(), ContainerdError> {
        for chunk in bytes.chunks(CHUNK) {
            self.send(WriteAction::Write, chunk.to_vec(), HashMap::new()).await?;
        }
        Ok(())
    }

    /// Stores the blob, durably, held by the scope's lease. A blob of this digest that is there already is a success.
    ///
    /// containerd is not told the digest with the commit: it would look for a blob of it first, and answer that there is one
    /// without giving it to the lease (`contentserver.Write`), for its collector to take. It is asked for the digest
    /// afterwards.
    pub async fn commit(
        mut self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        match self.send(WriteAction::Commit, Vec::new(), labels).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
        let reference = format!("{}-held", self.reference);
        let Some(other) = self.scope.hold_blob(digest, self.written(), &reference).await? else {
            return Ok(());
        };
        other.abort().await.ok(); // the error below is the one to tell
        let status = Status::data_loss("what arrived does not have this digest");
        Err(self.scope.failed(&format!("write the blob {digest}"), status))
    }

    /// Gives the blob up.
    pub async fn abort(self) -> Result<(), ContainerdError> {
        let Self { scope, reference, sender, replies, .. } = self;
        // The write stream holds containerd's lock on the reference: end it first.
        drop((sender, replies));
        let request = scope.request(AbortRequest { r#ref: reference.clone() });
        match ContentClient::new(scope.channel()).abort(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(scope.failed(&format!("abort the blob {reference}"), status)),
        }
    }

    async fn send(
        &mut self,
        action: WriteAction,
        data: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let what = format!("write the blob {}", self.reference);
        let length = data.len() as i64;
        let total = if action == WriteAction::Commit { self.offset } else { 0 };
        let request = WriteContentRequest {
            action: action as i32,
            r#ref: self.reference.clone(),
            total,
            offset: self.offset,
            data,
            labels,
            ..Default::default()
        };
        // A closed channel means that the call has ended: the reply below says why.
        self.sender.send(request).await.ok();
        match self.replies.message().await {
            Ok(Some(_)) => {
                self.offset += length;
                Ok(())
            }
            Ok(None) => Err(ContainerdError::Incomplete { what, missing: "a status" }),
            Err(status) => Err(self.scope.failed(&what, status)),
        }
    }
}
