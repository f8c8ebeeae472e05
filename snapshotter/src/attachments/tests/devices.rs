//! Devices of attachments: resolved before anything is on record, undone and given again as they were.

use std::fs;

use super::*;
use crate::{
    attachments::{
        DevicesError,
        creation::{AtCreation, Creation},
    },
    devices::{DeviceName, Edits},
};

const SPEC: &str = "cdiVersion: 0.6.0
kind: example.com/dev
containerEdits:
  env: [SHARED=1]
  deviceNodes: [{path: /dev/ctl, type: c, major: 10, minor: 100}]
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/one, type: c, major: 10, minor: 1, permissions: rw, fileMode: 0640, gid: 44}]
    mounts: [{hostPath: /usr/lib/a, containerPath: /usr/lib/b, options: [ro, bind]}]
    hooks: [{hookName: createContainer, path: /bin/true, args: [\"true\"], timeout: 3}]
- name: two
  containerEdits: {deviceNodes: [{path: /dev/two, type: c, major: 10, minor: 2}]}
- name: net
  containerEdits: {hooks: [{hookName: poststart, path: /bin/true}]}
- name: torn
  containerEdits: {deviceNodes: [{path: /dev/ctl, type: c, major: 10, minor: 101}]}
- name: gone
  containerEdits: {deviceNodes: [{path: /dev/gone-for-good}]}
";

impl TestNode {
    fn write_spec(&self, text: &str) {
        let dir = self.dir.path().join("cdi");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("example.yaml"), text).unwrap();
    }

    async fn give(&self, specs: &[&str], names: &[&str]) -> Result<Vec<Attachment>, AttachmentError> {
        let specs: Vec<AttachSpec> = specs.iter().map(|s| spec(s)).collect();
        self.engine.attach_with(&wanted(), &specs, &devices(names)).await
    }

    async fn take(&self, names: &[&str]) -> Result<Vec<String>, AttachmentError> {
        let taken = self.engine.detach_devices(&wanted(), &devices(names), false).await?;
        Ok(taken.into_iter().map(|(attachment, _)| attachment.label()).collect())
    }

    /// A capsule that declares devices.
    fn publish_with(&mut self, version: &str, names: &[&str]) {
        let names = serde_json::to_string(names).unwrap();
        self.publish_declared("cuda", version, &[("devices", &names)]);
    }
}

fn devices(names: &[&str]) -> Vec<DeviceName> {
    names.iter().map(|name| format!("example.com/dev={name}").parse().unwrap()).collect()
}

#[tokio::test]
async fn devices_come_and_go_by_themselves_and_in_a_set() {
    let node = TestNode::start().await;
    node.write_spec(SPEC);
    let attached = node.give(&["tzdata@1"], &["one", "two"]).await.unwrap();
    let labels: Vec<_> = attached.iter().map(Attachment::label).collect();
    assert_eq!(labels, ["example.com/dev=one", "example.com/dev=two", "tzdata@1"]);
    assert_eq!(
        node.shim.calls(),
        ["attach /dev/ctl /dev/one", "attach /dev/ctl /dev/two", "attach tzdata@1"],
        "devices first"
    );
    let asked = node.shim.0.lock().unwrap().mounted[&attached[0].id].clone();
    assert!(asked.content.is_none() && asked.target.is_empty());
    let (one, edits) = (&asked.devices.nodes[1], &asked.devices);
    assert_eq!((one.type_.as_str(), one.major, one.minor, one.access.as_str()), ("c", 10, 1, "rw"));
    assert_eq!((one.file_mode, one.uid, one.gid), (Some(0o640), None, Some(44)));
    assert_eq!((edits.env.as_slice(), edits.refuse_foreign), (&["SHARED=1".to_owned()][..], false));
    assert_eq!((edits.hooks[0].path.as_str(), edits.hooks[0].timeout), ("/bin/true", 3));
    assert_eq!(edits.mounts[0].container_path, "/usr/lib/b");
    let twice = node.give(&[], &["two"]).await.unwrap_err();
    assert_eq!(twice.to_string(), "example.com/dev=two is attached to default/c1 already");
    let using: Vec<_> = node.engine.with_any_devices().iter().map(Attachment::label).collect();
    assert_eq!(using, labels[..2]);
    assert_eq!(node.take(&["two"]).await.unwrap(), ["example.com/dev=two"]);
    assert_eq!(node.listed().await, ["example.com/dev=one", "tzdata@1"]);
    // One that is not there: none goes.
    let error = node.take(&["one", "two"]).await.unwrap_err();
    assert!(error.to_string().contains("example.com/dev=two is not attached to default/c1"), "{error}");
    node.shim.0.lock().unwrap().busy = true;
    let busy = node.take(&["one"]).await.unwrap_err();
    assert!(busy.to_string().starts_with("example.com/dev=one in default/c1 is in use: process 7"), "{busy}");
    node.shim.0.lock().unwrap().busy = false;
    node.take(&["one"]).await.unwrap();
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    assert_eq!((node.durable().await.len(), node.shim.mounted().len()), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_had_asks_the_shim_nothing() {
    let node = TestNode::start().await;
    node.write_spec(SPEC);
    for (name, words) in [
        ("three", &["example.com/dev=three", "example.com/dev=one"][..]),
        (
            "net",
            &["a hook of the point poststart (/bin/true)", "example.com/dev=net", "create the container"],
        ),
        ("torn", &["example.com/dev=torn", "two different things at /dev/ctl"]),
        ("gone", &["example.com/dev=gone", "cannot be had"]),
    ] {
        let error = node.give(&["tzdata@1"], &["one", name]).await.unwrap_err();
        let line = error.to_string();
        assert!(matches!(error, AttachmentError::Devices(_)));
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        assert_eq!((node.shim.calls().len(), node.durable().await.len()), (0, 0), "{line}");
        assert_eq!(node.listed().await, [""; 0]);
    }
    assert!(matches!(node.give(&[], &[]).await.unwrap_err(), AttachmentError::NoSpecs));
}

#[tokio::test]
async fn a_set_with_devices_is_all_or_nothing() {
    let node = TestNode::start().await;
    node.write_spec(SPEC);
    for refused in ["attach tzdata@1", "attach /dev/ctl /dev/two"] {
        node.shim.0.lock().unwrap().refuse = vec![refused.to_owned()];
        node.give(&["tzdata@1"], &["one", "two"]).await.unwrap_err();
        assert_eq!((node.shim.mounted(), node.durable().await.len()), (vec![], 0));
    }
    let calls = node.shim.calls();
    assert_eq!(calls[calls.len() - 1], "detach /dev/ctl /dev/one");
}

#[tokio::test]
async fn what_was_attached_is_given_again_whatever_the_spec_says_now() {
    let mut node = TestNode::start().await;
    node.write_spec(SPEC);
    let first = node.give(&[], &["one"]).await.unwrap().remove(0);
    node.write_spec(&SPEC.replace("/dev/one", "/dev/other").replace("minor: 1,", "minor: 9,"));
    node.restart().await;
    assert_eq!(node.listed().await, ["example.com/dev=one"]);
    // The container's next task.
    let registration = node.dir.path().join("run/tasks/default/c1.json");
    let text = fs::read_to_string(&registration).unwrap();
    fs::remove_file(&registration).unwrap();
    node.restart().await;
    assert_eq!(node.durable().await[0].phase, Phase::Waiting);
    node.shim.0.lock().unwrap().mounted.clear();
    fs::write(&registration, text).unwrap();
    node.engine.restore(&key(), &[]).await.unwrap();
    assert_eq!(node.shim.mounted(), ["/dev/ctl /dev/one"]);
    assert_eq!(node.durable().await[0].devices, first.devices);
    // A spec that is gone takes nothing away.
    fs::remove_file(node.dir.path().join("cdi/example.yaml")).unwrap();
    assert_eq!(node.take(&["one"]).await.unwrap(), ["example.com/dev=one"]);
}

#[tokio::test]
async fn a_crash_in_the_middle_is_settled_by_what_the_shim_has() {
    let mut node = TestNode::start().await;
    node.write_spec(SPEC);
    let done = node.give(&[], &["one"]).await.unwrap().remove(0);
    let intent = Attachment { phase: Phase::Attaching, ..done.clone() };
    node.write(vec![Change::Put(Box::new(intent.clone()))]).await;
    node.restart().await;
    assert_eq!(node.durable().await, [done]);
    node.shim.0.lock().unwrap().mounted.clear();
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.durable().await, []);
}

#[tokio::test]
async fn a_capsule_brings_the_devices_that_it_declares() {
    let mut node = TestNode::start().await;
    node.write_spec(SPEC);
    node.publish_with("1", &["example.com/dev=one"]);
    node.publish_with("1.1", &["example.com/dev=one"]);
    node.publish_with("2", &["example.com/dev=one", "example.com/dev=two"]);
    node.publish_with("3", &["example.com/dev=gone"]);
    let error = node.attach(&["tzdata@1", "cuda@3"]).await.unwrap_err();
    assert!(error.to_string().contains("example.com/dev=gone"), "{error}");
    assert_eq!(node.durable().await, []);
    // A shim that leaves out what it does not know gives half of it.
    node.shim.0.lock().unwrap().old = true;
    let error = node.attach(&["cuda@1"]).await.unwrap_err();
    assert!(error.to_string().contains("release before devices"), "{error}");
    assert_eq!((node.shim.mounted(), node.durable().await.len()), (vec![], 0));
    node.shim.0.lock().unwrap().old = false;
    let attached = node.attach(&["cuda@1"]).await.unwrap();
    assert_eq!(attached[0].device_names(), ["example.com/dev=one"]);
    assert_eq!(node.shim.mounted(), ["cuda@1 /dev/ctl /dev/one"]);
    // It is no device by itself; one by itself may be there besides.
    let error = node.take(&["one"]).await.unwrap_err();
    assert!(error.to_string().contains("by itself, but with cuda"), "{error}");
    node.give(&[], &["one"]).await.unwrap();
    let error = node.upgrade(&["cuda@2"]).await.unwrap_err();
    let other = matches!(&error, AttachmentError::Devices(e) if matches!(**e, DevicesError::Other { .. }));
    assert!(other && error.to_string().contains("example.com/dev=two"), "{error}");
    assert_eq!(node.upgrade(&["cuda@1.1"]).await.unwrap(), ["cuda 1 1.1"]);
    assert_eq!(node.rollback(&["cuda"]).await.unwrap(), ["cuda 1.1 1"]);
    node.engine.detach(&choice("cuda"), false, None).await.unwrap();
    assert_eq!(node.listed().await, ["example.com/dev=one"]);
}

fn creation(devices: &[(&str, &str)], attachments: &str) -> Creation {
    let devices = devices.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Creation { devices: devices.collect(), attachments: attachments.to_owned(), takes_attachments: true }
}

fn paths(edits: &Edits) -> Vec<&str> {
    edits.nodes.iter().map(|node| node.path.as_str()).collect()
}

#[tokio::test]
async fn a_spec_is_told_what_annotations_name_and_attachments_bring() {
    let mut node = TestNode::start().await;
    node.write_spec(SPEC);
    node.publish_with("1", &["example.com/dev=net"]);
    let asked = creation(
        &[
            ("cdi.k8s.io/a", "example.com/dev=one"),
            ("cdi.k8s.io/b", " example.com/dev=one, example.com/dev=two"),
        ],
        "cuda:/opt/cuda",
    );
    let told = node.engine.devices_at_creation(&key(), &asked).await.unwrap();
    assert_eq!(paths(&told.own), ["/dev/ctl", "/dev/one", "/dev/two"]);
    assert_eq!((paths(&told.attached), told.attached.hooks.len()), (vec!["/dev/ctl"], 1));
    assert_eq!((node.shim.calls().len(), node.durable().await.len()), (0, 0));
    // What only creation can give is refused by itself, and taken where the spec has it; the shim is asked for the rest.
    let error = node.engine.attach_named(&key(), "cuda:/opt/cuda", Moment::Live).await.unwrap_err();
    assert!(error.to_string().contains("poststart"), "{error}");
    let made = node.engine.attach_named(&key(), "cuda:/opt/cuda", Moment::Created).await.unwrap();
    let sent = node.shim.0.lock().unwrap().mounted[&made[0].id].clone();
    assert_eq!((sent.devices.nodes.len(), sent.devices.hooks.len()), (1, 0));
    // The next task has what this one has, whatever the annotation and the specs say by then.
    fs::remove_file(node.dir.path().join("cdi/example.yaml")).unwrap();
    let again = node.engine.devices_at_creation(&key(), &creation(&[], "cuda:/opt/cuda")).await.unwrap();
    assert_eq!(again, AtCreation { attached: told.attached, ..AtCreation::default() });
    // An entry that is gone brings nothing, and neither does anything where nothing is taken.
    let none = node.engine.devices_at_creation(&key(), &creation(&[], "")).await.unwrap();
    assert_eq!(none, AtCreation::default());
    let refusing = Creation { takes_attachments: false, ..creation(&[], "no-such") };
    assert_eq!(node.engine.devices_at_creation(&key(), &refusing).await.unwrap(), AtCreation::default());
}

#[tokio::test]
async fn a_creation_is_refused_by_the_annotation_that_asks_too_much() {
    let node = TestNode::start().await;
    node.write_spec(SPEC);
    let key_of = "resourcecapsules.io/devices";
    for (asked, line) in [
        (
            creation(&[(key_of, "example.com=1")], ""),
            "annotation resourcecapsules.io/devices: \"example.com=1\" names no CDI device",
        ),
        (
            creation(&[(key_of, "example.com/dev=one,")], ""),
            "annotation resourcecapsules.io/devices: \"\" names no CDI device",
        ),
        (
            creation(&[(key_of, "example.com/dev=one"), ("cdi.k8s.io/x", "example.com/dev=9")], ""),
            "annotation cdi.k8s.io/x: example.com/dev=9: this node has example.com/dev=gone",
        ),
        (
            creation(&[(key_of, "example.com/dev=gone")], ""),
            "annotation resourcecapsules.io/devices: device example.com/dev=gone of ",
        ),
        (creation(&[], "no-such"), "annotation resourcecapsules.io/attach: "),
    ] {
        let error = node.engine.devices_at_creation(&key(), &asked).await.unwrap_err().to_string();
        assert!(error.starts_with(line) && !error.contains('\n'), "{error}");
    }
}

/// Whoever may make a pod may not have every device of the node.
#[tokio::test]
async fn a_pod_names_what_pods_may_name() {
    let mut node = TestNode::start().await;
    node.write_spec(SPEC);
    let pods = ContainerKey { namespace: "k8s.io".into(), ..key() };
    let asked = creation(&[("resourcecapsules.io/devices", "example.com/dev=one")], "");
    let error = node.engine.devices_at_creation(&pods, &asked).await.unwrap_err();
    assert!(error.to_string().contains("example.com/dev: add it to devices.pods_may_name"), "{error}");
    let by_kubelet = creation(&[("cdi.k8s.io/x", "example.com/dev=one")], "");
    assert_eq!(paths(&node.engine.devices_at_creation(&pods, &by_kubelet).await.unwrap().own).len(), 2);
    for kind in ["example.com/dev", "*"] {
        node.engine = node.engine.clone().with_devices_for_pods(&[kind.to_owned()]);
        assert_eq!(paths(&node.engine.devices_at_creation(&pods, &asked).await.unwrap().own).len(), 2);
    }
    // The same of what somebody attaches for one.
    node.engine = node.engine.clone().with_devices_for_pods(&["example.com/other".to_owned()]);
    let devices = |name: &str| vec![name.parse::<DeviceName>().unwrap()];
    let refused = node.engine.check_for_pods(&devices("example.com/dev=one")).unwrap_err().to_string();
    assert!(
        refused.contains("example.com/dev=one: add example.com/dev to devices.pods_may_name"),
        "{refused}"
    );
    node.engine.check_for_pods(&devices("example.com/other=1")).unwrap();
}
