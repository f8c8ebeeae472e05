//! One spec: from the bytes of a file to what its devices ask of a container. Pure.

use thiserror::Error;

use super::{
    edits::{DeclaredNode, Edits, Hook, HookPoint, IntelRdt, Mount, NetDevice, NodeError, NodeKind},
    name::{DeviceName, InvalidName, check_kind},
    wire,
};

/// Versions of the specification, oldest first. Those before 0.3.0 are refused by containerd too.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// Of a spec or a device: what Kubernetes lets an object have.
const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// How a spec is written: its file's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.json`.
    Json,
    /// `.yaml`.
    Yaml,
}

/// What is wrong with a spec.
#[derive(Debug, Error)]
pub enum InvalidSpec {
    /// The text is no spec: a syntax error, an unknown field, a field of another type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// As above.
    #[error("{0}")]
    Yaml(#[from] yaml_serde::Error),
    /// No known version.
    #[error("cdiVersion {0:?} is none of 0.3.0 to 1.1.0")]
    Version(String),
    /// The version has no such field yet, or no longer.
    #[error("{feature} needs cdiVersion {needed}, and this is {found}")]
    Feature {
        /// What.
        feature: &'static str,
        /// From or until which version.
        needed: &'static str,
        /// The spec's.
        found: String,
    },
    /// Vendor or class.
    #[error("kind {kind:?}: {reason}")]
    Kind {
        /// As it is written.
        kind: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// None at all.
    #[error("it has no devices")]
    NoDevices,
    /// A device's name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Two of one name.
    #[error("device {0} is there twice")]
    Twice(DeviceName),
    /// One that asks for nothing.
    #[error("device {0} has no containerEdits")]
    Empty(DeviceName),
    /// Something that a container is to get.
    #[error("{whose}: {what}")]
    Edits {
        /// The device, or the edits that all devices share.
        whose: String,
        /// What is wrong.
        what: String,
    },
}

/// A valid spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    shared: Declared,
    devices: Vec<(DeviceName, Declared)>,
}

/// Edits as they are declared: nodes may lack what the host knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Declared {
    nodes: Vec<DeclaredNode>,
    rest: Edits,
}

impl Spec {
    /// Reads a spec.
    ///
    /// # Errors
    /// [`InvalidSpec`], which names the device but not the file.
    pub fn parse(data: &[u8], format: Format) -> Result<Self, InvalidSpec> {
        let raw: wire::Spec = match format {
            Format::Json => serde_json::from_slice(data)?,
            Format::Yaml => yaml_serde::from_slice(data)?,
        };
        let version = raw.cdi_version.strip_prefix('v').unwrap_or(&raw.cdi_version);
        let Some(version) = VERSIONS.iter().position(|known| *known == version) else {
            return Err(InvalidSpec::Version(raw.cdi_version));
        };
        check_kind(&raw.kind).map_err(|reason| InvalidSpec::Kind { kind: raw.kind.clone(), reason })?;
        check_version(&raw, version)?;
        check_annotations("the spec", raw.annotations.as_ref())?;
        let shared = parse_edits("containerEdits", raw.container_edits.unwrap_or_default())?;
        let mut devices: Vec<(DeviceName, Declared)> = Vec::new();
        for device in raw.devices.unwrap_or_default() {
            let name = DeviceName::new(&raw.kind, &device.name)?;
            if devices.iter().any(|(other, _)| *other == name) {
                return Err(InvalidSpec::Twice(name));
            }
            let whose = format!("device {name}");
            check_annotations(&whose, device.annotations.as_ref())?;
            let edits = parse_edits(&whose, device.container_edits.unwrap_or_default())?;
            if edits.nodes.is_empty() && edits.rest.is_empty() {
                return Err(InvalidSpec::Empty(name));
            }
            devices.push((name, edits));
        }
        if devices.is_empty() { Err(InvalidSpec::NoDevices) } else { Ok(Self { shared, devices }) }
    }

    /// The devices, in the spec's order.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceName> {
        self.devices.iter().map(|(name, _)| name)
    }

    /// What all devices of the spec ask for, to be done once, before what each asks for.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn shared_edits(&self) -> Result<Edits, NodeError> {
        self.shared.complete()
    }

    /// What one device asks for beside that; none when it is not in here.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn edits_of(&self, device: &DeviceName) -> Result<Option<Edits>, NodeError> {
        let found = self.devices.iter().find(|(name, _)| name == device);
        found.map(|(_, edits)| edits.complete()).transpose()
    }
}

impl Declared {
    fn complete(&self) -> Result<Edits, NodeError> {
        let nodes = self.nodes.iter().map(DeclaredNode::complete).collect::<Result<_, _>>()?;
        Ok(Edits { nodes, ..self.rest.clone() })
    }
}

