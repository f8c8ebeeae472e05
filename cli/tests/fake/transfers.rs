//! `capsule.v1.Transfers` of the fake.

use capsule_proto::capsule::v1::transfers_server::Transfers;
use capsule_proto::capsule::v1::{self, pull_response, push_response};
use tokio_stream::Iter;
use tonic::{Request, Response, Status, Streaming};

use super::{Asked, Service, version};

/// What a saved archive holds.
pub const ARCHIVE: [&[u8]; 2] = [b"an archive ", b"in two pieces"];

type Events<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

fn events<T>(all: Vec<Result<T, Status>>) -> Response<Events<T>> {
    Response::new(tokio_stream::iter(all))
}

fn progress(event: &str) -> v1::Progress {
    v1::Progress { event: event.into(), name: "layer-sha256:aa".into(), done: 1024, total: 2048 }
}

fn arrived(existed: bool) -> v1::Arrived {
    v1::Arrived { version: Some(version()), existed, reference: "h:1/zones:1".into() }
}

#[tonic::async_trait]
impl Transfers for Service {
    type PullStream = Events<v1::PullResponse>;
    type PushStream = Events<v1::PushResponse>;
    type SaveStream = Events<v1::SaveResponse>;

    async fn pull(&self, request: Request<v1::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        use pull_response::Event;
        let request = request.into_inner();
        let refused = request.reference.ends_with(":refused");
        self.heard(Asked::Pull(request));
        let event = |event| Ok(v1::PullResponse { event: Some(event) });
        let last = if refused {
            Err(Status::not_found("there is no such image"))
        } else {
            event(Event::Done(arrived(false)))
        };
        let downloading = || event(Event::Progress(progress("downloading")));
        Ok(events(vec![downloading(), downloading(), event(Event::Progress(progress("complete"))), last]))
    }

    async fn push(&self, request: Request<v1::PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        use push_response::Event;
        let request = request.into_inner();
        let reference = request.reference.clone();
        self.heard(Asked::Push(request));
        let done = Event::Done(v1::Pushed { version: Some(version()), reference });
        Ok(events(vec![Ok(v1::PushResponse { event: Some(done) })]))
    }

    async fn save(&self, request: Request<v1::SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        let request = request.into_inner();
        let breaks = request.versions.iter().any(|version| version.name == "broken");
        self.heard(Asked::Save(request));
        let mut all: Vec<_> =
            ARCHIVE.iter().map(|piece| Ok(v1::SaveResponse { archive: piece.to_vec() })).collect();
        if breaks {
            all[1] = Err(Status::data_loss("it broke off"));
        }
        Ok(events(all))
    }

    async fn load(
        &self,
        request: Request<Streaming<v1::LoadRequest>>,
    ) -> Result<Response<v1::LoadResponse>, Status> {
        let (mut pieces, mut archive) = (request.into_inner(), Vec::new());
        while let Some(v1::LoadRequest { archive: piece }) = pieces.message().await? {
            archive.extend(piece);
        }
        self.heard(Asked::Load(archive));
        Ok(Response::new(v1::LoadResponse { arrived: vec![arrived(true), arrived(false)] }))
    }

    async fn import(
        &self,
        request: Request<v1::ImportRequest>,
    ) -> Result<Response<v1::ImportResponse>, Status> {
        self.heard(Asked::Import(request.into_inner()));
        Ok(Response::new(v1::ImportResponse { arrived: Some(arrived(false)) }))
    }
}
