use proptest::prelude::*;

use overlayfs_utils::ContainerPath;

use super::*;
use crate::{devices::Access, edits::Point};

fn edits() -> SpecEdits {
    let path = |text: &str| ContainerPath::parse(text).unwrap();
    let node = Node {
        path: path("/dev/fuse"),
        kind: NodeKind::Char,
        major: 10,
        minor: 229,
        mode: Some(0o660),
        uid: None,
        gid: Some(44),
        access: Access::parse("rw").unwrap(),
    };
    let fifo = Node { path: path("/dev/f"), kind: NodeKind::Fifo, access: Access::NONE, ..node.clone() };
    let mount = |source: &str, destination: &str| Mount {
        source: source.into(),
        destination: destination.into(),
        kind: "bind".into(),
        options: vec!["ro".into(), "rbind".into()],
    };
    let hook = |point| {
        let args = vec!["h".into()];
        (point, Hook { path: "/bin/h".into(), args, env: Vec::new(), timeout: Some(3) })
    };
    SpecEdits {
        nodes: vec![node, fifo],
        mounts: vec![mount("/lib/x", "/usr/lib/deep/x"), mount("/lib/dir", "/usr/lib")],
        env: vec!["GPU=0".into(), "NEW=1".into()],
        hooks: vec![hook(Point::CreateContainer), hook(Point::Poststop)],
        additional_gids: vec![44, 5],
        intel_rdt: Some(json!({"closID": "a"}).as_object().cloned().unwrap_or_default()),
        net_devices: Vec::new(),
    }
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "ofALaterVersion": {"kept": [1, 2.5, null]},
        "process": {"env": ["PATH=/bin", "GPU=none"], "user": {"uid": 1000, "gid": 0, "additionalGids": [5]}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"devices": null, "resources": {"devices": [{"allow": false, "access": "rwm"}], "memory": {}}},
    })
}

#[test]
fn a_spec_has_all_that_is_asked_and_all_that_it_had() {
    let mut config = spec();
    apply(&mut config, &edits()).unwrap();
    assert_eq!(config["ofALaterVersion"], spec()["ofALaterVersion"]);
    assert_eq!(config["process"]["env"], json!(["PATH=/bin", "GPU=0", "NEW=1"]));
    assert_eq!(config["process"]["user"], json!({"uid": 1000, "gid": 0, "additionalGids": [5, 44]}));
    // The container's user where the node says none; root is what a runtime takes anyway.
    let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 1000, "gid": 44});
    assert_eq!(config["linux"]["devices"][0], fuse);
    assert_eq!(config["linux"]["devices"][1]["type"], "p");
    let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    let deny = json!({"allow": false, "access": "rwm"});
    assert_eq!(config["linux"]["resources"], json!({"devices": [deny, rule], "memory": {}}));
    let order: Vec<_> = config["mounts"].as_array().unwrap().iter().map(|m| &m["destination"]).collect();
    assert_eq!(order, ["/proc", "/usr/lib", "/usr/lib/deep/x"]);
    assert_eq!(config["hooks"]["createContainer"], json!([{"path": "/bin/h", "args": ["h"], "timeout": 3}]));
    assert_eq!(config["hooks"]["poststop"].as_array().unwrap().len(), 1);
    assert_eq!(config["linux"]["intelRdt"], json!({"closID": "a"}));
}

#[test]
fn what_containerd_has_put_there_is_not_put_there_twice() {
    let mut config = spec();
    apply(&mut config, &edits()).unwrap();
    // As containerd writes the same: an owner, an empty list, a path that is not clean.
    config["linux"]["devices"][0]["uid"] = json!(7);
    config["hooks"]["poststop"][0]["env"] = json!([]);
    config["mounts"][1]["destination"] = json!("/usr//lib/");
    let before = config.clone();
    apply(&mut config, &edits()).unwrap();
    assert_eq!(config, before);
}

#[test]
fn another_thing_at_the_same_place_gives_way() {
    let mut config = spec();
    config["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 1, "minor": 3}]);
    config["mounts"] = json!([{"destination": "/usr/lib", "source": "/elsewhere"}]);
    apply(&mut config, &edits()).unwrap();
    assert_eq!(
        (config["linux"]["devices"].as_array().unwrap().len(), &config["linux"]["devices"][0]["minor"]),
        (2, &json!(229))
    );
    assert_eq!(
        (config["mounts"].as_array().unwrap().len(), &config["mounts"][0]["source"]),
        (2, &json!("/lib/dir"))
    );
}

#[test]
fn an_interface_is_for_who_sets_up_the_network() {
    let net = SpecEdits { net_devices: vec![("eth7".into(), "rdma0".into())], ..SpecEdits::default() };
    let refused = apply(&mut spec(), &net).unwrap_err();
    assert!(refused.to_string().contains("eth7"), "{refused}");
    let mut there = spec();
    there["linux"]["netDevices"] = json!({"eth7": {"name": "rdma0"}});
    let before = there.clone();
    apply(&mut there, &net).unwrap();
    assert_eq!(there, before);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/=]{0,8}".prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("linux"),
        Just("process"),
        Just("mounts"),
        Just("hooks"),
        Just("devices"),
        Just("resources"),
        Just("env"),
        Just("user"),
        Just("additionalGids"),
        Just("createContainer"),
        Just("path"),
        Just("destination"),
        Just("major"),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone().prop_map(str::to_owned), inner), 0..5)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a spec is: it is refused, or it has what is asked, and once more changes nothing.
    #[test]
    fn any_spec_is_taken_or_refused(mut config in any_json()) {
        if apply(&mut config, &edits()).is_ok() {
            let devices = config["linux"]["devices"].as_array().unwrap();
            prop_assert!(devices.iter().any(|node| node["path"] == "/dev/fuse" && node["minor"] == 229));
            prop_assert!(env_of(&config).contains(&"GPU=0".to_owned()));
            prop_assert_eq!(config["hooks"]["poststop"].as_array().unwrap().iter().filter(|hook| hook["path"] == "/bin/h").count(), 1);
            let once = config.clone();
            apply(&mut config, &edits()).unwrap();
            prop_assert_eq!(config, once);
        }
    }
}
