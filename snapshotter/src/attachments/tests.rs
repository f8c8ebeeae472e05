//! The controller over the real store and snapshot engine, with a shim that does as it is told.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use capsule_proto::hotplug::{self as wire, Hotplug, create_hotplug};
use tempfile::TempDir;
use ttrpc::r#async::TtrpcContext;

use super::{
    AttachmentError, Attachments, Choice, Ledger, Listed, Move, Moved, Outcome,
    containers::{Known, Wanted},
    controller::AttachSpec,
    model::{Attachment, Call, ContainerKey, Phase},
};
use crate::{
    capsules::{
        Capsules, Published,
        model::{Digest, Version},
        oci,
    },
    containerd::Containerd,
    dirs::Dirs,
    snapshots::{
        Behaviour, Commit, Create, Environment, OverlayOptions, Snapshots,
        model::{Key, Labels},
    },
    store::{
        Store,
        attachments::{Change, Journal, read_all},
    },
};

mod again;
mod hung;
mod moves;

/// What the shim has mounted, what it was asked, and what it is to refuse.
#[derive(Default)]
struct FakeState {
    mounted: BTreeMap<String, wire::AttachRequest>,
    calls: Vec<String>,
    refuse: Vec<String>,
    /// Calls that are carried out, but answered as late.
    late: Vec<String>,
    busy: bool,
}

#[derive(Clone, Default)]
struct FakeShim(Arc<Mutex<FakeState>>);

impl FakeShim {
    fn call(&self, call: String) -> ttrpc::Result<std::sync::MutexGuard<'_, FakeState>> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(call.clone());
        if state.refuse.contains(&call) {
            let status = ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, format!("no {call}"));
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(state)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    fn mounted(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let mut all: Vec<String> =
            state.mounted.values().map(|m| format!("{}@{}", m.content.capsule, m.content.version)).collect();
        all.sort();
        all
    }
}

#[async_trait::async_trait]
impl Hotplug for FakeShim {
    async fn attach(
        &self,
        _: &TtrpcContext,
        request: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        let mut state =
            self.call(format!("attach {}@{}", request.content.capsule, request.content.version))?;
        let call = format!("attach {}@{}", request.content.capsule, request.content.version);
        state.mounted.insert(request.attachment_id.clone(), request);
        if state.late.contains(&call) {
            let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "timeout".to_owned());
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(wire::AttachResponse::new())
    }

    async fn replace(
        &self,
        _: &TtrpcContext,
        request: wire::ReplaceRequest,
    ) -> ttrpc::Result<wire::ReplaceResponse> {
        let mut state =
            self.call(format!("replace {}@{}", request.content.capsule, request.content.version))?;
        state.mounted.get_mut(&request.attachment_id).unwrap().content = request.content;
        Ok(wire::ReplaceResponse::new())
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        let name =
            self.0.lock().unwrap().mounted.get(&request.attachment_id).map(|m| m.content.capsule.clone());
        let mut state = self.call(format!("detach {}", name.unwrap_or_default()))?;
        let mut reply = wire::DetachResponse::new();
        if state.busy && !request.lazy {
            let mut user = wire::User::new();
            (user.pid, user.command, user.path, user.how) = (7, "cat".into(), "/t/x".into(), "fd 3".into());
            reply.users.push(user);
        } else {
            state.mounted.remove(&request.attachment_id);
            if state.late.contains(&"detach".to_owned()) {
                let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "timeout".to_owned());
                return Err(ttrpc::Error::RpcStatus(status));
            }
            reply.detached = true;
        }
        Ok(reply)
    }

    async fn list(&self, _: &TtrpcContext, _: wire::ListRequest) -> ttrpc::Result<wire::ListResponse> {
        let state = self.0.lock().unwrap();
        if state.refuse.iter().any(|call| call == "list") {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, "no list")));
        }
        let mut reply = wire::ListResponse::new();
        for (id, request) in &state.mounted {
            let mut attachment = wire::Attachment::new();
            attachment.attachment_id = id.clone();
            attachment.content = request.content.clone();
            attachment.mounted = true;
            reply.attachments.push(attachment);
        }
        Ok(reply)
    }
}

/// A node without containerd: one container, and capsules that are unpacked already.
struct TestNode {
    dir: TempDir,
    shim: FakeShim,
    store: Store,
    kept: Store,
    snapshots: Snapshots,
    published: Vec<Published>,
    engine: Attachments,
    _server: ttrpc::r#async::Server,
}

