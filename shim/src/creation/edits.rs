//! What devices ask of a spec, from the wire. Pure.

use std::path::Path;

use capsule_proto::node as wire;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::hotplug::is_variable;

/// Something that no spec can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a device's {field} {value:?} cannot be used: {reason}")]
pub struct InvalidEdit {
    field: &'static str,
    value: String,
    reason: &'static str,
}

/// All that devices ask of a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecEdits {
    /// Device nodes.
    pub nodes: Vec<Node>,
    /// Files and directories of the node, and file systems.
    pub mounts: Vec<Mount>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Programs of the node.
    pub hooks: Vec<Hook>,
    /// Groups of the container's process.
    pub additional_gids: Vec<u32>,
    /// `linux.intelRdt`.
    pub intel_rdt: Option<Map<String, Value>>,
    /// Network interfaces: on the node, in the container.
    pub net_devices: Vec<(String, String)>,
}

/// An entry of `linux.devices`, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: String,
    /// `b`, `c` or `p`.
    pub kind: &'static str,
    pub major: u32,
    pub minor: u32,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Letters of `rwm`.
    pub access: String,
}

/// An entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: String,
    pub destination: String,
    pub kind: String,
    pub options: Vec<String>,
}

/// An entry of one of the lists of `hooks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The list's name.
    pub point: &'static str,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<u32>,
}

/// The point of hooks that a live container can be given, too.
const LIVE_POINT: &str = "createContainer";
const POINTS: [&str; 6] =
    ["prestart", "createRuntime", LIVE_POINT, "startContainer", "poststart", "poststop"];

impl SpecEdits {
    /// Validates what devices ask for.
    ///
    /// # Errors
    /// [`InvalidEdit`] for the first thing that is none.
    pub fn parse(wire: wire::SpecEdits) -> Result<Self, InvalidEdit> {
        let nets = wire.net_devices.into_iter().map(|net| (net.host_interface, net.name));
        Ok(Self {
            nodes: wire.nodes.into_iter().map(parse_node).collect::<Result<_, _>>()?,
            mounts: wire.mounts.into_iter().map(parse_mount).collect::<Result<_, _>>()?,
            env: parse_env("variable", wire.env)?,
            hooks: wire.hooks.into_iter().map(parse_hook).collect::<Result<_, _>>()?,
            additional_gids: wire.additional_gids,
            intel_rdt: parse_rdt(&wire.intel_rdt)?,
            net_devices: nets.collect(),
        })
    }

    /// Without what is given to the live container: nodes, files, and the hooks that go with them. Variables and groups stay: those of
    /// the first process are settled when it is created.
    #[must_use]
    pub fn beyond_live(mut self) -> Self {
        self.nodes.clear();
        self.mounts.retain(|mount| !mount.is_bind());
        self.hooks.retain(|hook| hook.point != LIVE_POINT);
        self
    }

    /// How much it is, with `others`, for the log.
    pub fn summary(&self, others: &Self) -> String {
        let count = |of: fn(&Self) -> usize| of(self) + of(others);
        format!(
            "{} nodes, {} mounts, {} hooks and {} variables",
            count(|edits| edits.nodes.len()),
            count(|edits| edits.mounts.len()),
            count(|edits| edits.hooks.len()),
            count(|edits| edits.env.len())
        )
    }
}

impl Mount {
    /// Whether it is of a file or directory of the node.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind"
    }
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> InvalidEdit {
    InvalidEdit { field, value: value.to_owned(), reason }
}

fn parse_path(field: &'static str, path: String) -> Result<String, InvalidEdit> {
    match Path::new(&path).is_absolute() && !path.contains('\0') {
        true => Ok(path),
        false => Err(invalid(field, &path, "it is no absolute path")),
    }
}

fn parse_env(field: &'static str, env: Vec<String>) -> Result<Vec<String>, InvalidEdit> {
    match env.iter().find(|entry| !is_variable(entry)) {
        Some(wrong) => Err(invalid(field, wrong, "it is no NAME=VALUE")),
        None => Ok(env),
    }
}

fn parse_node(node: wire::SpecNode) -> Result<Node, InvalidEdit> {
    let kinds = ["b", "c", "p"];
    let Some(kind) = kinds.into_iter().find(|kind| *kind == node.type_) else {
        return Err(invalid("type", &node.type_, "it is none of b, c and p"));
    };
    if node.access.contains(|letter| !"rwm".contains(letter)) {
        return Err(invalid("access", &node.access, "it is made of the letters r, w and m"));
    }
    if let Some(mode) = node.file_mode.filter(|mode| *mode > 0o7777) {
        return Err(invalid("mode", &format!("{mode:o}"), "it has more than permission bits"));
    }
    Ok(Node {
        path: parse_path("node", node.path)?,
        kind,
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        access: node.access,
    })
}

