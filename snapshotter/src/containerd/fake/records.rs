//! Images, leases, and the one namespace.

use capsule_proto::containerd::services::{
    images::v1::{
        CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
        ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
        images_server::Images,
    },
    leases::v1::{
        AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease,
        ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse, leases_server::Leases,
    },
    namespaces::v1::{
        CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
        GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace,
        UpdateNamespaceRequest, UpdateNamespaceResponse, namespaces_server::Namespaces,
    },
};
use tonic::{Request, Response, Status};

use super::Fake;

#[tonic::async_trait]
impl Images for Fake {
    async fn get(&self, request: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        let image = self.state().images.get(&request.into_inner().name).cloned();
        let image = image.ok_or_else(|| Status::not_found("no such image"))?;
        Ok(Response::new(GetImageResponse { image: Some(image) }))
    }

    async fn list(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: self.state().images.values().cloned().collect() }))
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        let image = request.into_inner().image.unwrap_or_default();
        self.about_to(format!("create {}", image.name)).await?;
        let mut state = self.state();
        if state.images.contains_key(&image.name) {
            return Err(Status::already_exists("the image is there"));
        }
        state.images.insert(image.name.clone(), image);
        Ok(Response::new(CreateImageResponse::default()))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        let image = request.into_inner().image.unwrap_or_default();
        self.about_to(format!("update {}", image.name)).await?;
        let mut state = self.state();
        let old = state.images.get_mut(&image.name).ok_or_else(|| Status::not_found("no such image"))?;
        *old = image;
        Ok(Response::new(UpdateImageResponse::default()))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.about_to(format!("delete {name}")).await?;
        match self.state().images.remove(&name) {
            Some(_) => Ok(Response::new(())),
            None => Err(Status::not_found("no such image")),
        }
    }
}

#[tonic::async_trait]
impl Leases for Fake {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        self.state().leases.entry(request.into_inner().id).or_default();
        Ok(Response::new(CreateResponse::default()))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        self.state().leases.remove(&request.into_inner().id);
        Ok(Response::new(()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let lease = |id: &String| Lease { id: id.clone(), ..Default::default() };
        Ok(Response::new(ListResponse { leases: self.state().leases.keys().map(lease).collect() }))
    }

    async fn add_resource(&self, _: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn delete_resource(&self, _: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let resources = self.state().leases.get(&request.into_inner().id).cloned();
        let resources = resources.ok_or_else(|| Status::not_found("no such lease"))?;
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}

#[tonic::async_trait]
impl Namespaces for Fake {
    async fn get(&self, _: Request<GetNamespaceRequest>) -> Result<Response<GetNamespaceResponse>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn list(
        &self,
        _: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let namespace = Namespace { name: "capsules".to_owned(), ..Default::default() };
        Ok(Response::new(ListNamespacesResponse { namespaces: vec![namespace] }))
    }

    async fn create(
        &self,
        _: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        Err(Status::already_exists("the namespace is there"))
    }

    async fn update(
        &self,
        _: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }

    async fn delete(&self, _: Request<DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("capsuled asks for none"))
    }
}