impl TestNode {
    async fn start() -> Self {
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
    async fn restart(&mut self) {
        let recorded = read_all(&self.store).unwrap();
        let stores = [&self.store, &self.kept];
        self.engine = open_engine(self.dir.path(), stores, &self.snapshots, &self.published).await;
        self.engine.pin_recorded(&recorded);
        self.engine.recover(recorded).await;
    }

    async fn attach(&self, specs: &[&str]) -> Result<Vec<Attachment>, AttachmentError> {
        let specs: Vec<AttachSpec> = specs.iter().map(|s| spec(s)).collect();
        self.engine.attach(&wanted(), &specs).await
    }

    /// Upgrades to `NAME[@VERSION]`, and says what moved: `NAME FROM TO`.
    async fn upgrade(&self, to: &[&str]) -> Result<Vec<String>, AttachmentError> {
        let moves: Vec<Move> = to.iter().map(|text| a_move(text)).collect();
        match self.engine.upgrade(&wanted(), &moves, None, false).await? {
            Outcome::Done(done) => Ok(moved(&done)),
            Outcome::Planned(_) => unreachable!("not asked for"),
        }
    }

    async fn rollback(&self, capsules: &[&str]) -> Result<Vec<String>, AttachmentError> {
        let moves: Vec<Move> = capsules.iter().map(|text| a_move(text)).collect();
        Ok(moved(&self.engine.rollback(&wanted(), &moves).await?))
    }

    /// What is on record, as `capsule@version`.
    async fn listed(&self) -> Vec<String> {
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
    async fn durable(&self) -> Vec<Attachment> {
        self.engine.ledger.flush().await;
        read_all(&self.store).unwrap().into_values().collect()
    }

    /// Puts records in the place of what capsuled has written of them.
    async fn write(&self, changes: Vec<Change>) {
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

async fn open_engine(
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
    let engine = Attachments::new(containerd, capsules, snapshots.clone(), ledger, &dir.join("run"));
    let known = Known { runtime: "io.containerd.capsule.v1".to_owned(), ..Known::default() };
    engine.containers.put(&key(), known);
    engine
}

fn publish(snapshots: &Snapshots, name: &str, version: &str, requires: &str) -> Published {
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
            config: blob.clone(),
            layers: vec![blob],
            diff_ids: vec![digest],
            annotations,
        }),
    }
}

fn key() -> ContainerKey {
    ContainerKey { namespace: "default".into(), id: "c1".into() }
}

fn wanted() -> Wanted {
    Wanted { id: "c1".into(), namespace: String::new() }
}

fn spec(text: &str) -> AttachSpec {
    let (name, version) = text.split_once('@').unwrap();
    AttachSpec {
        capsule: name.parse().unwrap(),
        version: Some(version.parse().unwrap()),
        target: None,
        mode: None,
        digest: None,
        unless_present: false,
        named: None,
    }
}

fn a_move(text: &str) -> Move {
    let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
    Move { capsule: name.parse().unwrap(), version: version.map(|v| v.parse().unwrap()), target: None }
}

fn moved(done: &[Moved]) -> Vec<String> {
    let from =
        |version: &Option<Version>| version.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    done.iter().map(|(a, version)| format!("{} {} {}", a.capsule, from(version), a.current.version)).collect()
}

fn choice(capsule: &str) -> Choice {
    Choice { container: wanted(), capsule: capsule.parse().unwrap(), target: None }
}

#[tokio::test]
async fn a_capsule_lives_through_attach_upgrade_rollback_and_detach() {
    let node = TestNode::start().await;
    let attached = node.attach(&["tzdata@1"]).await.unwrap();
    assert_eq!(attached[0].target, "/opt/tzdata");
    assert_eq!(node.listed().await, ["tzdata@1"]);
    let up = node.upgrade(&["tzdata"]).await.unwrap();
    assert_eq!(up, ["tzdata 1 2"]);
    assert_eq!(node.shim.mounted(), ["tzdata@2"]);
    let down = node.rollback(&["tzdata"]).await.unwrap();
    assert_eq!(down, ["tzdata 2 1"]);
    assert_eq!(node.durable().await.len(), 1);
    node.engine.detach(&choice("tzdata"), false).await.unwrap();
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.durable().await, []);
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn capsules_that_were_never_listed_are_not_none() {
    let node = TestNode::start().await;
    let error = node.engine.capsules.listed().await.unwrap_err();
    assert!(error.to_string().contains("no-containerd.sock"), "{error}");
}

#[tokio::test]
async fn a_set_that_fails_in_the_middle_is_taken_back_in_reverse_order() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().refuse = vec!["attach extra@1".into()];
    let error = node.attach(&["tzdata@1", "tools@1", "extra@1"]).await.unwrap_err();
    assert_eq!(error.to_string(), "no attach extra@1");
    assert_eq!(
        node.shim.calls(),
        ["attach tzdata@1", "attach tools@1", "attach extra@1", "detach tools", "detach tzdata"]
    );
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.durable().await, []);
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_call_that_may_have_been_done_after_its_deadline_is_undone() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().late = vec!["attach tools@1".into()];
    let error = node.attach(&["tzdata@1", "tools@1"]).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_detach_of_which_the_answer_is_lost_is_undone() {
    let node = TestNode::start().await;
    node.attach(&["tools@1", "tzdata@1"]).await.unwrap();
    node.shim.0.lock().unwrap().late = vec!["detach".into()];
    let error = node.engine.detach(&choice("tools"), false).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    assert!(node.engine.settle(&key()).await);
    assert_eq!(node.shim.mounted(), ["tools@1", "tzdata@1"]);
    let records = node.durable().await;
    assert!(records.iter().all(|a| a.phase == Phase::Attached && a.call.is_none()), "{records:?}");
    node.shim.0.lock().unwrap().late.clear();
    node.engine.detach(&choice("tools"), false).await.unwrap();
    assert_eq!(node.listed().await, ["tzdata@1"]);
}

