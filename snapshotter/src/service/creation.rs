//! What devices and capsules ask of a spec, on the wire to a shim.

use capsule_proto::node as wire;
use serde_json::{Map, Value, json};

use crate::{
    attachments::creation::{AtCreation, Creation},
    devices::{Edits, IntelRdt, Mount, NetDevice},
    shims::{wire_hook, wire_node},
};

/// What a container asks for.
pub fn creation(request: wire::DevicesAtCreationRequest) -> Creation {
    Creation {
        devices: request.devices.into_iter().map(|annotation| (annotation.key, annotation.value)).collect(),
        attachments: request.attachments,
        takes_attachments: request.takes_attachments,
    }
}

/// What its spec is to have.
pub fn at_creation(answer: AtCreation) -> wire::DevicesAtCreationResponse {
    wire::DevicesAtCreationResponse {
        own: Some(edits(answer.own)).into(),
        attached: Some(edits(answer.attached)).into(),
        denied_calls: answer.denied.into_iter().collect(),
        ..Default::default()
    }
}

fn edits(edits: Edits) -> wire::SpecEdits {
    let Edits { env, nodes, net_devices, mounts, hooks, additional_gids, intel_rdt } = edits;
    wire::SpecEdits {
        nodes: nodes.iter().map(wire_node).collect(),
        mounts: mounts.into_iter().map(mount).collect(),
        env,
        hooks: hooks.iter().map(wire_hook).collect(),
        additional_gids,
        intel_rdt: intel_rdt.map(|rdt| oci_rdt(&rdt).to_string()).unwrap_or_default(),
        net_devices: net_devices.into_iter().map(net_device).collect(),
        ..Default::default()
    }
}

fn mount(mount: Mount) -> wire::SpecMount {
    wire::SpecMount {
        host_path: mount.host_path,
        container_path: mount.container_path,
        options: mount.options,
        type_: mount.kind,
        ..Default::default()
    }
}

fn net_device(device: NetDevice) -> wire::NetDevice {
    wire::NetDevice { host_interface: device.host_interface, name: device.name, ..Default::default() }
}

/// `linux.intelRdt`, as the OCI runtime specification names its fields; what is not asked for is left out.
fn oci_rdt(rdt: &IntelRdt) -> Value {
    let mut all = Map::new();
    let texts = [
        ("closID", &rdt.clos_id),
        ("l3CacheSchema", &rdt.l3_cache_schema),
        ("memBwSchema", &rdt.mem_bw_schema),
    ];
    for (name, text) in texts {
        all.extend(text.as_ref().map(|text| (name.to_owned(), json!(text))));
    }
    if !rdt.schemata.is_empty() {
        all.insert("schemata".to_owned(), json!(rdt.schemata));
    }
    let flags = [
        ("enableMonitoring", rdt.enable_monitoring),
        ("enableCMT", rdt.enable_cmt),
        ("enableMBM", rdt.enable_mbm),
    ];
    all.extend(flags.into_iter().filter(|(_, is)| *is).map(|(name, _)| (name.to_owned(), json!(true))));
    Value::Object(all)
}