/// Fields that are younger than the version that a spec says (CDI's `specs-go/version.go`), and those that are gone.
fn check_version(spec: &wire::Spec, version: usize) -> Result<(), InvalidSpec> {
    let devices = spec.devices.as_deref().unwrap_or_default();
    let all = || spec.container_edits.iter().chain(devices.iter().filter_map(|d| d.container_edits.as_ref()));
    let nodes = || all().flat_map(|edits| edits.device_nodes.iter().flatten());
    let rdt = || all().filter_map(|edits| edits.intel_rdt.as_ref());
    let filled = |annotations: &Option<_>| {
        annotations.as_ref().is_some_and(|all: &std::collections::BTreeMap<_, _>| !all.is_empty())
    };
    let class_has_dot = spec.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
    let features = [
        ("a mount's type", "0.4.0", all().flat_map(|e| e.mounts.iter().flatten()).any(|m| given(&m.kind))),
        ("a node's hostPath", "0.5.0", nodes().any(|node| given(&node.host_path))),
        (
            "a device's name that begins with a digit",
            "0.5.0",
            devices.iter().any(|d| d.name.starts_with(|c: char| c.is_ascii_digit())),
        ),
        ("annotations", "0.6.0", filled(&spec.annotations) || devices.iter().any(|d| filled(&d.annotations))),
        ("a class with a dot", "0.6.0", class_has_dot),
        ("intelRdt", "0.7.0", rdt().next().is_some()),
        (
            "additionalGids",
            "0.7.0",
            all().any(|e| e.additional_gids.as_ref().is_some_and(|gids| !gids.is_empty())),
        ),
        ("netDevices", "1.1.0", all().any(|e| e.net_devices.as_ref().is_some_and(|net| !net.is_empty()))),
        ("intelRdt.schemata", "1.1.0", rdt().any(|rdt| rdt.schemata.is_some())),
        ("intelRdt.enableMonitoring", "1.1.0", rdt().any(|rdt| rdt.enable_monitoring == Some(true))),
    ];
    let found = || spec.cdi_version.clone();
    let age = |needed: &str| VERSIONS.iter().position(|known| *known == needed);
    for (feature, needed, used) in features {
        if used && age(needed) > Some(version) {
            return Err(InvalidSpec::Feature { feature, needed, found: found() });
        }
    }
    let old = rdt().any(|rdt| rdt.enable_cmt.is_some() || rdt.enable_mbm.is_some());
    if old && version == VERSIONS.len() - 1 {
        let feature = "intelRdt.enableCMT or enableMBM";
        return Err(InvalidSpec::Feature { feature, needed: "1.0.0 or older", found: found() });
    }
    Ok(())
}

fn check_annotations(
    whose: &str,
    annotations: Option<&std::collections::BTreeMap<String, String>>,
) -> Result<(), InvalidSpec> {
    let size: usize = annotations.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size <= ANNOTATIONS_LIMIT {
        return Ok(());
    }
    Err(InvalidSpec::Edits {
        whose: whose.to_owned(),
        what: format!("its annotations have {size} bytes, and may have {ANNOTATIONS_LIMIT}"),
    })
}

/// Go leaves out what is empty, and reads it so.
fn given(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

fn parse_edits(whose: &str, raw: wire::Edits) -> Result<Declared, InvalidSpec> {
    let wrong = |what: String| InvalidSpec::Edits { whose: whose.to_owned(), what };
    let env = raw.env.unwrap_or_default();
    check_env(&env).map_err(wrong)?;
    fn each<R, T>(list: Option<Vec<R>>, parse: impl FnMut(R) -> Result<T, String>) -> Result<Vec<T>, String> {
        list.unwrap_or_default().into_iter().map(parse).collect()
    }
    let nodes = each(raw.device_nodes, parse_node).map_err(wrong)?;
    let net_devices = each(raw.net_devices, parse_net_device).map_err(wrong)?;
    for (index, net) in net_devices.iter().enumerate() {
        let same = |other: &NetDevice| other.name == net.name || other.host_interface == net.host_interface;
        if net_devices[..index].iter().any(same) {
            return Err(wrong(format!("netDevices names {} or {} twice", net.host_interface, net.name)));
        }
    }
    let rest = Edits {
        env,
        nodes: Vec::new(),
        net_devices,
        mounts: each(raw.mounts, parse_mount).map_err(wrong)?,
        hooks: each(raw.hooks, parse_hook).map_err(wrong)?,
        // The group 0 is nothing additional (CDI's `Apply`).
        additional_gids: raw
            .additional_gids
            .unwrap_or_default()
            .into_iter()
            .filter(|gid| *gid != 0)
            .collect(),
        intel_rdt: raw.intel_rdt.map(parse_intel_rdt).transpose().map_err(wrong)?,
    };
    Ok(Declared { nodes, rest })
}

fn check_env(env: &[String]) -> Result<(), String> {
    match env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0) || entry.contains('\0')) {
        Some(entry) => Err(format!("env {entry:?} is not NAME=VALUE")),
        None => Ok(()),
    }
}

