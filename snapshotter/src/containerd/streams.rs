//! containerd's streams: messages beside a call, in both directions, under a name that the call is told
//! (containerd `docs/transfer.md`, `core/transfer/streaming`).

use capsule_proto::containerd::{
    services::streaming::v1::{StreamInit, streaming_client::StreamingClient},
    types::transfer::{Data, WindowUpdate},
};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{ContainerdError, Scope};
use crate::fresh_id;

/// Most bytes of one message, and what a receiver lets a sender be ahead: containerd's own.
const CHUNK: usize = 32 << 10;
const WINDOW: i32 = 64 << 10;

/// An open stream. Dropped, it ends for containerd too.
#[derive(Debug)]
pub(super) struct Stream {
    scope: Scope,
    /// What the call is told.
    pub(super) id: String,
    sender: mpsc::Sender<Any>,
    receiver: Streaming<Any>,
}

/// A message by its bare name: containerd looks its own types up by that.
pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

fn unpack<M: Message + Name + Default>(any: &Any) -> Option<M> {
    let name = any.type_url.rsplit('/').next()?;
    (name == M::full_name()).then(|| M::decode(any.value.as_slice()).ok()).flatten()
}

impl Scope {
    /// Opens a stream for what `what` says.
    pub(super) async fn open_stream(&self, what: &str) -> Result<Stream, ContainerdError> {
        let id = format!("capsule-{what}-{}", fresh_id());
        let (sender, receiver) = mpsc::channel(4);
        // The channel is empty and has room: this cannot fail.
        sender.try_send(pack(&StreamInit { id: id.clone() })).ok();
        let opening = format!("open a stream for the {what}");
        let mut receiver = StreamingClient::new(self.channel())
            .stream(self.request(ReceiverStream::new(receiver)))
            .await
            .map_err(|e| self.failed(&opening, e))?
            .into_inner();
        // It is registered when the first answer comes.
        receiver.message().await.map_err(|e| self.failed(&opening, e))?;
        Ok(Stream { scope: self.clone(), id, sender, receiver })
    }
}

impl Stream {
    /// The next message of its kind; `None` at the end.
    pub(super) async fn next<M: Message + Name + Default>(&mut self) -> Result<Option<M>, ContainerdError> {
        loop {
            match self.receiver.message().await {
                Ok(None) => return Ok(None),
                Ok(Some(any)) => match unpack(&any) {
                    Some(message) => return Ok(Some(message)),
                    None => tracing::debug!(kind = any.type_url, "a message that a stream should not have"),
                },
                Err(status) => return Err(self.scope.failed("go on with a stream", status)),
            }
        }
    }

    /// False when the other side has ended the stream.
    pub(super) async fn send<M: Message + Name>(&self, message: &M) -> bool {
        self.sender.send(pack(message)).await.is_ok()
    }

    /// Splits it into the two ends of a flow of bytes that comes from containerd.
    pub(super) fn bytes_in(self) -> BytesIn {
        BytesIn { stream: self, window: 0 }
    }

    /// As a flow of bytes to containerd.
    pub(super) fn bytes_out(self) -> BytesOut {
        BytesOut { stream: self, window: 0 }
    }
}

/// Bytes that containerd sends, as fast as they are taken.
#[derive(Debug)]
pub(super) struct BytesIn {
    stream: Stream,
    window: i32,
}

impl BytesIn {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ContainerdError> {
        if self.window < WINDOW {
            // An end of the stream shows below.
            self.stream.send(&WindowUpdate { update: WINDOW }).await;
            self.window += WINDOW;
        }
        let piece = self.stream.next::<Data>().await?;
        if let Some(piece) = &piece {
            self.window = self.window.saturating_sub(i32::try_from(piece.data.len()).unwrap_or(i32::MAX));
        }
        Ok(piece.map(|piece| piece.data))
    }
}

/// Bytes for containerd, as fast as it takes them.
#[derive(Debug)]
pub(super) struct BytesOut {
    stream: Stream,
    window: i32,
}

impl BytesOut {
    /// Sends all of it. False when containerd takes no more: the call that reads says why.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<bool, ContainerdError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            while self.window <= 0 {
                match self.stream.next::<WindowUpdate>().await? {
                    Some(update) => self.window = self.window.saturating_add(update.update),
                    None => return Ok(false),
                }
            }
            let most = usize::try_from(self.window).unwrap_or(CHUNK).min(CHUNK).min(rest.len());
            let (piece, after) = rest.split_at(most);
            if !self.stream.send(&Data { data: piece.to_vec() }).await {
                return Ok(false);
            }
            self.window -= i32::try_from(most).unwrap_or(i32::MAX);
            rest = after;
        }
        Ok(true)
    }

    /// Says that there is no more, and waits until containerd has heard it.
    pub(super) async fn end(self) {
        let Stream { sender, mut receiver, .. } = self.stream;
        drop(sender);
        while let Ok(Some(_)) = receiver.message().await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_by_their_bare_names_and_come_by_any() {
        let any = pack(&WindowUpdate { update: 7 });
        assert_eq!(any.type_url, "containerd.types.transfer.WindowUpdate");
        assert_eq!(unpack::<WindowUpdate>(&any), Some(WindowUpdate { update: 7 }));
        let long = Any { type_url: format!("type.googleapis.com/{}", any.type_url), ..any.clone() };
        assert_eq!(unpack::<WindowUpdate>(&long), Some(WindowUpdate { update: 7 }));
        assert_eq!(unpack::<Data>(&any), None);
    }
}
