//! What attachments do to limits: settled before anything is on record, held against budgets, and given to the shim.

use super::*;
use crate::{
    attachments::{LimitsError, creation},
    containerd::Member,
    events::Kind,
    resources::{Budgets, Capacity, Ceiling, Configured, DiskError, Disks, Resources, Settings, Wanted},
    store,
};

impl TestNode {
    /// A capsule that declares resources.
    fn publish_with_resources(&mut self, version: &str, grants: &str, caps: &str) {
        self.publish_declared("heavy", version, &[("resources", grants), ("caps", caps)]);
    }

    fn with_budget(&mut self, file: &str, much: &str) {
        self.with_budgets(|budget| Settings { node: budget, ..Settings::default() }, file, much);
    }

    fn with_budgets(&mut self, of: impl Fn(Configured) -> Settings, file: &str, much: &str) {
        let file = file.parse().unwrap();
        let ceiling = Ceiling::parse(&file, much).unwrap();
        let settings = of(Configured::from([(file, ceiling)]));
        let disks = Disks::new(self.dir.path());
        let ceilings =
            settings.settle(Capacity { memory: 1 << 30, swap: 0, cpus: 2, pids: 1000 }, &disks).unwrap();
        self.engine = self.engine.clone().with_budgets(Budgets::new(ceilings), disks);
    }

    async fn ask(&self, what: &str, grants: &[(&str, &str)]) -> Result<Vec<Attachment>, AttachmentError> {
        let grants: BTreeMap<String, String> =
            grants.iter().map(|(file, much)| ((*file).to_owned(), (*much).to_owned())).collect();
        let resources = Wanted::parse(&grants, &BTreeMap::new()).unwrap();
        self.engine.attach(&wanted(), &[AttachSpec { resources, ..spec(what) }]).await
    }

    /// As after a reboot: nothing is mounted any more, and `/dev/data` has other numbers, or none.
    async fn reboot(&mut self, numbers: &'static str) {
        self.durable().await;
        self.shim.0.lock().unwrap().mounted.clear();
        let mut recorded = read_all(&self.store).unwrap();
        recorded.values_mut().for_each(|attachment| attachment.phase = Phase::Waiting);
        let stores = [&self.store, &self.kept];
        let engine = node::open_engine(self.dir.path(), stores, &self.snapshots, &self.published).await;
        self.engine = engine.with_budgets(Budgets::default(), disks(numbers));
        self.engine.pin_recorded(&recorded);
        self.engine.recover(recorded).await;
    }

    /// What the shim was given last.
    fn given(&self) -> Vec<String> {
        let state = self.shim.0.lock().unwrap();
        let limits = |resources: &wire::Resources| {
            let grants = resources.grants.iter().map(|limit| format!("{}+{}", limit.file, limit.value));
            let caps = resources.caps.iter().map(|limit| format!("{}<{}", limit.file, limit.value));
            grants.chain(caps).collect::<Vec<_>>().join(" ")
        };
        state.mounted.values().filter_map(|request| request.resources.as_ref()).map(limits).collect()
    }
}

/// A node with one disk, `/dev/data`.
fn disks(numbers: &'static str) -> Disks {
    Disks::of(move |disk| match disk {
        "/dev/data" if !numbers.is_empty() => Ok(numbers.to_owned()),
        other => Err(DiskError::NoDisk { disk: other.to_owned(), reason: "is not there".to_owned() }),
    })
}

fn pids(much: &str) -> Wanted {
    let grants = BTreeMap::from([("pids.max".to_owned(), much.to_owned())]);
    Wanted::parse(&grants, &BTreeMap::new()).unwrap()
}

fn refusal(error: &AttachmentError) -> &LimitsError {
    let AttachmentError::Limits(error) = error else { panic!("{error}") };
    error
}

