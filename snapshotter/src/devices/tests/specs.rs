//! One spec, good or bad, and the host's nodes.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

#[test]
fn a_spec_as_nvidia_writes_it_is_read_whole() {
    let spec = spec(NVIDIA).unwrap();
    let shared = spec.shared_edits().unwrap();
    let node = |node: &Node| {
        (node.path.clone(), node.kind, node.major, node.minor, node.file_mode, node.access.clone())
    };
    assert_eq!(
        shared.nodes.iter().map(node).collect::<Vec<_>>(),
        [
            ("/dev/nvidiactl".to_owned(), NodeKind::Char, 195, 255, Some(0o666), "rw".to_owned()),
            ("/dev/nvidia-uvm".to_owned(), NodeKind::Char, 511, 0, None, "rwm".to_owned()),
        ]
    );
    assert_eq!(
        shared.env,
        ["NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_CTK_LIBCUDA_DIR=/usr/lib/x86_64-linux-gnu"]
    );
    assert_eq!(shared.additional_gids, [44]);
    assert_eq!(shared.hooks.len(), 2);
    assert_eq!((shared.hooks[1].point, shared.hooks[1].timeout), (HookPoint::CreateContainer, Some(10)));
    assert_eq!(shared.hooks[0].args[1], "create-symlinks");
    assert_eq!((shared.mounts[0].options.len(), shared.mounts[1].kind.as_str()), (5, "tmpfs"));
    let names: Vec<_> = spec.devices().map(ToString::to_string).collect();
    assert_eq!(names, ["nvidia.com/gpu=0", "nvidia.com/gpu=all"]);
    let gpu = spec.edits_of(&name("nvidia.com/gpu=0")).unwrap().unwrap();
    let first = &gpu.nodes[0];
    assert_eq!((first.file_mode, first.uid, first.gid), (Some(0o660), Some(0), Some(44)));
    assert_eq!((first.host_path.as_str(), first.minor), ("/host/dev/nvidia0", 0));
    assert_eq!(spec.edits_of(&name("nvidia.com/gpu=7")).unwrap(), None);
}

/// How `nvidia-ctk cdi generate` calls a part of a GPU (MIG): by numbers, and by its UUID.
const PARTS: [&str; 2] = ["0:1", "MIG-4f1c1b5e-8b0a-5d8e-9a53-6d6f6e0f7c11"];
/// The GPU's own node, and those of the capabilities to use the part's two instances.
const PART: &str = r#"
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, type: c, major: 195, minor: 0}
    - {path: /dev/nvidia-caps/nvidia-cap21, type: c, major: 237, minor: 21, permissions: r}
    - {path: /dev/nvidia-caps/nvidia-cap22, type: c, major: 237, minor: 22, permissions: r}
"#;

#[test]
fn parts_of_a_gpu_are_devices_by_both_of_their_names() {
    let devices = PARTS.map(|name| format!("- name: {name:?}{PART}")).concat();
    let spec = spec(&format!("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n{devices}")).unwrap();
    let names = PARTS.map(|name| format!("nvidia.com/gpu={name}"));
    assert_eq!(spec.devices().map(ToString::to_string).collect::<Vec<_>>(), names);
    for device in names {
        let part = spec.edits_of(&name(&device)).unwrap().unwrap();
        let nodes: Vec<_> = part.nodes.iter().map(|node| (node.path.as_str(), node.minor)).collect();
        let caps = ["/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"];
        assert_eq!(nodes, [("/dev/nvidia0", 0), (caps[0], 21), (caps[1], 22)]);
    }
    assert!(spec.edits_of(&name("nvidia.com/gpu=0:0")).unwrap().is_none());
}

