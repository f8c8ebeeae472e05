//! `capsule.v1.Signatures`.

use capsule_proto::capsule::v1 as wire;
use tonic::{Request, Response, Status};

use super::{CapsulesService, convert, to_the_end};
use crate::capsules::{Capsules, Published, Signature};

/// The service.
#[derive(Clone)]
pub struct SignaturesService {
    capsules: Capsules,
    describing: CapsulesService,
}

impl SignaturesService {
    /// Over the capsules, and the service that describes them.
    pub fn new(capsules: Capsules, describing: CapsulesService) -> Self {
        Self { capsules, describing }
    }

    async fn answer(
        &self,
        (published, signatures): (Published, Vec<(Signature, bool)>),
    ) -> Result<(Option<wire::Version>, Vec<wire::Signature>), Status> {
        let wired = |(signature, trusted): (Signature, bool)| wire::Signature {
            signature: signature.text().to_owned(),
            payload: signature.payload,
            trusted,
        };
        let version = self.describing.describe(&published).await?;
        Ok((Some(version), signatures.into_iter().map(wired).collect()))
    }
}

#[tonic::async_trait]
impl wire::signatures_server::Signatures for SignaturesService {
    async fn sign(
        &self,
        request: Request<wire::SignRequest>,
    ) -> Result<Response<wire::SignResponse>, Status> {
        let wire::SignRequest { name, version, signature } = request.into_inner();
        let name = convert::parse_name(&name)?;
        let version = convert::parse_version(&version).map_err(convert::from_model)?;
        let signature = signature.ok_or_else(|| convert::malformed("a signature"))?;
        let signature = Signature::new(signature.payload, signature.signature);
        let capsules = self.capsules.clone();
        let signed = to_the_end(async move {
            let signed = capsules.sign(&name, version.as_ref(), signature).await?;
            capsules.signed(&signed.name, Some(&signed.version)).await
        });
        let signed = signed.await?;
        let (version, signatures) = self.answer(signed).await?;
        Ok(Response::new(wire::SignResponse { version, signatures }))
    }

    async fn list_signatures(
        &self,
        request: Request<wire::ListSignaturesRequest>,
    ) -> Result<Response<wire::ListSignaturesResponse>, Status> {
        let wire::ListSignaturesRequest { name, version } = request.into_inner();
        let name = convert::parse_name(&name)?;
        let version = convert::parse_version(&version).map_err(convert::from_model)?;
        let (version, signatures) = self.answer(self.capsules.signed(&name, version.as_ref()).await?).await?;
        Ok(Response::new(wire::ListSignaturesResponse { version, signatures }))
    }
}
