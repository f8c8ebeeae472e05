//! What devices ask of a container, from the wire.

use capsule_proto::hotplug as wire;
use overlayfs_utils::BindOptions;

use crate::{
    devices::Policy,
    edits::{Hook, InvalidEdit, Point, parse_env, parse_hook, parse_node, parse_place},
    hotplug::{
        edits::{Bind, Edits},
        model::{InvalidRequest, is_plain},
    },
};

/// Validates what devices ask for.
///
/// # Errors
/// [`InvalidRequest`].
pub fn parse_edits(edits: wire::DeviceEdits) -> Result<Edits, InvalidRequest> {
    Ok(Edits {
        nodes: edits.nodes.into_iter().map(parse_node).collect::<Result<_, _>>()?,
        mounts: edits.mounts.iter().map(parse_mount).collect::<Result<_, _>>()?,
        env: parse_env("variable", edits.env)?,
        hooks: edits.hooks.into_iter().map(parse_live_hook).collect::<Result<_, _>>()?,
        additional_gids: edits.additional_gids,
        policy: if edits.refuse_foreign { Policy::Refuse } else { Policy::Merge },
    })
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> InvalidRequest {
    InvalidEdit::new(field, value, reason).into()
}

fn parse_live_hook(hook: wire::DeviceHook) -> Result<Hook, InvalidRequest> {
    match parse_hook(hook)? {
        (Point::CreateContainer, hook) => Ok(hook),
        (other, _) => Err(invalid("hook's point", other.name(), "a live container is given none of it")),
    }
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
        let bad: [(Spoil, &str); 12] = [
            (|e| e.hooks[0].point = "poststop".into(), "poststop"),
            (|e| e.nodes[0].type_ = "u".into(), "\"u\""),
            (|e| e.nodes[0].access = "rx".into(), "\"rx\""),
            (|e| e.nodes[0].path = "dev/fuse".into(), "absolute"),
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