fn check_path(what: &str, path: &str) -> Result<(), String> {
    match path.starts_with('/') && !path.contains('\0') {
        true => Ok(()),
        false => Err(format!("{what} {path:?} is no absolute path")),
    }
}

fn parse_node(raw: wire::Node) -> Result<DeclaredNode, String> {
    check_path("the deviceNodes path", &raw.path)?;
    let path = raw.path;
    let kind = match raw.kind.as_deref() {
        None | Some("") => None,
        Some("b") => Some(NodeKind::Block),
        Some("c" | "u") => Some(NodeKind::Char),
        Some("p") => Some(NodeKind::Fifo),
        Some(other) => return Err(format!("node {path}: the type {other:?} is none of b, c, u and p")),
    };
    let host_path = raw.host_path.filter(|host| !host.is_empty()).unwrap_or_else(|| path.clone());
    check_path("the hostPath", &host_path)?;
    let number = |name: &str, number: Option<i64>| {
        u32::try_from(number.unwrap_or(0)).map_err(|_| format!("node {path}: {name} is no device number"))
    };
    let (major, minor) = (number("major", raw.major)?, number("minor", raw.minor)?);
    if let Some(mode) = raw.file_mode.filter(|mode| *mode > 0o7777) {
        return Err(format!("node {path}: fileMode {mode:#o} has more than permission bits"));
    }
    let access = match raw.permissions.as_deref() {
        None | Some("") => "rwm",
        Some("none") => "",
        Some(letters) if letters.chars().all(|letter| "rwm".contains(letter)) => letters,
        Some(other) => {
            return Err(format!("node {path}: permissions {other:?} is neither letters of rwm nor none"));
        }
    };
    let access = access.to_owned();
    let (file_mode, uid, gid) = (raw.file_mode, raw.uid, raw.gid);
    Ok(DeclaredNode { path, host_path, kind, major, minor, file_mode, uid, gid, access })
}

fn parse_net_device(raw: wire::NetDevice) -> Result<NetDevice, String> {
    if raw.host_interface_name.is_empty() || raw.name.is_empty() {
        return Err("netDevices has an empty name".to_owned());
    }
    Ok(NetDevice { host_interface: raw.host_interface_name, name: raw.name })
}

fn parse_mount(raw: wire::Mount) -> Result<Mount, String> {
    check_path("the mount's containerPath", &raw.container_path)?;
    let kind = raw.kind.unwrap_or_default();
    // What is mounted from no path of the host, as a tmpfs, names its source as it likes.
    if matches!(kind.as_str(), "" | "bind" | "none") {
        check_path("the mount's hostPath", &raw.host_path)?;
    } else if raw.host_path.is_empty() {
        return Err("the mount's hostPath is empty".to_owned());
    }
    let options = raw.options.unwrap_or_default();
    Ok(Mount { host_path: raw.host_path, container_path: raw.container_path, options, kind })
}

fn parse_hook(raw: wire::Hook) -> Result<Hook, String> {
    let known = HookPoint::NAMES.into_iter().find(|(name, _)| *name == raw.hook_name);
    let Some((name, point)) = known else {
        let names = HookPoint::NAMES.map(|(name, _)| name).join(", ");
        return Err(format!("the hookName {:?} is none of {names}", raw.hook_name));
    };
    check_path(&format!("the path of hook {name}"), &raw.path)?;
    let env = raw.env.unwrap_or_default();
    check_env(&env).map_err(|wrong| format!("hook {name}: {wrong}"))?;
    let timeout = match raw.timeout {
        None => None,
        Some(seconds) => Some(
            u32::try_from(seconds)
                .ok()
                .filter(|seconds| *seconds > 0)
                .ok_or_else(|| format!("hook {name}: the timeout {seconds} is no number of seconds"))?,
        ),
    };
    Ok(Hook { point, path: raw.path, args: raw.args.unwrap_or_default(), env, timeout })
}

fn parse_intel_rdt(raw: wire::IntelRdt) -> Result<IntelRdt, String> {
    let clos_id = raw.clos_id.filter(|id| !id.is_empty());
    if let Some(id) = clos_id.as_deref().filter(|id| *id != "/")
        && (id.len() >= 4096 || matches!(id, "." | "..") || id.contains(['/', '\n']))
    {
        return Err(format!("the closID {id:?} is no name of a directory"));
    }
    Ok(IntelRdt {
        clos_id,
        l3_cache_schema: raw.l3_cache_schema.filter(|schema| !schema.is_empty()),
        mem_bw_schema: raw.mem_bw_schema.filter(|schema| !schema.is_empty()),
        schemata: raw.schemata.unwrap_or_default(),
        enable_monitoring: raw.enable_monitoring.unwrap_or(false),
        enable_cmt: raw.enable_cmt.unwrap_or(false),
        enable_mbm: raw.enable_mbm.unwrap_or(false),
    })
}
