//! containerd's content store: blobs by digest.

use std::collections::HashMap;

use capsule_proto::containerd::services::content::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse, content_client::ContentClient,
};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{ContainerdError, Scope};

/// Largest piece of a blob in one message: well under gRPC's usual limit of 4 MiB.
const CHUNK: usize = 1 << 20;

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
    pub async fn read_blob(&self, digest: &str, limit: usize) -> Result<Option<Vec<u8>>, ContainerdError> {
        let what = format!("read the blob {digest}");
        let request = self.request(ReadContentRequest { digest: digest.to_owned(), ..Default::default() });
        let mut stream = match ContentClient::new(self.channel()).read(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.failed(&what, status)),
        };
        let mut bytes = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(part)) if bytes.len() + part.data.len() > limit => {
                    let status = tonic::Status::out_of_range(format!("it is larger than {limit} bytes"));
                    return Err(self.failed(&what, status));
                }
                Ok(Some(part)) => bytes.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(self.failed(&what, status)),
            }
        }
    }

    /// Begins to write a blob under an ingest reference of the caller's choice (unique in the namespace).
    pub async fn write_blob(&self, reference: &str) -> Result<BlobWriter, ContainerdError> {
        let what = format!("write the blob {reference}");
        let (sender, receiver) = mpsc::channel(4);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
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
        let mut writer =
            BlobWriter { scope: self.clone(), reference: reference.to_owned(), sender, replies, offset: 0 };
        if begun.offset > 0 {
            // Left by an earlier try under the same reference: begin again at the start.
            writer.send(WriteAction::Write, Vec::new(), String::new(), HashMap::new()).await?;
        }
        Ok(writer)
    }

    /// Writes a small blob whole, with `labels`. A blob of the same digest that is there already is a success; it then
    /// gets those of the labels that it lacks, and keeps its others.
    pub async fn put_blob(
        &self,
        digest: &str,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        if let Some(present) = self.blob_labels(digest).await? {
            let lacks = labels.into_iter().filter(|(name, value)| present.get(name) != Some(value)).collect();
            return self.label_blob(digest, lacks).await;
        }
        let mut writer = self.write_blob(&format!("capsule-{digest}")).await?;
        writer.write(bytes.to_vec()).await?;
        writer.commit(digest, labels).await
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

    /// Appends.
    pub async fn write(&mut self, bytes: Vec<u8>) -> Result<(), ContainerdError> {
        for chunk in bytes.chunks(CHUNK) {
            self.send(WriteAction::Write, chunk.to_vec(), String::new(), HashMap::new()).await?;
        }
        Ok(())
    }

    /// Stores the blob under `digest`, durably. A blob of this digest that is there already is a success.
    pub async fn commit(
        mut self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        match self.send(WriteAction::Commit, Vec::new(), digest.to_owned(), labels).await {
            Err(e) if e.is_already_exists() => Ok(()),
            other => other,
        }
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
        expected: String,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let what = format!("write the blob {}", self.reference);
        let length = data.len() as i64;
        let total = if action == WriteAction::Commit { self.offset } else { 0 };
        let request = WriteContentRequest {
            action: action as i32,
            r#ref: self.reference.clone(),
            total,
            expected,
            offset: self.offset,
            data,
            labels,
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