/// Of a bind mount the type and an option say that it is one: runtimes look at either.
fn parse_mount(mount: wire::SpecMount) -> Result<Mount, InvalidEdit> {
    let is_bind = matches!(mount.type_.as_str(), "" | "bind" | "none");
    let source = if is_bind { parse_path("file", mount.host_path)? } else { mount.host_path };
    let mut options = mount.options;
    if is_bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("bind".to_owned());
    }
    Ok(Mount {
        source,
        destination: parse_path("mount", mount.container_path)?,
        kind: if is_bind { "bind".to_owned() } else { mount.type_ },
        options,
    })
}

fn parse_hook(hook: wire::SpecHook) -> Result<Hook, InvalidEdit> {
    let Some(point) = POINTS.into_iter().find(|point| *point == hook.point) else {
        return Err(invalid("hook's point", &hook.point, "this shim knows of none of the name"));
    };
    if let Some(wrong) = hook.args.iter().find(|arg| arg.contains('\0')) {
        return Err(invalid("hook's argument", wrong, "it has a NUL byte"));
    }
    Ok(Hook {
        point,
        path: parse_path("hook", hook.path)?,
        args: hook.args,
        env: parse_env("hook's variable", hook.env)?,
        timeout: (hook.timeout > 0).then_some(hook.timeout),
    })
}

fn parse_rdt(json: &str) -> Result<Option<Map<String, Value>>, InvalidEdit> {
    if json.is_empty() {
        return Ok(None);
    }
    let parsed = serde_json::from_str(json).map_err(|_| invalid("intelRdt", json, "it is no JSON object"))?;
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::Message;

    use super::*;

    fn good() -> wire::SpecEdits {
        let mut edits = wire::SpecEdits::new();
        let mut node = wire::SpecNode::new();
        (node.path, node.type_, node.access) = ("/dev/fuse".into(), "c".into(), "rw".into());
        edits.nodes.push(node);
        for (source, destination, kind) in [("/usr/lib/a", "/usr/lib/b", ""), ("tmpfs", "/run/x", "tmpfs")] {
            let mut mount = wire::SpecMount::new();
            (mount.host_path, mount.container_path) = (source.into(), destination.into());
            mount.type_ = kind.into();
            edits.mounts.push(mount);
        }
        edits.env.push("A=b=c".into());
        for point in ["createContainer", "poststop"] {
            let mut hook = wire::SpecHook::new();
            (hook.point, hook.path) = (point.into(), "/bin/true".into());
            edits.hooks.push(hook);
        }
        edits.intel_rdt = r#"{"closID":"a"}"#.into();
        edits
    }

    #[test]
    fn what_a_live_container_is_given_is_left_out() {
        let edits = SpecEdits::parse(good()).unwrap();
        assert_eq!(edits.mounts[0].options, ["bind"]);
        let beyond = edits.clone().beyond_live();
        assert_eq!((beyond.nodes.len(), beyond.mounts.len(), beyond.hooks.len()), (0, 1, 1));
        assert_eq!((beyond.mounts[0].kind.as_str(), beyond.hooks[0].point), ("tmpfs", "poststop"));
        assert_eq!((beyond.env, beyond.intel_rdt), (edits.env, edits.intel_rdt));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        type Spoil = fn(&mut wire::SpecEdits);
        let bad: [(Spoil, &str); 10] = [
            (|e| e.nodes[0].type_ = "u".into(), "\"u\""),
            (|e| e.nodes[0].access = "rx".into(), "\"rx\""),
            (|e| e.nodes[0].path = "dev/fuse".into(), "absolute"),
            (|e| e.nodes[0].file_mode = Some(0o20660), "20660"),
            (|e| e.mounts[0].host_path = "a".into(), "absolute"),
            (|e| e.mounts[1].container_path = "a".into(), "absolute"),
            (|e| e.env.push("x".into()), "NAME=VALUE"),
            (|e| e.hooks[0].point = "later".into(), "later"),
            (|e| e.hooks[0].args.push("\0".into()), "NUL"),
            (|e| e.intel_rdt = "[]".into(), "intelRdt"),
        ];
        for (spoil, word) in bad {
            let mut edits = good();
            spoil(&mut edits);
            let error = SpecEdits::parse(edits).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        /// As they come over the wire, changed anywhere: refused, or of a form that can be used.
        #[test]
        fn any_bytes_are_refused_or_sound(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12)) {
            let mut bytes = good().write_to_bytes().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let Ok(wire) = wire::SpecEdits::parse_from_bytes(&bytes) else { return Ok(()) };
            match SpecEdits::parse(wire) {
                Ok(edits) => {
                    prop_assert!(edits.nodes.iter().all(|node| node.path.starts_with('/')));
                    prop_assert!(edits.mounts.iter().all(|mount| mount.destination.starts_with('/')));
                    prop_assert!(edits.hooks.iter().all(|hook| POINTS.contains(&hook.point)));
                    let mut config = serde_json::json!({});
                    if edits.net_devices.is_empty() {
                        prop_assert!(super::super::patch::apply(&mut config, &edits).is_ok());
                    }
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
