//! The capsule side of the daemon, put together: what `main` starts beside the snapshotter.

use std::{io, sync::Arc};

use capsule_proto::capsule::v1::{
    attachments_server::{self, AttachmentsServer},
    budgets_server::{self, BudgetsServer},
    capsules_server::{self, CapsulesServer},
    collector_server::{self, CollectorServer},
    devices_server::{self, DevicesServer},
    events_server::{self, EventsServer},
    metrics_server::{self, MetricsServer},
    signatures_server::{self, SignaturesServer},
    tags_server::{self, TagsServer},
    transfers_server::{self, TransfersServer},
    trees_server::{self, TreesServer},
    uppers_server::{self, UppersServer},
    usage_server::{self, UsageServer},
    volumes_server::{self, VolumesServer},
};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::{
    agreement,
    attachments::{Attachments, Drains, Ledger},
    capsules::{Capsules, Policy, PolicyError},
    collect::Collector,
    config::Config,
    containerd::Containerd,
    devices::Registry,
    dirs::Dirs,
    docker::Docker,
    events::Feed,
    metrics::Meters,
    resources::{Budgets, Capacity, DiskError, Disks},
    server::Activity,
    service::{
        AttachmentsService, BudgetsService, CapsulesService, CollectorService, DevicesService, EventsService,
        HealthService, MetricsService, NodeService, NodeServiceError, SignaturesService, TagsService,
        TransfersService, TreesService, UppersService, UsageService, VolumesService,
    },
    snapshots::Snapshots,
    store::{
        Store, StoreError, Watch,
        attachments::{self, Journal},
    },
    uppers::{UpperError, Uppers},
    volumes::{VolumeError, Volumes},
};

