//! The content store. Its writer keeps what capsuled writes as soon as it is committed.

use capsule_proto::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest,
    WriteContentResponse, content_server::Content,
};
use futures::stream;
use tonic::{Request, Response, Status, Streaming};

use super::{Fake, Flow};

#[tonic::async_trait]
impl Content for Fake {
    type ListStream = Flow<ListContentResponse>;
    type ReadStream = Flow<ReadContentResponse>;
    type WriteStream = Flow<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        if !self.state().blobs.contains_key(&digest) {
            return Err(Status::not_found("no such blob"));
        }
        Ok(Response::new(InfoResponse { info: Some(Info { digest, ..Default::default() }) }))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Ok(Response::new(UpdateResponse::default()))
    }

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let data = self.state().blobs.get(&request.into_inner().digest).cloned();
        let data = data.ok_or_else(|| Status::not_found("no such blob"))?;
        let whole = Ok(ReadContentResponse { offset: 0, data });
        Ok(Response::new(Box::pin(stream::iter([whole]))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let begun = (self.clone(), request.into_inner(), Vec::new());
        let replies = stream::unfold(Some(begun), |state| async move {
            let (fake, mut requests, mut bytes) = state?;
            let request = requests.message().await.ok().flatten()?;
            if fake.state().blobs.contains_key(&request.expected) {
                return Some((Err(Status::already_exists("the blob is there")), None));
            }
            bytes.extend_from_slice(&request.data);
            if request.action == i32::from(WriteAction::Commit) {
                fake.put_blob(std::mem::take(&mut bytes));
            }
            Some((Ok(WriteContentResponse::default()), Some((fake, requests, bytes))))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
