//! What is to be in containerd's configuration. Pure.

use toml::Value;

use super::document::{Path, path};
use crate::host::Release;

/// containerd's plugin that unpacks images for `ctr`.
pub const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// The plugin of the kubelet's containers, in files of version 2.
pub const CRI_2: &str = "io.containerd.grpc.v1.cri";
/// And in later ones.
pub const CRI_3: &str = "io.containerd.cri.v1.runtime";
/// The plugin of the kubelet's images, since 2.0.
pub const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// The runtime handler of pods that name none.
pub const DEFAULT_RUNTIME: &str = "runc";
/// The name of the runtime handler.
pub const HANDLER: &str = "capsule";
/// What the handler runs.
pub const RUNTIME: &str = "io.containerd.capsule.v1";
/// The program of it.
pub const SHIM: &str = "containerd-shim-capsule-v1";
/// The pods' annotations that the shim is to see.
pub const ANNOTATIONS: &str = "resourcecapsules.io/*";

/// What containerd is to have.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which containerd it is.
    pub release: Release,
    /// The name of the snapshotter.
    pub snapshotter: String,
    /// capsuled's socket.
    pub address: String,
    /// The directory with its snapshots.
    pub root: String,
    /// Whether capsuled maps ids: its `snapshots.remap_ids`.
    pub remap_ids: bool,
    /// Whether the CRI plugin gets a runtime handler; `None`: unless it is disabled.
    pub cri: Option<bool>,
    /// `SystemdCgroup` of the handler.
    pub systemd: Systemd,
}

/// Who manages the control groups of the kubelet's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Systemd {
    /// What was asked for.
    Asked(bool),
    /// What fits this machine, where the configuration says nothing.
    Fits(bool),
}

/// What a key is to be.
#[derive(Debug, Clone)]
pub enum Wish {
    /// This.
    Is(Value),
    /// This, unless something is said.
    Unless(Value),
    /// A list with this in it.
    Has(Value),
    /// This, if there is such a key at all.
    IfThere(Value),
}

/// Tables that belong together.
#[derive(Debug)]
pub struct Section {
    /// For a comment above them.
    pub title: &'static str,
    /// Each table's path and keys.
    pub tables: Vec<(Path, Vec<(&'static str, Wish)>)>,
}

/// The proxy plugin. containerd leaves mapped ids to a snapshotter that says it can; 1.7 knows no such capability.
pub fn snapshotter(wanted: &Wanted) -> Section {
    let capabilities = if wanted.remap_ids && !wanted.release.is_1_7() {
        Wish::Is(Value::Array(vec!["remap-ids".into()]))
    } else {
        Wish::IfThere(Value::Array(Vec::new()))
    };
    let keys = vec![
        ("type", Wish::Is("snapshot".into())),
        ("address", Wish::Is(wanted.address.as_str().into())),
        ("capabilities", capabilities),
    ];
    let plugin = path(&["proxy_plugins", &wanted.snapshotter]);
    // What a kubelet takes for the directory of the images.
    let exports = [&plugin[..], &path(&["exports"])].concat();
    let root = ("root", Wish::Is(wanted.root.as_str().into()));
    Section { title: "the snapshotter", tables: vec![(plugin, keys), (exports, vec![root])] }
}

/// The runtime handler of a CRI plugin. One that has the shim by its path stays (docs/runtime.md, CRI): containerd gives pods
/// in user namespaces to such a one alone.
pub fn handler(plugin: &str, wanted: &Wanted, present: Option<&Value>) -> Section {
    let handler = path(&["plugins", plugin, "containerd", "runtimes", HANDLER]);
    let options = [&handler[..], &path(&["options"])].concat();
    let by_path = present.and_then(|handler| handler.get("runtime_path")?.as_str());
    let is_ours = by_path.is_some_and(|path| path.ends_with(&format!("/{SHIM}")));
    let runtime = if is_ours { Wish::Unless(RUNTIME.into()) } else { Wish::Is(RUNTIME.into()) };
    let keys = vec![
        ("runtime_type", runtime),
        ("snapshotter", Wish::Is(wanted.snapshotter.as_str().into())),
        ("pod_annotations", Wish::Has(ANNOTATIONS.into())),
    ];
    let systemd = match wanted.systemd {
        Systemd::Asked(value) => Wish::Is(value.into()),
        Systemd::Fits(value) => Wish::Unless(value.into()),
    };
    let title = "the runtime handler that a RuntimeClass of Kubernetes names";
    Section { title, tables: vec![(handler, keys), (options, vec![("SystemdCgroup", systemd)])] }
}

/// The handler's snapshotter, for the plugin of images. Without it containerd 2.x has no directory to tell the kubelet, which then
/// measures no pod of the node (tried with 2.1.9); 1.7 tells that of its own snapshotter for all. An image is pulled into it where
/// the handler is told with the pull (an annotation of the pod's; from 2.3 on, CRI's `runtime_handler`), and then by the transfer
/// service, which has to know the snapshotter too.
pub fn images(wanted: &Wanted) -> Section {
    let platform = path(&["plugins", CRI_IMAGES, "runtime_platforms", HANDLER]);
    let keys = vec![("snapshotter", Wish::Is(wanted.snapshotter.as_str().into()))];
    Section { title: "the snapshotter of that handler's images", tables: vec![(platform, keys)] }
}

/// The runtime that pods have without a RuntimeClass. In containerd 1.7 a file's table of runtimes replaces containerd's own, and
/// without this one the CRI plugin does not start (tried with 1.7.24); 2.x has it all the same.
pub fn default_runtime(plugin: &str) -> Section {
    let runc = path(&["plugins", plugin, "containerd", "runtimes", DEFAULT_RUNTIME]);
    let keys = vec![("runtime_type", Wish::Unless("io.containerd.runc.v2".into()))];
    Section {
        title: "the default runtime, since the next table would replace containerd's own",
        tables: vec![(runc, keys)],
    }
}

/// A table's header. Names that need quotes have those that containerd's own files of the version have.
pub fn header(path: &[String], version: i64) -> String {
    let quoted = |key: &String| {
        let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let is_literal = version > 2 && !key.contains('\'') && !key.contains(char::is_control);
        match (is_bare, is_literal) {
            (true, _) => key.clone(),
            (_, true) => format!("'{key}'"),
            _ => Value::from(key.as_str()).to_string(),
        }
    };
    format!("[{}]", path.iter().map(quoted).collect::<Vec<_>>().join("."))
}

impl Wish {
    /// What it is where nothing is said.
    pub fn fresh(&self) -> Option<Value> {
        match self {
            Self::Is(value) | Self::Unless(value) => Some(value.clone()),
            Self::Has(value) => Some(Value::Array(vec![value.clone()])),
            Self::IfThere(_) => None,
        }
    }

    /// What a list is to have.
    pub fn element(&self) -> Option<&Value> {
        match self {
            Self::Has(value) => Some(value),
            _ => None,
        }
    }

    /// What it is to be instead of `present`; `None` when that will do.
    pub fn over(&self, present: &Value) -> Option<Value> {
        match (self, present) {
            (Self::Unless(_), _) => None,
            (Self::Is(value) | Self::IfThere(value), present) => (value != present).then(|| value.clone()),
            (Self::Has(value), Value::Array(list)) if list.contains(value) => None,
            (Self::Has(value), Value::Array(list)) => {
                Some(Value::Array(list.iter().chain([value]).cloned().collect()))
            }
            (Self::Has(value), _) => Some(Value::Array(vec![value.clone()])),
        }
    }
}
