//! The hot-plug protocol's messages, from and to what this daemon works with.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use capsule_proto::hotplug::{
    Attachment as WireAttachment, Content as WireContent, DeviceEdits, DeviceHook, DeviceMount, DeviceNode,
    Limit, Resources as WireResources, Upper as WireUpper, User as WireUser,
};

use super::{Draining, Mounted, Notice, User};
use crate::{
    attachments::model::{Attachment, Content, Devices},
    devices::{Edits, Hook, Mount, Node},
    resources::Resources,
    uppers::model::{Place, Upper},
};

/// An attachment with the content that it is to have.
pub fn wire_content(attachment: &Attachment, content: &Content) -> WireContent {
    let mut wire = WireContent::new();
    wire.capsule = attachment.capsule.to_string();
    wire.version = content.version.to_string();
    wire.digest = content.digest.to_string();
    wire.env = content.env.clone();
    wire.denied_calls = content.denied.clone();
    wire.layers = content.layers.iter().map(|l| l.to_string_lossy().into_owned()).collect();
    wire
}

/// Where what is written goes.
pub fn wire_upper(upper: &Upper) -> WireUpper {
    let mut wire = WireUpper::new();
    match &upper.place {
        Place::Directory(path) => wire.set_directory(path.to_string_lossy().into_owned()),
        Place::Image(path) => wire.set_image(path.to_string_lossy().into_owned()),
    }
    wire
}

/// What an attachment does to limits; nothing if it does nothing.
pub fn wire_resources(resources: &Resources) -> Option<WireResources> {
    let limit = |(file, value): (&String, &String)| {
        let mut limit = Limit::new();
        (limit.file, limit.value) = (file.clone(), value.clone());
        limit
    };
    let mut wire = WireResources::new();
    wire.grants = resources.grants.iter().map(limit).collect();
    wire.caps = resources.caps.iter().map(limit).collect();
    (!resources.is_empty()).then_some(wire)
}

/// What devices ask for, of what a live container can be given. Where there is more, its spec has it.
pub fn wire_devices(devices: &Devices) -> DeviceEdits {
    let Edits { env, nodes, mounts, hooks, additional_gids, .. } = &devices.edits;
    let mut wire = DeviceEdits::new();
    wire.nodes = nodes.iter().map(wire_node).collect();
    wire.mounts = mounts.iter().filter(|mount| mount.is_bind()).map(wire_mount).collect();
    wire.hooks = hooks.iter().filter(|hook| hook.is_for_live()).map(wire_hook).collect();
    (wire.env, wire.additional_gids) = (env.clone(), additional_gids.clone());
    wire.refuse_foreign = devices.refuse_foreign;
    wire
}

/// A node, for a live container or a spec.
pub fn wire_node(node: &Node) -> DeviceNode {
    let mut wire = DeviceNode::new();
    wire.path = node.path.clone();
    wire.type_ = node.kind.letter().to_owned();
    (wire.major, wire.minor) = (node.major, node.minor);
    (wire.file_mode, wire.uid, wire.gid) = (node.file_mode, node.uid, node.gid);
    wire.access = node.access.clone();
    wire
}

fn wire_mount(mount: &Mount) -> DeviceMount {
    let mut wire = DeviceMount::new();
    wire.host_path = mount.host_path.clone();
    wire.container_path = mount.container_path.clone();
    wire.options = mount.options.clone();
    wire
}

/// A hook, likewise.
pub fn wire_hook(hook: &Hook) -> DeviceHook {
    let mut wire = DeviceHook::new();
    wire.point = hook.point.name().to_owned();
    wire.path = hook.path.clone();
    (wire.args, wire.env) = (hook.args.clone(), hook.env.clone());
    wire.timeout = hook.timeout.unwrap_or_default();
    wire
}

/// A process that uses files.
pub fn user(wire: WireUser) -> User {
    User { pid: wire.pid, command: wire.command, path: wire.path, how: wire.how }
}

/// What is mounted.
pub fn mounted(wire: WireAttachment) -> Mounted {
    let content = wire.content.unwrap_or_default();
    Mounted { id: wire.attachment_id, digest: content.digest, confirmed: wire.mounted }
}

/// What was noticed. Of a kind that is not known here it is nothing.
pub fn notice(wire: capsule_proto::hotplug::Notice) -> Notice {
    let at = UNIX_EPOCH + Duration::from_millis(wire.at.unsigned_abs());
    let kind = wire.kind.enum_value_or_default();
    Notice { number: wire.number, attachment: wire.attachment_id, at, kind, text: wire.text }
}

/// What is draining.
pub fn draining(wire: capsule_proto::hotplug::Draining) -> Draining {
    let content = wire.content.unwrap_or_default();
    Draining {
        id: wire.attachment_id,
        capsule: content.capsule,
        version: content.version,
        digest: content.digest,
        layers: content.layers.into_iter().map(PathBuf::from).collect(),
        target: wire.target,
        since: wire.since.unsigned_abs(),
        users: wire.users.into_iter().map(user).collect(),
    }
}
