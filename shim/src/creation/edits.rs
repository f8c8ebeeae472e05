//! What devices ask of a spec, from the wire. Pure.

use std::path::Path;

use capsule_proto::node as wire;
use serde_json::{Map, Value};

use crate::edits::{Hook, InvalidEdit, Node, Point, parse_env, parse_hook, parse_node};

/// All that devices ask of a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecEdits {
    /// Device nodes.
    pub nodes: Vec<Node>,
    /// Files and directories of the node, and file systems.
    pub mounts: Vec<Mount>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Programs of the node, and when they are run.
    pub hooks: Vec<(Point, Hook)>,
    /// Groups of the container's process.
    pub additional_gids: Vec<u32>,
    /// `linux.intelRdt`.
    pub intel_rdt: Option<Map<String, Value>>,
    /// Network interfaces: on the node, in the container.
    pub net_devices: Vec<(String, String)>,
}

/// An entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: String,
    pub destination: String,
    pub kind: String,
    pub options: Vec<String>,
}

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
        self.hooks.retain(|(point, _)| *point != Point::CreateContainer);
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

fn parse_path(field: &'static str, path: String) -> Result<String, InvalidEdit> {
    match Path::new(&path).is_absolute() && !path.contains('\0') {
        true => Ok(path),
        false => Err(InvalidEdit::new(field, &path, "it is no absolute path")),
    }
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

fn parse_rdt(json: &str) -> Result<Option<Map<String, Value>>, InvalidEdit> {
    if json.is_empty() {
        return Ok(None);
    }
    let parsed =
        serde_json::from_str(json).map_err(|_| InvalidEdit::new("intelRdt", json, "it is no JSON object"))?;
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use capsule_proto::hotplug::{DeviceHook, DeviceNode};
    use proptest::prelude::*;
    use protobuf::Message;

    use super::*;

    fn good() -> wire::SpecEdits {
        let mut edits = wire::SpecEdits::new();
        let mut node = DeviceNode::new();
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
            let mut hook = DeviceHook::new();
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
        assert_eq!((beyond.mounts[0].kind.as_str(), beyond.hooks[0].0), ("tmpfs", Point::Poststop));
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
                    prop_assert!(edits.nodes.iter().all(|node| node.path.as_str().starts_with('/')));
                    prop_assert!(edits.mounts.iter().all(|mount| mount.destination.starts_with('/')));
                    prop_assert!(edits.hooks.iter().all(|(_, hook)| hook.path.is_absolute()));
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