#[test]
fn every_field_of_the_newest_version_is_read() {
    let spec = Spec::parse(EVERYTHING.as_bytes(), Format::Json).unwrap();
    let edits = spec.edits_of(&name("example.com/class.sub=a:0")).unwrap().unwrap();
    let char = Node {
        path: "/dev/u".into(),
        host_path: "/dev/u".into(),
        kind: NodeKind::Char,
        major: 1,
        minor: 3,
        file_mode: Some(0o600),
        uid: Some(1),
        gid: Some(2),
        access: String::new(),
    };
    let fifo = Node {
        path: "/dev/p".into(),
        host_path: "/dev/q".into(),
        kind: NodeKind::Fifo,
        major: 0,
        minor: 0,
        file_mode: None,
        uid: None,
        gid: None,
        access: "rwm".into(),
    };
    let expected = Edits {
        env: vec!["A=1".into(), "B=x=y".into()],
        nodes: vec![fifo, char],
        net_devices: vec![NetDevice { host_interface: "eth1".into(), name: "net0".into() }],
        mounts: vec![Mount {
            host_path: "/a".into(),
            container_path: "/b".into(),
            options: vec!["ro".into()],
            kind: "bind".into(),
        }],
        hooks: vec![Hook {
            point: HookPoint::Poststop,
            path: "/bin/true".into(),
            args: vec!["true".into()],
            env: vec!["X=".into()],
            timeout: Some(1),
        }],
        additional_gids: vec![5],
        intel_rdt: Some(IntelRdt {
            clos_id: Some("/".into()),
            l3_cache_schema: Some("L3:0=f".into()),
            mem_bw_schema: Some("MB:0=1".into()),
            schemata: vec!["L2:0=f".into()],
            enable_monitoring: true,
            ..IntelRdt::default()
        }),
    };
    assert_eq!(edits, expected);
    assert!(spec.shared_edits().unwrap().is_empty());
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn what_is_wrong_is_said_and_whose_it_is() {
    let with = |edits: &str| {
        format!("cdiVersion: 1.1.0\nkind: v.com/c\ndevices:\n- name: d\n  containerEdits: {edits}\n")
    };
    let at = |version: &str, edits: &str| with(edits).replace("1.1.0", version);
    for (text, why) in [
        ("", "missing field `cdiVersion`".to_owned()),
        ("cdiVersion: 1.1.0\nkind: v.com/c\ndevices: []", "no devices".into()),
        ("cdiVersion: 1.1.0\nkind: v.com/c", "no devices".into()),
        (
            &plain("v.com/c", "d", "A=1").replace("0.6.0", "0.2.0"),
            "\"0.2.0\" is none of 0.3.0 to 1.1.0".into(),
        ),
        (&plain("v.com/c", "d", "A=1").replace("0.6.0", "1.2.0"), "\"1.2.0\" is none".into()),
        (&plain("v.com", "d", "A=1"), "kind \"v.com\": the kind has no '/'".into()),
        (&plain("1v/c", "d", "A=1"), "with a letter first".into()),
        (&plain("v/c/d", "d", "A=1"), "vendor and class are letters".into()),
        (&plain("v/c", "d-", "A=1"), "\"v/c=d-\" names no CDI device".into()),
        (&plain("v/c", "d", "A"), "device v/c=d: env \"A\" is not NAME=VALUE".into()),
        (&plain("v/c", "d", "\"=A\""), "env \"=A\"".into()),
        (&with("{}"), "device v.com/c=d has no containerEdits".into()),
        (&with("{color: red}"), "unknown field `color`".into()),
        (&with("{env: [A=1], env: [B=1]}"), "duplicate".into()),
        (
            &with("{deviceNodes: [{path: dev/x}]}"),
            "device v.com/c=d: the deviceNodes path \"dev/x\" is no absolute path".into(),
        ),
        (&with("{deviceNodes: [{path: /dev/x, type: x}]}"), "node /dev/x: the type \"x\"".into()),
        (&with("{deviceNodes: [{path: /dev/x, permissions: rwx}]}"), "permissions \"rwx\"".into()),
        (&with("{deviceNodes: [{path: /dev/x, major: -1}]}"), "major is no device number".into()),
        (&with("{deviceNodes: [{path: /dev/x, fileMode: 0888}]}"), "\"0888\" is no mode".into()),
        (&with("{deviceNodes: [{path: /dev/x, fileMode: 0o20666}]}"), "more than permission bits".into()),
        (&with("{hooks: [{hookName: later, path: /x}]}"), "\"later\" is none of prestart,".into()),
        (&with("{hooks: [{hookName: poststop, path: x}]}"), "hook poststop \"x\" is no absolute path".into()),
        (&with("{hooks: [{hookName: poststop, path: /x, timeout: 0}]}"), "timeout 0".into()),
        (&with("{mounts: [{hostPath: a, containerPath: /b}]}"), "hostPath \"a\" is no absolute path".into()),
        (
            &with("{mounts: [{hostPath: /a, containerPath: b}]}"),
            "containerPath \"b\" is no absolute path".into(),
        ),
        (
            &with("{netDevices: [{hostInterfaceName: a, name: b}, {hostInterfaceName: a, name: c}]}"),
            "twice".into(),
        ),
        (&with("{intelRdt: {closID: a/b}}"), "closID \"a/b\"".into()),
        (&with("{intelRdt: {enableCMT: true}}"), "needs cdiVersion 1.0.0 or older".into()),
        (
            &at("1.0.0", "{intelRdt: {schemata: [a]}}"),
            "intelRdt.schemata needs cdiVersion 1.1.0, and this is 1.0.0".into(),
        ),
        (&at("1.0.0", "{netDevices: [{hostInterfaceName: a, name: b}]}"), "netDevices needs".into()),
        (&at("0.6.0", "{additionalGids: [1]}"), "additionalGids needs cdiVersion 0.7.0".into()),
        (
            &at("0.4.0", "{deviceNodes: [{path: /dev/x, hostPath: /dev/y}]}"),
            "hostPath needs cdiVersion 0.5.0".into(),
        ),
        (
            &at("0.3.0", "{mounts: [{hostPath: /a, containerPath: /b, type: bind}]}"),
            "type needs cdiVersion 0.4.0".into(),
        ),
        (&plain("v/c.d", "d", "A=1").replace("0.6.0", "0.5.0"), "a class with a dot needs".into()),
        (&plain("v/c", "0", "A=1").replace("0.6.0", "0.4.0"), "begins with a digit needs".into()),
        (
            &(plain("v/c", "d", "A=1") + "- name: d\n  containerEdits: {env: [A=1]}\n"),
            "device v/c=d is there twice".into(),
        ),
    ] {
        let error = spec(text).unwrap_err();
        assert!(error.contains(&why), "{text}\n{error}");
    }
    for text in [
        &at("v0.7.0", "{intelRdt: {enableCMT: true}}"),
        &at("0.7.0", "{additionalGIDs: [1]}"),
        &with("{deviceNodes: [{path: /dev/x, type: c, major: 1, fileMode: 0o600}], hooks: null}"),
        &plain("v/c", "0", "A=1"),
    ] {
        spec(text).unwrap();
    }
}

#[test]
fn aliases_do_not_make_a_small_file_a_large_one() {
    let mut text =
        "cdiVersion: 0.6.0\nkind: v/c\nannotations:\n  a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let reference = format!("*a{}", level - 1);
        text += &format!("  b{level}: &a{level} [{}]\n", vec![reference; 10].join(", "));
    }
    assert!(spec(&text).is_err());
    let deep = "[".repeat(100_000);
    assert!(spec(&deep).is_err());
    assert!(Spec::parse(deep.as_bytes(), Format::Json).is_err());
}

