//! Devices of the node, as they are listed.

#![allow(clippy::expect_used)] // in tests, helpers included: a failure is the report

#[allow(dead_code)] // what only the other commands' tests need
mod fake;

use capsule_proto::capsule::v1::ListDevicesRequest;

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
