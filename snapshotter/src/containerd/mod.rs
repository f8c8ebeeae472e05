//! containerd's client API, as far as capsuled needs it. Only this room speaks gRPC to containerd; it knows
//! nothing of capsules.
//!
//! Every call names its containerd namespace (header `containerd-namespace`) and, where content must survive the
//! garbage collector until something refers to it, a lease (`containerd-lease`).

mod archive;
mod containers;
mod content;
mod events;
mod execs;
#[cfg(test)]
pub(crate) mod fake;
mod images;
mod leases;
mod metrics;
mod plugins;
mod snapshots;
mod streams;
mod transfer;

use std::error::Error as _;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

pub use self::{
    archive::{AlteredMember, Watched},
    containers::{Container, Member, PODS},
    content::BlobWriter,
    events::{Event, EventStream},
    images::ImageRecord,
    leases::{Held, LEASE_LABEL, Lease},
    metrics::{Measured, Pressures},
    transfer::{Credential, Listener, Moved, RegistryImage},
};

/// A call to containerd that failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// containerd does not answer on its socket.
    #[error("containerd does not answer on {address}: is it running?")]
    Unreachable {
        /// The socket.
        address: PathBuf,
        /// What it said or why it could not be asked.
        #[source]
        source: Box<Status>,
    },
    /// containerd answered with an error.
    #[error("containerd could not {what}: {}", source.message())]
    Call {
        /// What was asked, as "read the blob sha256:…".
        what: String,
        /// The answer.
        #[source]
        source: Box<Status>,
    },
    /// containerd's answer lacks something it always has.
    #[error("containerd's answer to {what} lacks {missing}")]
    Incomplete {
        /// What was asked.
        what: String,
        /// What is not there.
        missing: &'static str,
    },
    /// What containerd has under a digest has another one.
    #[error(
        "blob {digest} of the containerd namespace {namespace} is altered: its bytes have the digest {found}; remove it \
         with \"ctr -n {namespace} content rm {digest}\", there and in every namespace that has it, and pull, load or \
         publish it again"
    )]
    Altered {
        /// What was asked for.
        digest: String,
        /// Where.
        namespace: String,
        /// What is there.
        found: String,
    },
    /// What was to be sent to containerd could not be had.
    #[error("{0}")]
    Source(String),
    /// Nobody waits for the answer any more.
    #[error("nobody waits for the answer any more")]
    Abandoned,
    /// A namespace or lease that cannot be a gRPC header.
    #[error("{0:?} cannot be sent as a gRPC header")]
    Header(String),
}

impl ContainerdError {
    /// containerd's code, where it answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call { source, .. } | Self::Unreachable { source, .. } => Some(source.code()),
            Self::Source(_) => Some(Code::Aborted),
            Self::Abandoned => Some(Code::Cancelled),
            Self::Incomplete { .. } | Self::Header(_) | Self::Altered { .. } => None,
        }
    }

    /// containerd knows no such object.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// The object is there already.
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }
}

/// A connection to containerd: cheap to clone, connects on first use and again after containerd's restart.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    address: PathBuf,
}

impl Containerd {
    /// Names the socket; nothing is connected yet.
    pub fn new(address: &Path) -> Self {
        let path = address.to_owned();
        // The URI is never looked up: the connector below decides where calls go.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            }),
        );
        Self { channel, address: address.to_owned() }
    }

    /// The socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Calls made through the scope are made in this containerd namespace.
    pub fn namespace(&self, namespace: &str) -> Result<Scope, ContainerdError> {
        Ok(Scope { containerd: self.clone(), namespace: header(namespace)?, lease: None })
    }

    /// The names of all namespaces.
    pub async fn namespaces(&self) -> Result<Vec<String>, ContainerdError> {
        use capsule_proto::containerd::services::namespaces::v1::{
            ListNamespacesRequest, namespaces_client::NamespacesClient,
        };
        let reply = NamespacesClient::new(self.channel.clone())
            .list(ListNamespacesRequest::default())
            .await
            .map_err(|e| self.failed("list its namespaces", e))?;
        Ok(reply.into_inner().namespaces.into_iter().map(|n| n.name).collect())
    }

    /// Sees to it that a namespace exists.
    pub async fn ensure_namespace(&self, name: &str) -> Result<(), ContainerdError> {
        use capsule_proto::containerd::services::namespaces::v1::{
            CreateNamespaceRequest, Namespace, namespaces_client::NamespacesClient,
        };
        let namespace = Namespace { name: name.to_owned(), ..Default::default() };
        let request = CreateNamespaceRequest { namespace: Some(namespace) };
        match NamespacesClient::new(self.channel.clone()).create(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.failed(&format!("create the namespace {name}"), status)),
        }
    }

    fn failed(&self, what: &str, status: Status) -> ContainerdError {
        // tonic reports a socket that nobody listens on as Unavailable, with a source; containerd a snapshotter that it cannot
        // reach, without one.
        if status.code() == Code::Unavailable && status.source().is_some() {
            ContainerdError::Unreachable { address: self.address.clone(), source: Box::new(status) }
        } else {
            ContainerdError::Call { what: what.to_owned(), source: Box::new(status) }
        }
    }
}