#[test]
fn what_a_spec_leaves_out_the_hosts_node_says() {
    let at = |edits: &str| {
        let text = format!(
            "cdiVersion: 0.6.0\nkind: v/c\ndevices:\n- name: d\n  containerEdits: {{deviceNodes: [{{{edits}}}]}}\n"
        );
        spec(&text).unwrap().edits_of(&name("v/c=d")).map(|edits| edits.unwrap().nodes.remove(0))
    };
    let null = at("path: /dev/gpu, hostPath: /dev/null").unwrap();
    assert_eq!((null.kind, null.major, null.minor, null.file_mode), (NodeKind::Char, 1, 3, Some(0o666)));
    assert_eq!((null.path.as_str(), null.host_path.as_str()), ("/dev/gpu", "/dev/null"));
    // What is said counts, with a node of the host or without.
    let said = at("path: /dev/null, type: c, major: 10, minor: 229, fileMode: 384").unwrap();
    assert_eq!((said.major, said.minor, said.file_mode), (10, 229, Some(0o600)));
    let absent = at("path: /dev/none, type: b, major: 7").unwrap();
    assert_eq!((absent.kind, absent.file_mode), (NodeKind::Block, None));
    let other = at("path: /dev/null, type: b").unwrap_err();
    assert_eq!(other.to_string(), "/dev/null is a node of type c on this node, and of type b in the spec");
    assert!(at("path: /dev/none").unwrap_err().to_string().contains("/dev/none on this node: No such file"));
    assert_eq!(at("path: /proc/version").unwrap_err(), NodeError::NoNode("/proc/version".into()));
    // A link is not followed: whoever may write it would choose the device.
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink("/dev/null", &link).unwrap();
    assert!(matches!(at(&format!("path: {}", link.display())), Err(NodeError::NoNode(_))));
}

/// A good spec with something done to it.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![NVIDIA, EVERYTHING]);
    let change = (
        any::<prop::sample::Index>(),
        0_usize..12,
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..6),
            prop::sample::select(vec![
                "null",
                "[]",
                "{}",
                "-1",
                "0777",
                "\"\"",
                "*a",
                "&a ",
                "\n- ",
                "  ",
                "99999999999",
                "0.5.0",
                "~",
                "!!binary x",
                "\t",
                "/",
                "=",
                ","
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ],
    );
    (good, prop::collection::vec(change, 1..8)).prop_map(|(good, changes)| {
        let mut bytes = good.as_bytes().to_vec();
        for (at, length, new) in changes {
            let start = at.index(bytes.len() + 1);
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, new);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop_oneof![3 => mutated(), 1 => prop::collection::vec(any::<u8>(), 0..200)]) {
        for format in [Format::Json, Format::Yaml] {
            match Spec::parse(&bytes, format) {
                Ok(spec) => {
                    prop_assert!(spec.devices().next().is_some());
                    let _ = spec.shared_edits();
                    for device in spec.devices() {
                        prop_assert_eq!(&device.to_string().parse::<DeviceName>().unwrap(), device);
                        let _ = spec.edits_of(device);
                    }
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn names_are_read_as_they_are_written(text in "\\PC{0,12}|[a-c./=:_0-9-]{0,12}") {
        if let Ok(name) = text.parse::<DeviceName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }
}
