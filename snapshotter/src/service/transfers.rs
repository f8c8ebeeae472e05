//! `capsule.v1.Transfers`: versions on their way between nodes.

use std::{collections::HashMap, future::Future};

use capsule_proto::capsule::v1 as wire;
use futures::{Stream, StreamExt, stream};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{CapsulesService, convert, to_the_end};
use crate::{
    capsules::{Arrived, Capsules},
    containerd::{Credential, Listener, Moved},
    metrics::{Meters, Transfer},
};

/// Messages on their way to a caller.
const EVENTS: usize = 64;
/// Pieces of an archive on their way to a caller.
const PIECES: usize = 8;

/// The service.
#[derive(Clone)]
pub struct TransfersService {
    capsules: Capsules,
    describing: CapsulesService,
    meters: Meters,
}

impl TransfersService {
    /// Over the capsules, the service that describes them, and what counts their bytes.
    pub fn new(capsules: Capsules, describing: CapsulesService, meters: Meters) -> Self {
        Self { capsules, describing, meters }
    }

    async fn arrived(&self, arrived: Arrived) -> Result<wire::Arrived, Status> {
        let version = Some(self.describing.describe(&arrived.published).await?);
        Ok(wire::Arrived { version, existed: arrived.existed, reference: arrived.reference })
    }
}

/// How far each blob of a transfer has come.
#[derive(Debug, Default)]
struct Blobs(HashMap<String, u64>);

impl Blobs {
    /// The bytes that have moved since it was told last.
    fn since(&mut self, moved: &Moved) -> u64 {
        let before = self.0.insert(moved.name.clone(), moved.done).unwrap_or(0);
        // Nothing of it moves.
        if moved.event == "already exists" { 0 } else { moved.done.saturating_sub(before) }
    }
}

type Events<T> = ReceiverStream<Result<T, Status>>;

