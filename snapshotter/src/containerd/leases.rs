//! Leases of others: what they keep from being collected.

use std::{collections::HashMap, time::SystemTime};

use capsule_proto::containerd::services::leases::v1::{
    Lease as WireLease, ListRequest, ListResourcesRequest, Resource, leases_client::LeasesClient,
};
use tonic::Code;

use super::{ContainerdError, Scope};

/// The label by which leases that capsuled makes are known.
pub const LEASE_LABEL: &str = "resourcecapsules.io/lease";

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its id, unique in its namespace.
    pub id: String,
    /// When it was created.
    pub created: Option<SystemTime>,
    /// Labels.
    pub labels: HashMap<String, String>,
}

/// What a lease holds (containerd v2.1.9 `core/metadata/leases.go`, `parseLeaseResource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Held {
    /// An image, by its name: with all that its target refers to.
    Image(String),
    /// A blob by its digest, or a snapshot by its name: with all that it refers to.
    Part(String),
}

impl From<Resource> for Held {
    fn from(resource: Resource) -> Self {
        match resource.r#type.as_str() {
            "images" => Self::Image(resource.id),
            _ => Self::Part(resource.id),
        }
    }
}

impl From<WireLease> for Lease {
    fn from(lease: WireLease) -> Self {
        let created = lease.created_at.and_then(|at| SystemTime::try_from(at).ok());
        Self { id: lease.id, created, labels: lease.labels }
    }
}

impl Scope {
    /// All leases of the namespace.
    ///
    /// # Errors
    /// containerd's.
    pub async fn leases(&self) -> Result<Vec<Lease>, ContainerdError> {
        self.list_leases(ListRequest::default()).await
    }

    /// One lease; `None` if the namespace has none of this id.
    ///
    /// # Errors
    /// containerd's.
    pub async fn lease(&self, id: &str) -> Result<Option<Lease>, ContainerdError> {
        let request = ListRequest { filters: vec![format!("id=={id:?}")] };
        Ok(self.list_leases(request).await?.into_iter().find(|lease| lease.id == id))
    }

    async fn list_leases(&self, request: ListRequest) -> Result<Vec<Lease>, ContainerdError> {
        let reply = LeasesClient::new(self.channel()).list(self.request(request)).await;
        let reply = reply.map_err(|e| self.failed("list its leases", e))?;
        Ok(reply.into_inner().leases.into_iter().map(Lease::from).collect())
    }

    /// What a lease holds. Nothing, if it has ended.
    ///
    /// # Errors
    /// containerd's.
    pub async fn lease_resources(&self, lease: &str) -> Result<Vec<Held>, ContainerdError> {
        let request = ListResourcesRequest { id: lease.to_owned() };
        match LeasesClient::new(self.channel()).list_resources(self.request(request)).await {
            Ok(reply) => Ok(reply.into_inner().resources.into_iter().map(Held::from).collect()),
            Err(status) if status.code() == Code::NotFound => Ok(Vec::new()),
            Err(status) => Err(self.failed(&format!("list what the lease {lease} holds"), status)),
        }
    }
}
