//! `capsule.v1.Uppers` of the fake.

use capsule_proto::capsule::v1;
use capsule_proto::capsule::v1::uppers_server::Uppers;
use tonic::{Request, Response, Status};

use super::{Asked, INSTANT, Service, version};

fn upper() -> v1::Upper {
    v1::Upper {
        name: "notes".into(),
        capsule: "tzdata".into(),
        version: "2026.1".into(),
        digest: version().digest,
        size: 1 << 30,
        created_at: Some(prost_types::Timestamp { seconds: INSTANT, nanos: 0 }),
        used_by: "a1".into(),
    }
}

#[tonic::async_trait]
impl Uppers for Service {
    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        self.heard(Asked::Commit(request.into_inner()));
        let answer =
            v1::CommitResponse { version: Some(version()), existed: false, from_version: "2025.9".into() };
        Ok(Response::new(answer))
    }

    async fn list_uppers(
        &self,
        _: Request<v1::ListUppersRequest>,
    ) -> Result<Response<v1::ListUppersResponse>, Status> {
        Ok(Response::new(v1::ListUppersResponse { uppers: vec![upper()] }))
    }

    async fn remove_upper(
        &self,
        request: Request<v1::RemoveUpperRequest>,
    ) -> Result<Response<v1::RemoveUpperResponse>, Status> {
        self.heard(Asked::RemoveUpper(request.into_inner()));
        Ok(Response::new(v1::RemoveUpperResponse { upper: Some(upper()) }))
    }
}