/// containerd seen from one of its namespaces, possibly under a lease.
#[derive(Debug, Clone)]
pub struct Scope {
    containerd: Containerd,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Scope {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }

    fn channel(&self) -> Channel {
        self.containerd.channel.clone()
    }

    fn failed(&self, what: &str, status: Status) -> ContainerdError {
        self.containerd.failed(what, status)
    }

    /// Makes a lease, with [`LEASE_LABEL`], that expires by itself after `seconds`; what is made through the returned scope is kept
    /// until then or until [`Scope::release`].
    pub async fn leased(&self, id: &str, seconds: u64) -> Result<Self, ContainerdError> {
        use capsule_proto::containerd::services::leases::v1::{CreateRequest, leases_client::LeasesClient};
        let expires = humantime(std::time::SystemTime::now() + std::time::Duration::from_secs(seconds));
        let request = CreateRequest {
            id: id.to_owned(),
            labels: [
                ("containerd.io/gc.expire".to_owned(), expires),
                (LEASE_LABEL.to_owned(), String::new()),
            ]
            .into(),
        };
        LeasesClient::new(self.channel())
            .create(self.request(request))
            .await
            .map_err(|e| self.failed(&format!("create the lease {id}"), e))?;
        self.under(id)
    }

    /// Under a lease that is there already.
    ///
    /// # Errors
    /// [`ContainerdError::Header`].
    pub fn under(&self, id: &str) -> Result<Self, ContainerdError> {
        Ok(Self { lease: Some(header(id)?), ..self.clone() })
    }

    /// Deletes the scope's lease, if it has one.
    pub async fn release(self) -> Result<(), ContainerdError> {
        self.release_then(false).await
    }

    /// Deletes the scope's lease, if it has one, and waits until what only it held is collected.
    pub async fn release_and_collect(self) -> Result<(), ContainerdError> {
        self.release_then(true).await
    }

    async fn release_then(self, collect: bool) -> Result<(), ContainerdError> {
        use capsule_proto::containerd::services::leases::v1::{DeleteRequest, leases_client::LeasesClient};
        let Some(lease) = &self.lease else { return Ok(()) };
        let id = String::from_utf8_lossy(lease.as_bytes()).into_owned();
        let request = DeleteRequest { id: id.clone(), sync: collect };
        match LeasesClient::new(self.channel()).delete(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&format!("delete the lease {id}"), status)),
        }
    }
}

fn header(text: &str) -> Result<MetadataValue<Ascii>, ContainerdError> {
    text.parse().map_err(|_| ContainerdError::Header(text.to_owned()))
}

/// An instant as RFC 3339 in UTC with seconds, which `gc.expire` wants.
fn humantime(at: std::time::SystemTime) -> String {
    prost_types::Timestamp::from(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_rfc_3339() {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_767_225_599);
        assert_eq!(humantime(at), "2025-12-31T23:59:59Z");
    }

    #[tokio::test]
    async fn namespaces_that_are_no_headers_are_refused() {
        let containerd = Containerd::new(Path::new("/nowhere.sock"));
        assert!(matches!(containerd.namespace("a\nb"), Err(ContainerdError::Header(_))));
    }
}
