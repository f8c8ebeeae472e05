//! What the cluster's programs and the node's are told.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::output_of;

/// Where all of it is.
pub const FOLDER: &str = "/etc/kubernetes";
/// The node's address. No loopback address will do for a kubelet; it is one of the machine's own `lo` all the same.
pub const ADDRESS: &str = "192.0.2.10";
/// The address of the API server's Service, which pods are told: of the machine's own too, for want of a kube-proxy.
const SERVICE: &str = "10.96.0.1";
/// The node's name.
pub const NODE: &str = "testbed";

/// The users, each with its token; the groups say what they may.
const USERS: &str = "\
admin,admin,1,system:masters
controllers,system:kube-controller-manager,2,system:masters
scheduler,system:kube-scheduler,3
node,system:node:testbed,4,system:nodes
";

/// What the kubelet wants to write for all machines of this kernel. They are written over in this machine alone, as wanted.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A native machine has control groups of version 1, may lower no OOM score and raise no limit, and its disk may be as full as it is.
const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
protectKernelDefaults: true
oomScoreAdj: 0
maxOpenFiles: 4096
resolvConf: ''
evictionHard: {memory.available: 1Mi}
imageGCHighThresholdPercent: 100
";

/// The network of pods: a bridge of the machine's, which leads nowhere else.
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}"#;

/// Writes all files, and gives the machine what a node has.
pub fn write() -> Result<()> {
    for folder in [FOLDER, "/etc/cni/net.d", "/var/lib/kubelet", "/var/lib/etcd"] {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
    }
    write_file("tokens.csv", &tokens())?;
    write_file("kubelet.yaml", KUBELET)?;
    for user in ["admin", "controllers", "scheduler", "node"] {
        write_file(&format!("{user}.conf"), &client(user))?;
    }
    for (path, text) in [
        ("/etc/cni/net.d/10-pods.conflist", NETWORK),
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        ("/etc/resolv.conf", ""),
    ] {
        fs::write(path, text).with_context(|| format!("write {path}"))?;
    }
    for address in [ADDRESS, SERVICE] {
        let address = format!("{address}/32");
        output_of(Command::new("ip").args(["address", "add", &address, "dev", "lo"]))?;
    }
    // The kubelet follows the kernel's log, for what was killed for want of memory. A VM has it.
    if !Path::new("/dev/kmsg").exists() {
        output_of(Command::new("mknod").args(["/dev/kmsg", "c", "1", "11"]))?;
    }
    tunables()
}

/// The path of one of its files.
pub fn file(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

fn write_file(name: &str, text: &str) -> Result<()> {
    fs::write(file(name), text).with_context(|| format!("write {name}"))
}

/// As `TOKEN,USER,ID,"GROUPS"`.
fn tokens() -> String {
    let row = |line: &str| {
        let mut fields = line.splitn(4, ',');
        let [name, user, id] = [0; 3].map(|_| fields.next().unwrap_or_default());
        format!("{name}-token,{user},{id},\"{}\"\n", fields.next().unwrap_or_default())
    };
    USERS.lines().map(row).collect()
}

/// A client's configuration. The API server's certificate is made by itself, when it starts first.
fn client(user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: main\n\
         clusters: [{{name: main, cluster: {{server: 'https://{ADDRESS}', certificate-authority: {FOLDER}/pki/apiserver.crt}}}}]\n\
         users: [{{name: {user}, user: {{token: {user}-token}}}}]\n\
         contexts: [{{name: main, context: {{cluster: main, user: {user}}}}}]\n"
    )
}

fn tunables() -> Result<()> {
    for (name, value) in TUNABLES {
        let ours = Path::new(FOLDER).join(name.replace('/', "."));
        fs::write(&ours, format!("{value}\n")).with_context(|| format!("write {}", ours.display()))?;
        output_of(Command::new("mount").arg("--bind").arg(&ours).arg(format!("/proc/sys/{name}")))?;
    }
    Ok(())
}
