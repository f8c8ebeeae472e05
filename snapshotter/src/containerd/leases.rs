//! Leases of others: what they keep from being collected.

use capsule_proto::containerd::services::leases::v1::{
    ListRequest, ListResourcesRequest, leases_client::LeasesClient,
};
use tonic::Code;

use super::{ContainerdError, Scope};

impl Scope {
    /// The names of all leases of the namespace.
    ///
    /// # Errors
    /// containerd's.
    pub async fn leases(&self) -> Result<Vec<String>, ContainerdError> {
        let reply = LeasesClient::new(self.channel()).list(self.request(ListRequest::default())).await;
        let reply = reply.map_err(|e| self.failed("list its leases", e))?;
        Ok(reply.into_inner().leases.into_iter().map(|lease| lease.id).collect())
    }

    /// What a lease holds: digests of blobs, and names of snapshots. Nothing, if it has ended.
    ///
    /// # Errors
    /// containerd's.
    pub async fn lease_resources(&self, lease: &str) -> Result<Vec<String>, ContainerdError> {
        let request = ListResourcesRequest { id: lease.to_owned() };
        match LeasesClient::new(self.channel()).list_resources(self.request(request)).await {
            Ok(reply) => Ok(reply.into_inner().resources.into_iter().map(|resource| resource.id).collect()),
            Err(status) if status.code() == Code::NotFound => Ok(Vec::new()),
            Err(status) => Err(self.failed(&format!("list what the lease {lease} holds"), status)),
        }
    }
}
