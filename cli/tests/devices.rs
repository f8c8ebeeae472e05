//! Devices of the node, as they are listed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1::{
    AttachRequest, AttachmentSpec, ContainerRef, DetachRequest, ListDevicesRequest,
};

use crate::fake::{Asked, Fake};

#[test]
fn devices_are_listed_with_what_is_wrong() {
    let fake = Fake::start();
    let ran = fake.run(&["devices"]);
    let text = "\
DEVICE                  NODES                                                                                            MOUNTS   USED BY       SPEC
example.com/clock=rtc   unavailable: cannot look at /dev/rtc9 on this node: No such file or directory (os error 2)   0        -             /etc/cdi/clock.json
nvidia.com/gpu=0        /dev/nvidia0,/dev/dri/card1                                                                  30       default/web   /var/run/cdi/nvidia.yaml

Not used:
  /etc/cdi/\\x1b[2J.yaml: it has no devices
";
    let squeezed = |text: &str| {
        text.split("   ").map(str::trim_start).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("|")
    };
    assert_eq!((ran.code, squeezed(&ran.stdout), ran.stderr.as_str()), (Some(0), squeezed(text), ""));
    assert_eq!(fake.asked(), [Asked::Devices(ListDevicesRequest {})]);
}

#[test]
fn one_device_and_one_class_can_be_asked_for() {
    let fake = Fake::start();
    for only in ["nvidia.com/gpu", "nvidia.com/gpu=0"] {
        let ran = fake.run(&["devices", only, "-o", "json"]);
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert_eq!(json["devices"].as_array().map(Vec::len), Some(1), "{only}");
        let gpu = &json["devices"][0];
        assert_eq!(
            (&gpu["name"], &gpu["unavailable"]),
            (&"nvidia.com/gpu=0".into(), &serde_json::Value::Null)
        );
        let node = serde_json::json!({"path": "/dev/dri/card1", "host_path": "/dev/dri/card1", "type": "c", "major": 195, "minor": 1, "access": "rw"});
        assert_eq!(gpu["nodes"][1], node);
        assert_eq!(
            gpu["used_by"][0],
            serde_json::json!({"namespace": "default", "container": "web", "attachment": "a1"})
        );
        assert_eq!(json["problems"][0]["reason"], "it has no devices");
    }
    let none = fake.run(&["devices", "nvidia.com/gp"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(1), ""));
    assert_eq!(none.stderr, "capsulectl: this node has no device nvidia.com/gp: see `capsulectl devices`\n");
}

#[test]
fn devices_are_attached_and_detached_by_name() {
    let fake = Fake::start();
    let container = || Some(ContainerRef { id: "web".into(), namespace: String::new() });
    let gpu = || vec!["nvidia.com/gpu=0".to_owned(), "example.com/fuse=one".to_owned()];
    let words = ["--device", "nvidia.com/gpu=0", "--device", "example.com/fuse=one"];
    let ran = fake.run(&[&["attach", "web"], &words[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let ran = fake.run(&[&["attach", "web", "app@1"], &words[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let ran = fake.run(&[&["detach", "web", "--lazy"], &words[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let app = AttachmentSpec { capsule: "app".into(), version: "1".into(), ..AttachmentSpec::default() };
    assert_eq!(
        fake.asked(),
        [
            Asked::Attach(AttachRequest {
                container: container(),
                specs: vec![],
                devices: gpu(),
                for_pod: false
            }),
            Asked::Attach(AttachRequest {
                container: container(),
                specs: vec![app],
                devices: gpu(),
                for_pod: false
            }),
            Asked::Detach(DetachRequest {
                container: container(),
                devices: gpu(),
                lazy: true,
                ..DetachRequest::default()
            }),
        ]
    );
    for wrong in [
        "attach web",
        "attach web --device",
        "attach web --device a.b/c=d --target /x",
        "attach web --device a.b/c=d --writable",
        "attach web --device a.b/c=d --dry-run",
        "detach web",
        "detach web tzdata --device a.b/c=d",
        "detach web --device a.b/c=d --drop",
        "detach web --device a.b/c=d --target /x",
    ] {
        let ran = fake.run(&wrong.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{wrong}: {}", ran.stderr);
    }
    assert_eq!(fake.asked(), [], "nothing is asked of capsuled");
}

#[test]
fn attachments_of_devices_alone_are_told_by_their_names() {
    let fake = Fake::start();
    let of_devices = fake::DEVICES_ALONE;
    for (line, want) in [
        (
            format!("attach {of_devices} --device nvidia.com/gpu=0"),
            "default/gpu-box: nvidia.com/gpu=0 attached; processes that run already do not have its variables\n",
        ),
        (
            format!("detach {of_devices} --device nvidia.com/gpu=0"),
            "default/gpu-box: nvidia.com/gpu=0 detached\n",
        ),
        (
            format!("detach {of_devices} --device nvidia.com/gpu=0 --lazy"),
            "default/gpu-box: nvidia.com/gpu=0 detached; what is open stays open: in use by python (pid 7), fd 9 /dev/nvidia0\n",
        ),
    ] {
        let ran = fake.run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), want, ""), "{line}");
    }
    let ran = fake.run(&["ps", of_devices]);
    let row = ran.stdout.lines().nth(1).expect("a row").split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        row,
        ["default", "gpu-box", "-", "-", "-", "-", "-", "attached", "-", "-", "-", "nvidia.com/gpu=0"]
    );
}
