//! The capsule side of the daemon, put together: what `main` starts beside the snapshotter.

use capsule_proto::capsule::v1::{
    attachments_server::AttachmentsServer, capsules_server::CapsulesServer, trees_server::TreesServer,
};
use tonic::service::Routes;

use crate::{
    agreement,
    attachments::{Attachments, Marks},
    capsules::Capsules,
    config::Config,
    containerd::Containerd,
    service::{AttachmentsService, CapsulesService, NodeService, NodeServiceError, TreesService},
    shims::Shims,
    snapshots::Snapshots,
    store::{
        Store, StoreError, Watch,
        attachments::{self, Journal},
    },
};

/// Why the capsule side did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The attachment records could not be read.
    #[error("read the attachment records: {0}")]
    Records(#[from] StoreError),
    /// The thread that writes them could not be started.
    #[error("start the thread that writes attachment records")]
    Journal(#[source] std::io::Error),
}

/// Attachment records, in the run directory. They must outlive capsuled and need not outlive the mounts that they
/// tell of, which end with the kernel: on a tmpfs, no attach waits for a disk.
const RECORDS: &str = "attachments.redb";

/// Where shims ask, in the run directory. They try again while it is away.
const SHIMS: &str = "node.sock";

/// Largest message of a build: a client's chunk of 1 MiB, with room for another client's larger ones.
const MESSAGE_MAX: usize = 16 << 20;

/// The capsule side of the daemon.
pub struct Node {
    capsules: Capsules,
    attachments: Attachments,
    records: Watch,
    containerd: Containerd,
    config: Config,
}

impl Node {
    /// Takes over what an earlier run left: everything on record is pinned, and what was half done is settled with
    /// the shims. Asks containerd nothing, so that it works (and is quick) when containerd is away.
    ///
    /// To be called before the snapshotter is served: a snapshot that is in use must not be removable for a moment.
    pub async fn open(config: &Config, snapshots: Snapshots) -> Result<Self, NodeError> {
        let store = Store::open(&config.run.join(RECORDS))?;
        let records = store.watch();
        let recorded = attachments::read_all(&store)?;
        let journal = Journal::start(store).map_err(NodeError::Journal)?;
        let containerd = Containerd::new(&config.containerd.address);
        let (namespace, snapshotter) = (&config.containerd.namespace, &config.containerd.snapshotter);
        let capsules = Capsules::new(containerd.clone(), snapshots.clone(), namespace, snapshotter)
            .discarding_layers(config.capsules.discard_unpacked_layers);
        let attachments = Attachments::new(
            containerd.clone(),
            capsules.clone(),
            snapshots,
            Shims::new(&config.run),
            journal,
            Marks::new(&config.run),
        );
        attachments.pin_recorded(&recorded);
        attachments.recover(recorded).await;
        Ok(Self { capsules, attachments, records, containerd, config: config.clone() })
    }

    /// A watch over the store of the attachment records. It is closed when this, the routes and what runs in the
    /// background are gone.
    pub fn watch(&self) -> Watch {
        self.records.clone()
    }

    /// Follows containerd in the background until the runtime ends.
    pub fn follow_containerd(&self) {
        tokio::spawn(self.attachments.clone().watch());
        tokio::spawn(agreement::check(self.containerd.clone(), self.config.clone()));
    }

    /// Serves what shims ask of capsuled, `capsule.node.v1`, on a socket in the run directory.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve_shims(&self, config: &Config) -> Result<NodeService, NodeServiceError> {
        NodeService::serve(&config.run.join(SHIMS), self.attachments.clone()).await
    }

    /// `capsule.v1` as gRPC routes.
    pub fn routes(&self) -> Routes {
        let capsules = CapsulesService::new(self.capsules.clone(), self.attachments.clone());
        let attachments = AttachmentsService::new(self.attachments.clone());
        Routes::new(CapsulesServer::new(capsules).max_decoding_message_size(MESSAGE_MAX))
            .add_service(AttachmentsServer::new(attachments))
            .add_service(TreesServer::new(TreesService::new(self.capsules.clone())))
    }
}