#[tokio::test]
async fn the_intent_is_durable_before_the_shim_is_asked() {
    let mut node = TestNode::start().await;
    // The shim did its work, and capsuled died before it could say so: the record is still the intent.
    let done = node.attach(&["tzdata@1"]).await.unwrap().remove(0);
    let intent = Attachment { phase: Phase::Attaching, ..done };
    node.write(vec![Change::Put(Box::new(intent.clone()))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    node.upgrade(&["tzdata"]).await.unwrap();
    node.engine.detach(&choice("tzdata"), false).await.unwrap();

    // It died before the shim was asked: nothing is mounted, and nothing stays on record.
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, Vec::<String>::new());
    assert_eq!(node.durable().await, []);
}

#[tokio::test]
async fn after_a_crash_the_record_follows_what_is_mounted() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    let record = node.durable().await.remove(0);
    let before = record.history[0].clone();
    // Half-done rollback, of which the shim did nothing.
    let phase = Phase::Replacing { current: before.clone(), history: vec![] };
    let intent = Attachment { phase: phase.clone(), ..record.clone() };
    node.write(vec![Change::Put(Box::new(intent.clone()))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@2"]);
    // Half-done rollback, which the shim did.
    node.rollback(&["tzdata"]).await.unwrap();
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    assert_eq!(node.durable().await[0].phase, Phase::Attached);
    // Half-done detach, of which the shim did nothing.
    let intent = Attachment { phase: Phase::Detaching { lazy: false }, ..node.durable().await.remove(0) };
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    node.engine.detach(&choice("tzdata"), false).await.unwrap();
}

#[tokio::test]
async fn a_busy_attachment_stays_unless_detached_lazily() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.shim.0.lock().unwrap().busy = true;
    let error = node.engine.detach(&choice("tzdata"), false).await.unwrap_err();
    assert!(error.to_string().contains("process 7 (cat) has /t/x (fd 3)"), "{error}");
    assert_eq!(node.listed().await, ["tzdata@1"]);
    assert_eq!(node.durable().await[0].phase, Phase::Attached);
    node.engine.detach(&choice("tzdata"), true).await.unwrap();
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_attached_or_can_be_rolled_back_to_is_not_removed() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    let name = |i: usize| format!("capsules/2/{}", node.published[i].digest);
    for i in 0..2 {
        let error = node.snapshots.remove(&name(i)).unwrap_err().to_string();
        assert!(error.contains("tzdata"), "{error}");
    }
    node.engine.detach(&choice("tzdata"), false).await.unwrap();
    for i in 0..2 {
        node.snapshots.remove(&name(i)).unwrap();
    }
}

#[tokio::test]
async fn refused_calls_change_nothing() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.shim.calls();
    let before = node.durable().await;
    let refused = [
        node.attach(&["tzdata@2"]).await.unwrap_err(),
        node.attach(&["tools@1", "tools@1"]).await.unwrap_err(),
        node.attach(&[]).await.unwrap_err(),
        node.rollback(&["tzdata"]).await.unwrap_err(),
        node.rollback(&["tools"]).await.unwrap_err(),
        node.engine.detach(&choice("tools"), true).await.unwrap_err(),
    ];
    let messages = refused.map(|e| e.to_string());
    assert!(messages[0].contains("/opt/tzdata in default/c1 is taken by tzdata@1"), "{messages:?}");
    assert!(messages[3].contains("no earlier version"), "{messages:?}");
    assert!(messages[5].contains("tools is not attached to default/c1"), "{messages:?}");
    // An upgrade to the version that is there is done already.
    node.upgrade(&["tzdata@1"]).await.unwrap();
    assert_eq!(node.shim.calls(), Vec::<String>::new());
    assert_eq!(node.durable().await, before);
}

#[tokio::test]
async fn records_are_kept_while_the_shim_cannot_be_asked() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.durable().await;
    let registration = node.dir.path().join("run/tasks/default/c1.json");
    let text = std::fs::read_to_string(&registration).unwrap();
    std::fs::write(&registration, r#"{"version":1,"address":"/nowhere.sock"}"#).unwrap();
    node.restart().await;
    assert_eq!(node.durable().await.len(), 1);
    std::fs::write(&registration, text).unwrap();
    node.engine.detach(&choice("tzdata"), false).await.unwrap();
    // Without a registration the task is gone, and its mounts with it: the record waits for the next task.
    node.attach(&["tzdata@1"]).await.unwrap();
    node.durable().await;
    std::fs::remove_file(&registration).unwrap();
    node.restart().await;
    assert_eq!(node.durable().await[0].phase, Phase::Waiting);
}
