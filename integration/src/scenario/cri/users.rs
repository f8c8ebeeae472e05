//! Pods with `hostUsers: false`: a user namespace of their own. And the network of all pods here.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use capsule_proto::cri::v1::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};

use super::REFERENCE;
use super::capsules::expect;
use super::kubelet::{Kubelet, SLEEP, namespaces};
use crate::scenario::capsulectl::done;

/// The first of the pod's users on the node.
const FIRST: u32 = 100_000;
/// Where containerd looks for network plugins; Debian's 1.7 in the second.
const CNI: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const NETWORKS: &str = "/etc/cni/net.d";
/// A network that is none: the pod has an address that leads nowhere.
const NETWORK: &str = r#"{"cniVersion": "0.4.0", "name": "nowhere", "plugins": [{"type": "nowhere"}]}"#;
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD) echo "{\"cniVersion\": \"0.4.0\", \"interfaces\": [{\"name\": \"$CNI_IFNAME\", \"sandbox\": \"$CNI_NETNS\"}],
  \"ips\": [{\"version\": \"4\", \"address\": \"192.0.2.7/24\", \"interface\": 0}]}" ;;
esac
"#;

/// Writes the network of pods, before containerd is started.
pub fn prepare() -> Result<()> {
    for folder in CNI.iter().chain(&[NETWORKS]) {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
    }
    let plugins =
        CNI.iter().flat_map(|folder| ["nowhere", "loopback"].map(|name| format!("{folder}/{name}")));
    for path in plugins {
        fs::write(&path, PLUGIN).with_context(|| format!("write {path}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("make it a program")?;
    }
    fs::write(format!("{NETWORKS}/10-nowhere.conflist"), NETWORK).context("write a network")
}

fn own_users(config: &mut PodSandboxConfig) {
    let map = || vec![IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(), gids: map() };
    let options = capsule_proto::cri::v1::NamespaceOption {
        userns_options: Some(users),
        ..namespaces(NamespaceMode::Pod)
    };
    if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(options);
    }
}

/// Its root is the node's nobody, its files are its own, and what is attached can be read.
pub fn mapped(kubelet: &Kubelet, handler: &str) -> Result<String> {
    let annotations = [("resourcecapsules.io/attach", "lib@1")];
    let pod = kubelet.pod_with(handler, "mapped", &annotations, own_users)?;
    let app = pod.start("app", SLEEP)?;
    let pid = app.pid()?;
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).context("read its mapping")?;
    ensure!(map.split_ascii_whitespace().eq(["0", "100000", "65536"]), "{map:?}");
    let owner = fs::metadata(format!("/proc/{pid}")).context("look at its process")?.uid();
    ensure!(owner == FIRST, "it runs as {owner}");
    app.sh("touch /own && [ \"$(stat -c %u:%g /own /bin/busybox | sort -u)\" = 0:0 ]")?;
    if handler == REFERENCE {
        pod.remove()?;
        return Ok(map.trim().to_owned());
    }
    expect(&app.id, &["lib@1 attached"])?;
    ensure!(app.sh("cat /opt/lib/version")? == "1", "{:?}", app.sh("cat /opt/lib/version"));
    for (call, version) in [("upgrade", "2"), ("rollback", "1")] {
        done(&[call, &app.reference(), "lib"])?;
        let read = app.sh("cat /opt/lib/version")?;
        ensure!(read == version, "{read:?} after {call}");
    }
    super::hand::denied(&app)?;
    done(&["attach", &app.reference(), "tool"])?;
    let owner = app.sh("stat -c %u /opt/tool/version")?;
    done(&["detach", &app.reference(), "tool"])?;
    pod.remove()?;
    Ok(format!("capsules' files are of {}", owner.trim()))
}
