//! `capsule.v1.Signatures` of the fake: it keeps what it is given.

use capsule_proto::capsule::v1;
use capsule_proto::capsule::v1::signatures_server::Signatures;
use tonic::{Request, Response, Status};

use super::{Asked, Service, version};

impl Service {
    fn kept(&self) -> Vec<v1::Signature> {
        let log = self.log.lock().expect("the log");
        let signature = |asked: &Asked| match asked {
            Asked::Sign(request) => request.signature.clone(),
            _ => None,
        };
        log.iter().filter_map(signature).collect()
    }
}

#[tonic::async_trait]
impl Signatures for Service {
    async fn sign(&self, request: Request<v1::SignRequest>) -> Result<Response<v1::SignResponse>, Status> {
        self.heard(Asked::Sign(request.into_inner()));
        Ok(Response::new(v1::SignResponse { version: Some(version()), signatures: self.kept() }))
    }

    async fn list_signatures(
        &self,
        request: Request<v1::ListSignaturesRequest>,
    ) -> Result<Response<v1::ListSignaturesResponse>, Status> {
        self.heard(Asked::Signatures(request.into_inner()));
        Ok(Response::new(v1::ListSignaturesResponse { version: Some(version()), signatures: self.kept() }))
    }
}