/// Why the capsule side did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A key of the policy could not be read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// What was written could not be looked at.
    #[error("look at what is written to attachments: {0}")]
    Uppers(#[from] UpperError),
    /// What is mounted of volumes could not be looked at.
    #[error("look at the volumes of this node: {0}")]
    Volumes(Box<VolumeError>),
    /// A budget is of a disk that is none.
    #[error("the budget of {0}")]
    Disk(#[from] DiskError),
    /// What the node has could not be read.
    #[error("look at what the node has of memory, CPUs and processes: {0}")]
    Capacity(#[source] io::Error),
    /// The attachment records could not be read.
    #[error("read the attachment records: {0}")]
    Records(#[from] StoreError),
}

/// Attachment records. In the run directory, those that tell of mounts and of intents: they end with the kernel, as these do.
/// In the root, those of what is to be again after a reboot.
const RECORDS: &str = "attachments.redb";

/// Where shims ask, in the run directory. They try again while it is away.
const SHIMS: &str = "node.sock";

/// Largest message of a build: a client's chunk of 1 MiB, with room for another client's larger ones.
const MESSAGE_MAX: usize = 16 << 20;

/// What [`Node::routes`] serves of `capsule.v1`.
const SERVICES: &[&str] = &[
    attachments_server::SERVICE_NAME,
    budgets_server::SERVICE_NAME,
    capsules_server::SERVICE_NAME,
    collector_server::SERVICE_NAME,
    devices_server::SERVICE_NAME,
    events_server::SERVICE_NAME,
    metrics_server::SERVICE_NAME,
    signatures_server::SERVICE_NAME,
    tags_server::SERVICE_NAME,
    transfers_server::SERVICE_NAME,
    trees_server::SERVICE_NAME,
    uppers_server::SERVICE_NAME,
    usage_server::SERVICE_NAME,
    volumes_server::SERVICE_NAME,
];

/// The capsule side of the daemon.
pub struct Node {
    capsules: Capsules,
    attachments: Attachments,
    volumes: Volumes,
    registry: Arc<Registry>,
    meters: Meters,
    stores: [Watch; 2],
    feed: Feed,
    /// The last event that an earlier capsuled has written.
    told: u64,
    /// Set when those who follow events are to be let go.
    closing: watch::Sender<bool>,
    containerd: Containerd,
    config: Config,
}

impl Node {
    /// Takes over what an earlier run left: everything on record is pinned, and what was half done is settled with
    /// the shims. Asks containerd nothing, so that it works (and is quick) when containerd is away.
    ///
    /// To be called before the snapshotter is served: a snapshot that is in use must not be removable for a moment.
    pub async fn open(config: &Config, snapshots: Snapshots) -> Result<Self, NodeError> {
        let live = Store::open(&config.run.join(RECORDS))?;
        let kept = Store::open(&config.root.join(RECORDS))?;
        let stores = [live.watch(), kept.watch()];
        let recorded = attachments::take_over(&live, &kept)?;
        let journal = Journal::start(live.clone())?;
        let feed = journal.feed(live.clone());
        // What the start finds is told, too.
        let told = feed.newest();
        let drains = Drains::read(&live)?;
        let ledger = Ledger::new(journal.clone(), Journal::start(kept)?);
        let containerd = Containerd::new(&config.containerd.address);
        let (namespace, snapshotter) = (&config.containerd.namespace, &config.containerd.snapshotter);
        let capsules =
            Capsules::new(containerd.clone(), snapshots.clone(), namespace, snapshotter, journal.clone())
                .with_images(live)
                .with_hosts(config.containerd.hosts.clone())
                .with_policy(Policy::load(&config.verify)?)
                .discarding_layers(config.capsules.discard_unpacked_layers);
        let registry = Arc::new(Registry::new(config.devices.spec_dirs.clone()));
        let meters = Meters::default();
        let disks = Disks::new(&config.root);
        let capacity = Capacity::read().map_err(NodeError::Capacity)?;
        let budgets = Budgets::new(config.budgets.settle(capacity, &disks)?);
        let docker = Docker::new(&config.containerd.docker_sockets);
        let uppers = Uppers::open(&config.root, config.uppers.size, &recorded)?;
        let volumes = open_volumes(config, &capsules, &snapshots, &uppers)?;
        let attachments =
            Attachments::new(containerd.clone(), capsules.clone(), snapshots, ledger, uppers, &config.run)
                .with_docker(&config.containerd.docker_namespaces, docker)
                .with_drains(drains)
                .with_devices(registry.clone(), config.devices.refuse_foreign)
                .with_devices_for_pods(&config.devices.pods_may_name)
                .with_budgets(budgets, disks)
                .with_meters(meters.clone());
        attachments.pin_recorded(&recorded);
        attachments.recover(recorded).await;
        let closing = watch::Sender::new(false);
        let config = config.clone();
        Ok(Self {
            capsules,
            attachments,
            volumes,
            registry,
            meters,
            stores,
            feed,
            told,
            closing,
            containerd,
            config,
        })
    }

    /// Watches over the stores of the attachment records. They are closed when this, the routes and what runs in the
    /// background are gone.
    pub fn watches(&self) -> [Watch; 2] {
        self.stores.clone()
    }

    /// Follows containerd in the background until the runtime ends.
    pub fn follow_containerd(&self) {
        tokio::spawn(self.attachments.clone().watch());
        tokio::spawn(self.attachments.clone().watch_devices());
        tokio::spawn(self.volumes.clone().watch());
        let namespace = self.config.containerd.namespace.clone();
        tokio::spawn(self.feed.clone().publish(self.told, self.containerd.clone(), namespace));
        tokio::spawn(self.capsules.clone().keep_clean());
        let collector = self.collector();
        tokio::spawn(collector.collect(self.config.collect.clone(), self.config.root.clone()));
        tokio::spawn(agreement::check(self.containerd.clone(), self.config.clone()));
    }

    fn collector(&self) -> Collector {
        Collector::new(self.containerd.clone(), self.capsules.clone(), self.attachments.clone())
    }

    /// Ends the calls that follow events: they would have no end, and may be made again at once.
    pub fn end_watches(&self) {
        self.closing.send_replace(true);
    }

    /// Whether something is attached, or ends, that is to be followed without anybody asking.
    pub fn is_in_use(&self) -> bool {
        self.attachments.are_any() || self.volumes.are_any_draining()
    }

    /// What counts the calls of the routes.
    pub fn meters(&self) -> Meters {
        self.meters.clone()
    }

    /// Serves what shims ask of capsuled, `capsule.node.v1`, on a socket in the run directory.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve_shims(
        &self,
        config: &Config,
        activity: Activity,
    ) -> Result<NodeService, NodeServiceError> {
        NodeService::serve(&config.run.join(SHIMS), self.attachments.clone(), activity).await
    }

    /// `capsule.v1` as gRPC routes, and the health of all services.
    pub fn routes(&self) -> Routes {
        let capsules = CapsulesService::new(self.capsules.clone(), self.attachments.clone());
        let attachments = AttachmentsService::new(self.attachments.clone());
        let tags = TagsService::new(self.capsules.clone(), capsules.clone());
        let transfers = TransfersService::new(self.capsules.clone(), capsules.clone(), self.meters.clone());
        let devices = DevicesService::new(self.registry.clone(), self.attachments.clone());
        let signatures = SignaturesService::new(self.capsules.clone(), capsules.clone());
        let uppers = UppersService::new(self.capsules.clone(), self.attachments.clone(), capsules.clone());
        let volumes = VolumesService::new(
            self.capsules.clone(),
            self.attachments.uppers().clone(),
            self.volumes.clone(),
            capsules.clone(),
        );
        let health = HealthService::new(SERVICES, self.attachments.following(), self.closing.subscribe());
        Routes::new(CapsulesServer::new(capsules).max_decoding_message_size(MESSAGE_MAX))
            .add_service(AttachmentsServer::new(attachments))
            .add_service(EventsServer::new(EventsService::new(
                self.feed.clone(),
                self.attachments.clone(),
                self.closing.subscribe(),
            )))
            .add_service(CollectorServer::new(CollectorService::new(
                self.collector(),
                self.attachments.clone(),
            )))
            .add_service(BudgetsServer::new(BudgetsService::new(self.attachments.clone())))
            .add_service(UsageServer::new(UsageService::new(self.attachments.clone())))
            .add_service(MetricsServer::new(MetricsService::new(
                self.meters.clone(),
                self.attachments.clone(),
                self.capsules.clone(),
                self.volumes.clone(),
                self.feed.clone(),
                self.config.root.clone(),
            )))
            .add_service(DevicesServer::new(devices))
            .add_service(TagsServer::new(tags))
            .add_service(UppersServer::new(uppers))
            .add_service(VolumesServer::new(volumes))
            .add_service(SignaturesServer::new(signatures))
            .add_service(TransfersServer::new(transfers).max_decoding_message_size(MESSAGE_MAX))
            .add_service(TreesServer::new(TreesService::new(self.capsules.clone())))
            .add_service(health.into_server())
    }
}

fn open_volumes(
    config: &Config,
    capsules: &Capsules,
    snapshots: &Snapshots,
    uppers: &Uppers,
) -> Result<Volumes, NodeError> {
    let (capsules, snapshots, uppers) = (capsules.clone(), snapshots.clone(), uppers.clone());
    let empty = Dirs::new(&config.root).empty();
    Volumes::open(capsules, snapshots, uppers, &config.run, empty, &config.volumes)
        .map_err(|error| NodeError::Volumes(Box::new(error)))
}