#[tokio::test]
async fn each_version_has_its_own_and_what_was_asked_for_stays_over_them() {
    let mut node = TestNode::start().await;
    node.publish_with_resources("1", r#"{"memory.max": "1M", "pids.max": "4"}"#, r#"{"cpu.max": "0.5cpus"}"#);
    node.publish_with_resources("2", r#"{"memory.max": "2M", "cpu.weight": "7"}"#, "{}");
    let attached = node.ask("heavy@1", &[("pids.max", "9")]).await.unwrap().remove(0);
    assert_eq!(node.given(), ["memory.max+1048576 pids.max+9 cpu.max<50000 100000"]);
    assert_eq!(attached.current.resources.grants["pids.max"], "9");
    node.upgrade(&["heavy@2"]).await.unwrap();
    assert_eq!(node.given(), ["cpu.weight+7 memory.max+2097152 pids.max+9"]);
    node.restart().await;
    node.rollback(&["heavy"]).await.unwrap();
    assert_eq!(node.given(), ["memory.max+1048576 pids.max+9 cpu.max<50000 100000"]);
    // An upgrade that is undone goes back to what was.
    node.shim.0.lock().unwrap().refuse = vec!["attach tools@1".into()];
    assert!(node.attach(&["tools@1"]).await.is_err());
    assert_eq!(node.given(), ["memory.max+1048576 pids.max+9 cpu.max<50000 100000"]);
    node.engine.detach(&choice("heavy"), false, None).await.unwrap();
    assert_eq!(node.durable().await, []);
}

#[tokio::test]
async fn what_exceeds_a_budget_is_refused_before_anything_is_touched() {
    let mut node = TestNode::start().await;
    node.with_budget("memory.max", "10M");
    node.publish_with_resources("1", r#"{"memory.max": "6M"}"#, "{}");
    node.publish_with_resources("2", r#"{"memory.max": "11M"}"#, "{}");
    node.attach(&["heavy@1"]).await.unwrap();
    node.shim.calls();
    let before = node.durable().await;
    let error = node.ask("tools@1", &[("memory.max", "5M")]).await.unwrap_err();
    assert!(matches!(refusal(&error), LimitsError::Budget(_)));
    let said = "tools@1 asks for 5MiB of memory.max, and the budget of the node is 10MiB, of which 6MiB is used (6MiB by heavy@1 in default/c1)";
    assert!(error.to_string().contains(said), "{error}");
    let error = node.upgrade(&["heavy@2"]).await.unwrap_err();
    assert!(error.to_string().contains("heavy@2 asks for 11MiB of memory.max"), "{error}");
    assert_eq!((node.shim.calls(), node.durable().await), (Vec::new(), before));
    // What was refused is not reserved, and what goes is free again.
    node.ask("tools@1", &[("memory.max", "4M")]).await.unwrap();
    let used = |node: &TestNode| node.engine.budget_usage()[0].used;
    assert_eq!(used(&node), 10 << 20);
    node.engine.detach(&choice("heavy"), false, None).await.unwrap();
    assert_eq!(used(&node), 4 << 20);
    // A call that fails in the middle gives back what it had reserved.
    node.shim.0.lock().unwrap().refuse = vec!["attach heavy@1".into()];
    assert!(node.attach(&["heavy@1"]).await.is_err());
    assert_eq!(used(&node), 4 << 20);
}

#[tokio::test]
async fn a_pods_budget_is_not_looked_at_before_it_is_known_what_is_of_the_pod() {
    let mut node = TestNode::start().await;
    node.with_budgets(|budget| Settings { pod: budget, ..Settings::default() }, "memory.max", "10M");
    let member = Member { pod: "shop/p".to_owned(), ..Member::default() };
    let of_pod = Known { member: Some(member), ..node.engine.containers.known(&key()).unwrap() };
    node.engine.containers.put(&key(), of_pod.clone());
    // What an earlier capsuled has left of another container of the pod, which containerd has not told of yet.
    let other = ContainerKey { namespace: "default".into(), id: "c2".into() };
    let held = node.ask("tools@1", &[("memory.max", "6M")]).await.unwrap().remove(0);
    let held = Attachment { id: "other".to_owned(), container: other.clone(), ..held };
    node.engine.detach(&choice("tools"), false, None).await.unwrap();
    node.engine.records.lock(&other).await.push(held);
    node.shim.calls();
    let error = node.ask("tools@1", &[("memory.max", "5M")]).await.unwrap_err();
    assert!(matches!(refusal(&error), LimitsError::Pods(_)));
    for word in ["pods have budgets", "try again", "no-containerd.sock"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(node.shim.calls(), Vec::<String>::new());
    // What grants nothing asks nobody.
    node.attach(&["extra@1"]).await.unwrap();
    node.engine.containers.put(&other, of_pod);
    let error = node.ask("tools@1", &[("memory.max", "5M")]).await.unwrap_err().to_string();
    assert!(error.contains("the pod shop/p is 10MiB, of which 6MiB is used"), "{error}");
    node.ask("tools@1", &[("memory.max", "4M")]).await.unwrap();
}

#[tokio::test]
async fn what_is_declared_badly_or_is_of_no_disk_is_refused() {
    let mut node = TestNode::start().await;
    node.publish_with_resources("1", r#"{"memory.max": "lots"}"#, "{}");
    node.publish_with_resources("2", "{}", r#"{"io.max": "/dev/null rbps=1"}"#);
    for (version, reason) in
        [("heavy@1", "heavy@1 declares cannot be used"), ("heavy@2", "is no block device")]
    {
        let error = node.attach(&[version]).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!((node.shim.calls(), node.durable().await), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_disk_has_the_numbers_of_this_boot_whatever_it_had_when_it_was_asked_for() {
    let mut node = TestNode::start().await;
    node.engine = node.engine.clone().with_budgets(Budgets::default(), disks("8:16"));
    node.publish_with_resources("1", "{}", r#"{"io.max": "/dev/data rbps=1"}"#);
    node.publish_with_resources("2", r#"{"io.max": "/dev/data wbps=2"}"#, "{}");
    node.attach(&["heavy@1"]).await.unwrap();
    assert_eq!(node.given(), ["io.max<8:16 rbps=1"]);
    node.upgrade(&["heavy@2"]).await.unwrap();
    assert_eq!(node.given(), ["io.max+8:16 wbps=2"]);
    node.reboot("8:32").await;
    let counted = |node: &TestNode| -> Vec<String> {
        let usage = node.engine.budget_usage();
        usage.iter().filter(|one| one.used > 0).map(|one| one.dimension.to_string()).collect()
    };
    assert_eq!(counted(&node)[0], "io.max 8:32 wbps");
    node.engine.restore_named(&key(), "").await.unwrap();
    assert_eq!(node.given(), ["io.max+8:32 wbps=2"]);
    node.rollback(&["heavy"]).await.unwrap();
    assert_eq!(node.given(), ["io.max<8:32 rbps=1"]);
    // One that is not there is said, and nothing is done of what it was to limit.
    node.reboot("").await;
    let error = node.engine.restore_named(&key(), "").await.unwrap_err().to_string();
    for word in ["/dev/data is not there", "heavy@1 at /opt/heavy", "capsulectl detach default/c1 heavy"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    node.reboot("8:48").await;
    node.engine.restore_named(&key(), "").await.unwrap();
    assert_eq!(node.given(), ["io.max<8:48 rbps=1"]);
}

#[tokio::test]
async fn an_older_shim_is_not_taken_for_one_that_has_done_it() {
    let mut node = TestNode::start().await;
    node.publish_with_resources("1", "{}", "{}");
    node.publish_with_resources("2", r#"{"pids.max": "3"}"#, "{}");
    node.shim.0.lock().unwrap().old = true;
    let error = node.ask("tools@1", &[("pids.max", "1")]).await.unwrap_err();
    assert!(error.to_string().contains("of a release before resources"), "{error}");
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    // What asks for none is as before, and an upgrade goes back.
    node.attach(&["heavy@1"]).await.unwrap();
    let error = node.upgrade(&["heavy@2"]).await.unwrap_err();
    assert!(error.to_string().contains("of a release before resources"), "{error}");
    assert_eq!(node.shim.mounted(), ["heavy@1"]);
    assert_eq!(node.listed().await, ["heavy@1"]);
}

#[tokio::test]
async fn a_container_is_asked_until_its_limits_are_put_back() {
    let mut node = TestNode::start().await;
    let asked = |node: &TestNode| node.engine.containers_to_ask().into_iter().collect::<Vec<_>>();
    node.attach(&["tools@1"]).await.unwrap();
    node.engine.detach(&choice("tools"), false, None).await.unwrap();
    assert_eq!(asked(&node), [], "it has changed no limits");
    node.ask("tools@1", &[("pids.max", "1")]).await.unwrap();
    node.shim.0.lock().unwrap().limits_left = true;
    node.engine.detach(&choice("tools"), false, None).await.unwrap();
    let mut last = 0;
    for refused in [vec![], vec!["list".to_owned()], vec![]] {
        node.shim.0.lock().unwrap().refuse = refused;
        assert_eq!(asked(&node), [key()]);
        node.engine.ask_notices(&key(), &mut last).await;
    }
    // Whoever starts anew asks as well.
    node.restart().await;
    assert_eq!(asked(&node), [key()]);
    node.shim.0.lock().unwrap().limits_left = false;
    node.engine.ask_notices(&key(), &mut last).await;
    assert_eq!(asked(&node), []);
    // What was attached and taken back at once has put limits back, too.
    node.shim.0.lock().unwrap().refuse = vec!["attach extra@1".into()];
    let limited = AttachSpec { resources: pids("2"), ..spec("tools@1") };
    node.engine.attach(&wanted(), &[limited, spec("extra@1")]).await.unwrap_err();
    assert_eq!(asked(&node), [key()]);
}

#[tokio::test]
async fn a_process_that_was_killed_for_memory_is_told_of_those_that_change_its_limits() {
    let mut node = TestNode::start().await;
    node.publish_with_resources("1", r#"{"memory.max": "1M"}"#, "{}");
    node.attach(&["heavy@1", "tools@1"]).await.unwrap();
    node.engine.tell_out_of_memory(&key());
    node.engine.ledger.flush().await;
    let all = store::events::read_after(&node.store, 0, 100).unwrap().unwrap();
    let told: Vec<String> = all
        .iter()
        .filter(|event| event.kind == Kind::OutOfMemory)
        .map(|event| format!("{} {}", event.capsule, event.message))
        .collect();
    assert_eq!(told, ["heavy the kernel killed a process of the container"]);
    assert!(!Resources::default().is_of_memory());
}

#[tokio::test]
async fn the_variables_of_a_version_come_and_go_with_it() {
    let mut node = TestNode::start().await;
    for (version, variables) in [("1", r#"{"TZDIR": "/a=b"}"#), ("2", "{}")] {
        let mut published = node::publish(&node.snapshots, "zones", version, "");
        let image = published.image.as_mut().unwrap();
        image.annotations.insert("resourcecapsules.io/environment".to_owned(), variables.to_owned());
        node.engine.capsules.catalogue().put(published.clone());
        node.published.push(published);
    }
    let given = |node: &TestNode| -> Vec<String> {
        let state = node.shim.0.lock().unwrap();
        state.mounted.values().flat_map(|request| request.content.env.clone()).collect()
    };
    node.attach(&["zones@1"]).await.unwrap();
    assert_eq!(given(&node), ["TZDIR=/a=b"]);
    node.upgrade(&["zones@2"]).await.unwrap();
    assert_eq!(given(&node), Vec::<String>::new());
    node.restart().await;
    node.rollback(&["zones"]).await.unwrap();
    assert_eq!(given(&node), ["TZDIR=/a=b"]);
    // A container that is created with it has them from its first process on.
    let creation = creation::Creation {
        attachments: "zones@1".to_owned(),
        takes_attachments: true,
        ..creation::Creation::default()
    };
    let other = ContainerKey { namespace: "default".into(), id: "new".into() };
    let spec = node.engine.devices_at_creation(&other, &creation).await.unwrap();
    assert_eq!(spec.attached.env, ["TZDIR=/a=b"]);
}