/// Runs a call in a task of its own, and tells the caller of its progress and its end. A caller that goes away takes the
/// listener with it; the call then ends itself, with all that it has to clear up.
fn relay<T, F>(
    call: impl FnOnce(Listener) -> F + Send + 'static,
    progress: impl Fn(wire::Progress) -> T + Send + 'static,
    bytes: Counter,
) -> Response<Events<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let (events, receiver) = mpsc::channel(EVENTS);
    let (listener, mut moved) = mpsc::channel::<Moved>(EVENTS);
    tokio::spawn(async move {
        let call = call(listener);
        tokio::pin!(call);
        let (mut gone, mut blobs) = (false, Blobs::default());
        let done = loop {
            tokio::select! {
                biased;
                Some(moved) = moved.recv() => {
                    bytes.inc_by(blobs.since(&moved));
                    let Moved { event, name, done, total } = moved;
                    let told = progress(wire::Progress { event, name, done, total });
                    events.send(Ok(told)).await.ok();
                }
                done = &mut call => break done,
                () = events.closed(), if !gone => {
                    moved.close();
                    gone = true;
                }
            }
        };
        events.send(done).await.ok();
    });
    Response::new(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl wire::transfers_server::Transfers for TransfersService {
    type PullStream = Events<wire::PullResponse>;
    type PushStream = Events<wire::PushResponse>;
    type SaveStream = Events<wire::SaveResponse>;

    async fn pull(&self, request: Request<wire::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        use wire::pull_response::Event;
        let wire::PullRequest { reference, r#as, credentials } = request.into_inner();
        let naming = convert::parse_naming(r#as)?;
        let this = self.clone();
        let call = async move |listener| {
            let pulled = this.capsules.pull(&reference, &naming, parse(credentials), &listener).await?;
            Ok(wire::PullResponse { event: Some(Event::Done(this.arrived(pulled).await?)) })
        };
        let bytes = self.meters.moved(Transfer::Pull);
        Ok(relay(call, |progress| wire::PullResponse { event: Some(Event::Progress(progress)) }, bytes))
    }

    async fn push(&self, request: Request<wire::PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        use wire::push_response::Event;
        let wire::PushRequest { name, version, reference, credentials } = request.into_inner();
        let name = convert::parse_name(&name)?;
        let version = convert::parse_version(&version).map_err(convert::from_model)?;
        let this = self.clone();
        let call = async move |listener| {
            let which = (&name, version.as_ref());
            let pushed = this.capsules.push(which, &reference, parse(credentials), &listener).await?;
            let (published, reference) = pushed;
            let version = Some(this.describing.describe(&published).await?);
            Ok(wire::PushResponse { event: Some(Event::Done(wire::Pushed { version, reference })) })
        };
        let bytes = self.meters.moved(Transfer::Push);
        Ok(relay(call, |progress| wire::PushResponse { event: Some(Event::Progress(progress)) }, bytes))
    }

    async fn save(&self, request: Request<wire::SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        let parse = |saved: wire::Saved| {
            let version = convert::parse_version(&saved.version).map_err(convert::from_model)?;
            Ok::<_, Status>((convert::parse_name(&saved.name)?, version))
        };
        let versions: Vec<_> =
            request.into_inner().versions.into_iter().map(parse).collect::<Result<_, _>>()?;
        if versions.is_empty() {
            return Err(convert::malformed("a version"));
        }
        let (capsules, bytes) = (self.capsules.clone(), self.meters.moved(Transfer::Save));
        let (events, receiver) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let (pieces, mut written) = mpsc::channel(PIECES);
            let save = async move { capsules.save(&versions, &pieces).await };
            let forward = async {
                while let Some(piece) = written.recv().await {
                    bytes.inc_by(length(&piece));
                    let piece = piece.map_err(Status::aborted).map(|archive| wire::SaveResponse { archive });
                    if events.send(piece).await.is_err() {
                        // Nobody takes it: the next piece ends the call.
                        written.close();
                    }
                }
            };
            if let (Err(error), ()) = tokio::join!(save, forward) {
                events.send(Err(error.into())).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn load(
        &self,
        request: Request<Streaming<wire::LoadRequest>>,
    ) -> Result<Response<wire::LoadResponse>, Status> {
        let (capsules, bytes) = (self.capsules.clone(), self.meters.moved(Transfer::Load));
        let parts = pieces(request.into_inner()).inspect(move |piece| {
            bytes.inc_by(length(piece));
        });
        // A caller who goes away ends the stream, and so the call.
        let loaded = to_the_end(async move { capsules.load(parts).await }).await?;
        let mut arrived = Vec::with_capacity(loaded.len());
        for one in loaded {
            arrived.push(self.arrived(one).await?);
        }
        Ok(Response::new(wire::LoadResponse { arrived }))
    }

    async fn import(
        &self,
        request: Request<wire::ImportRequest>,
    ) -> Result<Response<wire::ImportResponse>, Status> {
        let wire::ImportRequest { image, namespace, r#as } = request.into_inner();
        if image.is_empty() || namespace.is_empty() {
            return Err(convert::malformed("an image or its namespace"));
        }
        let naming = convert::parse_naming(r#as)?;
        let capsules = self.capsules.clone();
        let imported = to_the_end(async move { capsules.import(&image, &namespace, &naming).await }).await?;
        Ok(Response::new(wire::ImportResponse { arrived: Some(self.arrived(imported).await?) }))
    }
}

fn length(piece: &Result<Vec<u8>, String>) -> u64 {
    piece.as_ref().map_or(0, |bytes| bytes.len() as u64)
}

fn parse(credentials: Vec<wire::Credential>) -> Vec<Credential> {
    let parse = |wire::Credential { host, username, password }| Credential { host, username, password };
    credentials.into_iter().map(parse).collect()
}

/// The archive's pieces; an error as text ends them. A stream that ends by the caller's death is an error, not an end.
fn pieces(parts: Streaming<wire::LoadRequest>) -> impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin {
    let pieces = stream::unfold(Some(parts), |parts| async move {
        let mut parts = parts?;
        match parts.message().await {
            Ok(None) => None,
            Ok(Some(wire::LoadRequest { archive })) => Some((Ok(archive), Some(parts))),
            Err(status) => Some((Err(status.message().to_owned()), None)),
        }
    });
    pieces.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_once_and_only_if_they_moved() {
        let mut blobs = Blobs::default();
        let mut since = |event: &str, name: &str, done| {
            blobs.since(&Moved { event: event.into(), name: name.into(), done, total: 9 })
        };
        assert_eq!(since("waiting", "a", 0), 0);
        assert_eq!(since("downloading", "a", 4), 4);
        assert_eq!(since("complete", "a", 9), 5);
        assert_eq!(since("complete", "a", 9), 0);
        assert_eq!(since("already exists", "b", 9), 0);
        assert_eq!(since("complete", "b", 9), 0);
        assert_eq!(since("complete", "c", 9), 9);
    }
}
