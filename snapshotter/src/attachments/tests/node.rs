//! A node without containerd, over the real store and snapshot engine.

use super::*;

/// A node without containerd: one container, and capsules that are unpacked already.
pub(super) struct TestNode {
    pub(super) dir: TempDir,
    pub(super) shim: FakeShim,
    pub(super) store: Store,
    pub(super) kept: Store,
    pub(super) snapshots: Snapshots,
    pub(super) published: Vec<Published>,
    pub(super) engine: Attachments,
    pub(super) _server: ttrpc::r#async::Server,
}

impl TestNode {
    /// A capsule that declares something: the annotations, after their prefix.
    pub(super) fn publish_declared(&mut self, name: &str, version: &str, declared: &[(&str, &str)]) {
        let mut published = publish(&self.snapshots, name, version, "");
        let image = published.image.as_mut().unwrap();
        let declared =
            declared.iter().map(|(key, value)| (format!("resourcecapsules.io/{key}"), (*value).to_owned()));
        image.annotations.extend(declared);
        self.engine.capsules.catalogue().put(published.clone());
        self.published.push(published);
    }

    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, snapshots) = open_store(dir.path());
        let shim = FakeShim::default();
        let server = serve(dir.path(), shim.clone()).await;
        let published = [
            ("tzdata", "1", ""),
            ("tzdata", "2", ""),
            ("tools", "1", ""),
            ("extra", "1", ""),
            ("lib", "1", ""),
            ("lib", "2", ""),
            ("app", "1", "lib <2"),
            ("app", "2", "lib >=2; extra"),
        ];
        let published = published.map(|(name, v, requires)| publish(&snapshots, name, v, requires)).to_vec();
        let kept = Store::open(&dir.path().join("lib/kept.redb")).unwrap();
        let engine = open_engine(dir.path(), [&store, &kept], &snapshots, &published).await;
        Self { dir, shim, store, kept, snapshots, published, engine, _server: server }
    }

    /// As after `kill -9`: a new engine over what the old one wrote.
    pub(super) async fn restart(&mut self) {
        let recorded = read_all(&self.store).unwrap();
        let stores = [&self.store, &self.kept];
        self.engine = open_engine(self.dir.path(), stores, &self.snapshots, &self.published).await;
        self.engine.pin_recorded(&recorded);
        self.engine.recover(recorded).await;
    }

    pub(super) async fn attach(&self, specs: &[&str]) -> Result<Vec<Attachment>, AttachmentError> {
        let specs: Vec<AttachSpec> = specs.iter().map(|s| spec(s)).collect();
        self.engine.attach(&wanted(), &specs).await
    }

    /// Upgrades to `NAME[@VERSION]`, and says what moved: `NAME FROM TO`.
    pub(super) async fn upgrade(&self, to: &[&str]) -> Result<Vec<String>, AttachmentError> {
        let moves: Vec<Move> = to.iter().map(|text| a_move(text)).collect();
        match self.engine.upgrade(&wanted(), &moves, None, false).await? {
            Outcome::Done(done) => Ok(moved(&done)),
            Outcome::Planned(_) => unreachable!("not asked for"),
        }
    }

    pub(super) async fn rollback(&self, capsules: &[&str]) -> Result<Vec<String>, AttachmentError> {
        let moves: Vec<Move> = capsules.iter().map(|text| a_move(text)).collect();
        Ok(moved(&self.engine.rollback(&wanted(), &moves).await?))
    }

    /// What is on record, as `capsule@version`.
    pub(super) async fn listed(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .engine
            .list(None)
            .await
            .unwrap()
            .iter()
            .map(|l| match l {
                Listed::Attached(a, _) => a.label(),
                Listed::Draining(_, d) => format!("draining {}", d.version),
            })
            .collect();
        all.sort();
        all
    }

    /// What is durable, once the journal has written everything that was posted.
    pub(super) async fn durable(&self) -> Vec<Attachment> {
        self.engine.ledger.flush().await;
        read_all(&self.store).unwrap().into_values().collect()
    }

    /// Puts records in the place of what capsuled has written of them.
    pub(super) async fn write(&self, changes: Vec<Change>) {
        self.engine.ledger.flush().await;
        Journal::start(self.store.clone()).unwrap().write(changes).await.unwrap();
    }
}

