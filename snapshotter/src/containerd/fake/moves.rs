//! Transfers from and to the registry. All blobs are in one place: only names move.

use capsule_proto::containerd::{
    services::{
        streaming::v1::streaming_server::Streaming as Streams,
        transfer::v1::{TransferRequest, transfer_server::Transfer},
    },
    types::transfer::{ImageStore, OciRegistry},
};
use futures::StreamExt;
use prost::{Message, Name};
use prost_types::Any;
use tonic::{Request, Response, Status, Streaming};

use super::{Fake, Flow};
use crate::capsules::model::Digest;

fn read<M: Message + Name + Default>(any: Option<&Any>) -> Option<M> {
    let any = any.filter(|any| any.type_url == M::full_name())?;
    M::decode(any.value.as_slice()).ok()
}

#[tonic::async_trait]
impl Transfer for Fake {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let TransferRequest { source, destination, .. } = request.into_inner();
        let (from, to) = (source.as_ref(), destination.as_ref());
        if let (Some(from), Some(to)) = (read::<OciRegistry>(from), read::<ImageStore>(to)) {
            let digest = self.remote(&from.reference);
            let digest: Option<Digest> = digest.and_then(|digest| digest.parse().ok());
            let digest = digest.ok_or_else(|| Status::not_found(format!("{}: not found", from.reference)))?;
            self.put_image(&to.name, &digest, &[]);
        } else if let (Some(from), Some(to)) = (read::<ImageStore>(from), read::<OciRegistry>(to)) {
            self.about_to(format!("push {}", to.reference)).await?;
            let mut state = self.state();
            let image = state.images.get(&from.name).and_then(|image| image.target.clone());
            let image = image.ok_or_else(|| Status::not_found("no such image"))?;
            state.registry.insert(to.reference, image.digest);
        } else {
            return Err(Status::unimplemented("neither from nor to a registry"));
        }
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Streams for Fake {
    type StreamStream = Flow<Any>;

    /// Tells that it is open, and nothing more until it is closed.
    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut first = true;
        let replies = request.into_inner().filter_map(move |_| {
            let opened = std::mem::take(&mut first).then(|| Ok(Any::default()));
            std::future::ready(opened)
        });
        Ok(Response::new(Box::pin(replies)))
    }
}
