//! The connection to capsuled: one Unix socket, or TLS to a node elsewhere (`remote`), one HTTP/2 connection, the services of `capsule.v1`.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use capsule_proto::capsule::v1::attachments_client::AttachmentsClient;
use capsule_proto::capsule::v1::budgets_client::BudgetsClient;
use capsule_proto::capsule::v1::capsules_client::CapsulesClient;
use capsule_proto::capsule::v1::collector_client::CollectorClient;
use capsule_proto::capsule::v1::devices_client::DevicesClient;
use capsule_proto::capsule::v1::events_client::EventsClient;
use capsule_proto::capsule::v1::metrics_client::MetricsClient;
use capsule_proto::capsule::v1::signatures_client::SignaturesClient;
use capsule_proto::capsule::v1::tags_client::TagsClient;
use capsule_proto::capsule::v1::transfers_client::TransfersClient;
use capsule_proto::capsule::v1::trees_client::TreesClient;
use capsule_proto::capsule::v1::uppers_client::UppersClient;
use capsule_proto::capsule::v1::usage_client::UsageClient;
use capsule_proto::capsule::v1::volumes_client::VolumesClient;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::health_client::HealthClient;

use crate::error::Error;
use crate::remote::{self, Place};
use crate::trace::Caller;

/// Listings of a large node are larger than gRPC's usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// A connection on which each call says of which trace it is.
pub type Wire = InterceptedService<Channel, Caller>;

/// A connection to capsuled.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    caller: Caller,
}

/// A gRPC channel over a connection that is there; when it breaks, so does the channel.
///
/// # Errors
/// When what listens does not speak HTTP/2.
pub async fn channel(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Channel, tonic::transport::Error> {
    let stream = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().ok().and_then(|mut s| s.take());
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)) }
    });
    Endpoint::from_static("http://capsuled").connect_with_connector(connector).await
}

impl Client {
    /// Connects to where capsuled is. Calls are a part of the caller's trace.
    ///
    /// # Errors
    /// [`Error::Connect`] and [`Error::Handshake`] here, [`Error::Remote`] elsewhere.
    pub async fn at(place: &Place, caller: Caller) -> Result<Self, Error> {
        match place {
            Place::Socket(address) => Self::connect(address, caller).await,
            Place::Node(node) => Ok(Self { channel: remote::connect(node).await?, caller }),
        }
    }

    /// Connects to the socket at `address`.
    ///
    /// # Errors
    /// [`Error::Connect`] with the errno when nobody listens there or the caller may not connect.
    pub async fn connect(address: &Path, caller: Caller) -> Result<Self, Error> {
        // The socket is connected here and not by tonic, so that the errno reaches the person as it is.
        let stream = UnixStream::connect(address)
            .await
            .map_err(|source| Error::Connect { address: address.to_owned(), source })?;
        let channel = channel(stream)
            .await
            .map_err(|source| Error::Handshake { address: address.to_owned(), source })?;
        Ok(Self { channel, caller })
    }

    fn wire(&self) -> Wire {
        InterceptedService::new(self.channel.clone(), self.caller.clone())
    }

    /// Publishing and looking at versions.
    pub fn capsules(&self) -> CapsulesClient<Wire> {
        CapsulesClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Which services can do their work.
    pub fn health(&self) -> HealthClient<Wire> {
        HealthClient::new(self.wire())
    }

    /// What happens on the node.
    pub fn events(&self) -> EventsClient<Wire> {
        EventsClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Devices of the node.
    pub fn devices(&self) -> DevicesClient<Wire> {
        DevicesClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// How much attachments may add to limits.
    pub fn budgets(&self) -> BudgetsClient<Wire> {
        BudgetsClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What containers use.
    pub fn usage(&self) -> UsageClient<Wire> {
        UsageClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What capsuled counts.
    pub fn metrics(&self) -> MetricsClient<Wire> {
        MetricsClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Removing versions.
    pub fn collector(&self) -> CollectorClient<Wire> {
        CollectorClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Names of versions that move.
    pub fn tags(&self) -> TagsClient<Wire> {
        TagsClient::new(self.wire())
    }

    /// Who vouches for versions.
    pub fn signatures(&self) -> SignaturesClient<Wire> {
        SignaturesClient::new(self.wire())
    }

    /// Versions on their way between nodes.
    pub fn transfers(&self) -> TransfersClient<Wire> {
        TransfersClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What is in versions.
    pub fn trees(&self) -> TreesClient<Wire> {
        TreesClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What is written to attachments.
    pub fn uppers(&self) -> UppersClient<Wire> {
        UppersClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Capsules and directories at paths of the node.
    pub fn volumes(&self) -> VolumesClient<Wire> {
        VolumesClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Capsules in live containers.
    pub fn attachments(&self) -> AttachmentsClient<Wire> {
        AttachmentsClient::new(self.wire()).max_decoding_message_size(MAX_ANSWER)
    }
}