fn open_store(dir: &Path) -> (Store, Snapshots) {
    let dirs = Dirs::new(dir.join("lib"));
    dirs.create().unwrap();
    let store = Store::open(&dirs.metadata()).unwrap();
    let (overlay, behaviour) = (OverlayOptions::default(), Behaviour::default());
    (store.clone(), Snapshots::open(Environment { store, dirs, overlay, behaviour }).unwrap())
}

async fn serve(dir: &Path, shim: FakeShim) -> ttrpc::r#async::Server {
    let socket = dir.join("shim.sock");
    let service = create_hotplug(Arc::new(shim));
    let address = format!("unix://{}", socket.display());
    let mut server = ttrpc::r#async::Server::new().bind(&address).unwrap().register_service(service);
    server.start().await.unwrap();
    let tasks = dir.join("run/tasks/default");
    std::fs::create_dir_all(&tasks).unwrap();
    let registration = format!(r#"{{"version":1,"address":"{}"}}"#, socket.display());
    std::fs::write(tasks.join("c1.json"), registration).unwrap();
    server
}

pub(super) async fn open_engine(
    dir: &Path,
    [store, kept]: [&Store; 2],
    snapshots: &Snapshots,
    published: &[Published],
) -> Attachments {
    let containerd = Containerd::new(&dir.join("no-containerd.sock"));
    let journal = |store: &Store| Journal::start(store.clone()).unwrap();
    let live = journal(store);
    let capsules = Capsules::new(containerd.clone(), snapshots.clone(), "capsules", "capsule", live.clone());
    for one in published {
        capsules.catalogue().put(one.clone());
    }
    let ledger = Ledger::new(live, journal(kept));
    let uppers = Uppers::open(&dir.join("root"), 8 << 20, &read_all(store).unwrap()).unwrap();
    let registry = Arc::new(Registry::new(vec![dir.join("cdi")]));
    let engine = Attachments::new(containerd, capsules, snapshots.clone(), ledger, uppers, &dir.join("run"))
        .with_devices(registry, false);
    let known = Known { runtime: "io.containerd.capsule.v1".to_owned(), ..Known::default() };
    engine.containers.put(&key(), known);
    engine
}

pub(super) fn publish(snapshots: &Snapshots, name: &str, version: &str, requires: &str) -> Published {
    let digest = Digest::from_sha256(&<sha2::Sha256 as sha2::Digest>::digest(format!("{name}@{version}")));
    let active = format!("capsules/1/{name}-{version}");
    let no_labels = || Labels::parse(std::iter::empty()).unwrap();
    let create =
        Create { key: Key::parse(active.clone()).unwrap(), parent: String::new(), labels: no_labels() };
    snapshots.prepare(&create).unwrap();
    let committed = Key::parse(format!("capsules/2/{digest}")).unwrap();
    let commit = Commit { name: committed, key: active, parent: String::new(), labels: no_labels() };
    snapshots.commit(&commit).unwrap();
    let blob = oci::Descriptor { media_type: oci::LAYER_TAR.into(), digest: digest.clone(), size: 1 };
    let requires: Vec<&str> = requires.split("; ").filter(|r| !r.is_empty()).collect();
    let annotations = BTreeMap::from([
        (oci::TARGET.to_owned(), format!("/opt/{name}")),
        ("resourcecapsules.io/requires".to_owned(), serde_json::to_string(&requires).unwrap()),
    ]);
    Published {
        name: name.parse().unwrap(),
        version: version.parse().unwrap(),
        digest: digest.clone(),
        image_name: format!("{name}:{version}"),
        created_at: None,
        image: Ok(oci::Image {
            manifest: None,
            config: blob.clone(),
            layers: vec![blob],
            diff_ids: vec![digest],
            annotations,
        }),
    }
}
