//! `capsule.v1.Transfers`: versions on their way between nodes.

use std::future::Future;

use capsule_proto::capsule::v1 as wire;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{CapsulesService, convert, to_the_end};
use crate::{
    capsules::{Arrived, Capsules},
    containerd::{Credential, Listener, Moved},
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
}

impl TransfersService {
    /// Over the capsules, and the service that describes them.
    pub fn new(capsules: Capsules, describing: CapsulesService) -> Self {
        Self { capsules, describing }
    }

    async fn arrived(&self, arrived: Arrived) -> Result<wire::Arrived, Status> {
        let version = Some(self.describing.describe(&arrived.published).await?);
        Ok(wire::Arrived { version, existed: arrived.existed, reference: arrived.reference })
    }
}

type Events<T> = ReceiverStream<Result<T, Status>>;

/// Runs a call in a task of its own, and tells the caller of its progress and its end. A caller that goes away takes the
/// listener with it; the call then ends itself, with all that it has to clear up.
fn relay<T, F>(
    call: impl FnOnce(Listener) -> F + Send + 'static,
    progress: impl Fn(wire::Progress) -> T + Send + 'static,
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
        let mut gone = false;
        let done = loop {
            tokio::select! {
                biased;
                Some(Moved { event, name, done, total }) = moved.recv() => {
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
        Ok(relay(call, |progress| wire::PullResponse { event: Some(Event::Progress(progress)) }))
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
        Ok(relay(call, |progress| wire::PushResponse { event: Some(Event::Progress(progress)) }))
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
        let capsules = self.capsules.clone();
        let (events, receiver) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            let (pieces, mut written) = mpsc::channel(PIECES);
            let save = async move { capsules.save(&versions, &pieces).await };
            let forward = async {
                while let Some(piece) = written.recv().await {
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
        let (capsules, parts) = (self.capsules.clone(), request.into_inner());
        // A caller who goes away ends the stream, and so the call.
        let loaded = to_the_end(async move { capsules.load(pieces(parts)).await }).await?;
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
