//! What devices ask of a container, from the wire.

use std::path::Path;

use capsule_proto::hotplug as wire;
use overlayfs_utils::{BindOptions, ContainerPath};

use crate::{
    devices::{Access, Policy},
    hotplug::{
        edits::{Bind, Edits, Hook, Node, NodeKind},
        model::{InvalidRequest, is_plain, is_variable},
    },
};

/// Validates what devices ask for.
///
/// # Errors
/// [`InvalidRequest`].
pub fn parse_edits(edits: wire::DeviceEdits) -> Result<Edits, InvalidRequest> {
    if let Some(wrong) = edits.env.iter().find(|entry| !is_variable(entry)) {
        return Err(invalid("variable", wrong, "it is no NAME=VALUE"));
    }
    Ok(Edits {
        nodes: edits.nodes.into_iter().map(parse_node).collect::<Result<_, _>>()?,
        mounts: edits.mounts.iter().map(parse_mount).collect::<Result<_, _>>()?,
        env: edits.env,
        hooks: edits.hooks.into_iter().map(parse_hook).collect::<Result<_, _>>()?,
        additional_gids: edits.additional_gids,
        policy: if edits.refuse_foreign { Policy::Refuse } else { Policy::Merge },
    })
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> InvalidRequest {
    InvalidRequest::Edit { field, value: value.to_owned(), reason }
}

/// A path in a container that something can be put at.
fn parse_place(field: &'static str, path: &str) -> Result<ContainerPath, InvalidRequest> {
    let parsed = ContainerPath::parse(path)?;
    if parsed.is_root() { Err(invalid(field, path, "it is the container's root")) } else { Ok(parsed) }
}

fn parse_node(node: wire::DeviceNode) -> Result<Node, InvalidRequest> {
    let kind = match node.type_.as_str() {
        "b" => NodeKind::Block,
        "c" => NodeKind::Char,
        "p" => NodeKind::Fifo,
        other => return Err(invalid("type", other, "it is none of b, c and p")),
    };
    let access = Access::parse(&node.access)
        .map_err(|_| invalid("access", &node.access, "it is made of the letters r, w and m"))?;
    if let Some(mode) = node.file_mode.filter(|mode| *mode > 0o7777) {
        return Err(invalid("mode", &format!("{mode:o}"), "it has more than permission bits"));
    }
    Ok(Node {
        path: parse_place("node", &node.path)?,
        kind,
        major: node.major,
        minor: node.minor,
        mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        access,
    })
}

/// The options of a bind mount. Where a mount's changes are passed on to (`rprivate` and its like) is not for the container to
/// say: it is private always. What the kernel would take and nothing would come of is let be, as runc does.
fn parse_mount(mount: &wire::DeviceMount) -> Result<Bind, InvalidRequest> {
    if !is_plain(&mount.host_path) {
        return Err(invalid("file", &mount.host_path, "it is no absolute path without \"..\""));
    }
    let mut options = BindOptions { read_only: true, ..BindOptions::default() };
    for option in &mount.options {
        match option.as_str() {
            "ro" => options.read_only = true,
            "rw" => options.read_only = false,
            "nosuid" => options.no_suid = true,
            "suid" => options.no_suid = false,
            "nodev" => options.no_dev = true,
            "dev" => options.no_dev = false,
            "noexec" => options.no_exec = true,
            "exec" => options.no_exec = false,
            "rbind" => options.recursive = true,
            "bind" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" | "defaults" | "async" | "atime" | "noatime" | "diratime" | "nodiratime"
            | "relatime" | "norelatime" | "strictatime" | "nostrictatime" => {}
            other => {
                return Err(invalid("mount option", other, "a live container is given none of this kind"));
            }
        }
    }
    let target = parse_place("mount", &mount.container_path)?;
    Ok(Bind { source: mount.host_path.clone().into(), target, options })
}

fn parse_hook(hook: wire::DeviceHook) -> Result<Hook, InvalidRequest> {
    if !Path::new(&hook.path).is_absolute() || hook.path.contains('\0') {
        return Err(invalid("hook", &hook.path, "it is no absolute path"));
    }
    let env = hook.env.iter().map(|entry| {
        let variable = entry.split_once('=').filter(|_| is_variable(entry));
        let variable = variable.map(|(name, value)| (name.to_owned(), value.to_owned()));
        variable.ok_or_else(|| invalid("hook's variable", entry, "it is no NAME=VALUE"))
    });
    if let Some(wrong) = hook.args.iter().find(|arg| arg.contains('\0')) {
        return Err(invalid("hook's argument", wrong, "it has a NUL byte"));
    }
    Ok(Hook {
        env: env.collect::<Result<_, _>>()?,
        path: hook.path.into(),
        args: hook.args,
        timeout: (hook.timeout > 0).then_some(hook.timeout),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::Message;

    use super::*;

    fn good() -> wire::DeviceEdits {
        let mut edits = wire::DeviceEdits::new();
        let mut node = wire::DeviceNode::new();
        (node.path, node.type_, node.access) = ("/dev/fuse".into(), "c".into(), "rw".into());
        (node.major, node.minor, node.file_mode) = (10, 229, Some(0o660));
        edits.nodes.push(node);
        let mut mount = wire::DeviceMount::new();
        (mount.host_path, mount.container_path) = ("/usr/lib/a".into(), "/usr//lib/b/".into());
        mount.options = ["nosuid", "nodev", "rbind", "rprivate"].map(str::to_owned).to_vec();
        edits.mounts.push(mount);
        edits.env.push("A=b=c".into());
        let mut hook = wire::DeviceHook::new();
        (hook.path, hook.args, hook.timeout) = ("/bin/true".into(), vec!["true".into()], 3);
        hook.env.push("X=".into());
        edits.hooks.push(hook);
        edits
    }

    #[test]
    fn edits_are_taken_as_they_are_meant() {
        let edits = parse_edits(good()).unwrap();
        assert_eq!(edits.nodes[0].grant().unwrap().device.to_string(), "c 10:229");
        let mount = &edits.mounts[0];
        assert_eq!(mount.target.as_str(), "/usr/lib/b");
        // Read-only unless it is said otherwise.
        let want =
            BindOptions { read_only: true, no_suid: true, no_dev: true, no_exec: false, recursive: true };
        assert_eq!(mount.options, want);
        assert_eq!((edits.hooks[0].timeout, edits.policy), (Some(3), Policy::Merge));
        let mut writable = good();
        writable.mounts[0].options.push("rw".into());
        writable.refuse_foreign = true;
        let writable = parse_edits(writable).unwrap();
        assert!(!writable.mounts[0].options.read_only && writable.policy == Policy::Refuse);
        // A FIFO is nothing to be allowed.
        let mut fifo = good();
        fifo.nodes[0].type_ = "p".into();
        assert_eq!(parse_edits(fifo).unwrap().grants(), []);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        type Spoil = fn(&mut wire::DeviceEdits);
        let bad: [(Spoil, &str); 11] = [
            (|e| e.nodes[0].type_ = "u".into(), "\"u\""),
            (|e| e.nodes[0].access = "rx".into(), "\"rx\""),
            (|e| e.nodes[0].path = "dev/fuse".into(), "target"),
            (|e| e.nodes[0].path = "/".into(), "root"),
            (|e| e.nodes[0].file_mode = Some(0o20660), "20660"),
            (|e| e.mounts[0].host_path = "/a/../b".into(), "/a/../b"),
            (|e| e.mounts[0].options.push("size=1".into()), "size=1"),
            (|e| e.env.push("=x".into()), "NAME=VALUE"),
            (|e| e.hooks[0].path = "true".into(), "absolute"),
            (|e| e.hooks[0].env.push("x".into()), "NAME=VALUE"),
            (|e| e.hooks[0].args.push("\0".into()), "NUL"),
        ];
        for (spoil, word) in bad {
            let mut edits = good();
            spoil(&mut edits);
            let error = parse_edits(edits).unwrap_err();
            assert!(format!("{error}").contains(word), "{error}");
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
            let Ok(wire) = wire::DeviceEdits::parse_from_bytes(&bytes) else { return Ok(()) };
            match parse_edits(wire) {
                Ok(edits) => {
                    prop_assert!(edits.nodes.iter().all(|node| node.path.as_str().starts_with('/') && !node.path.is_root()));
                    prop_assert!(edits.mounts.iter().all(|mount| mount.source.is_absolute() && !mount.target.is_root()));
                    prop_assert!(edits.hooks.iter().all(|hook| hook.path.is_absolute()));
                    prop_assert!(edits.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
