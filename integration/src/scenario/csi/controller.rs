//! The Identity and the Controller service.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::csi::v1::controller_service_capability::rpc::Type as Offered;
use capsule_proto::csi::v1::volume_capability::{AccessType, BlockVolume, access_mode::Mode};
use capsule_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetCapabilitiesRequest,
    ControllerGetVolumeRequest, ControllerModifyVolumeRequest, ControllerPublishVolumeRequest,
    CreateVolumeRequest, GetCapacityRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
    ListVolumesRequest, ListVolumesResponse, ProbeRequest, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, controller_service_capability,
    plugin_capability,
};
use tonic::{Code, Status};

use super::driver::{Driver, NODE, TOPOLOGY, asked, capability, map, published, refused};
use crate::event::Reporter;

pub fn cases(reporter: &mut Reporter, driver: &Driver) {
    reporter.check("Identity: who it is, what it can do, and that it is ready", || identity(driver));
    reporter.check("CreateVolume: once for a name, and of its size", || created(driver));
    reporter.check("CreateVolume: what lacks something, or is not here, is refused", || mistakes(driver));
    reporter.check("CreateVolume: where it can be reached", || reached(driver));
    reporter.check("ListVolumes and ControllerGetVolume: pages, tokens, conditions", || listed(driver));
    reporter.check("ValidateVolumeCapabilities: confirmed or explained", || validated(driver));
    reporter
        .check("DeleteVolume: not while it is published, and then as often as is wanted", || deleted(driver));
    reporter.check("ControllerModifyVolume: the version, and nothing else", || modified(driver));
    reporter.check("GetCapacity, and what is not offered", || offered(driver));
}

fn identity(driver: &Driver) -> Result<String> {
    let info = driver.wait(async { driver.identity().get_plugin_info(GetPluginInfoRequest {}).await })?;
    ensure!(info.name == "csi.resourcecapsules.io" && !info.vendor_version.is_empty(), "{info:?}");
    let request = GetPluginCapabilitiesRequest {};
    let can = driver.wait(async { driver.identity().get_plugin_capabilities(request).await })?.capabilities;
    let services: BTreeSet<i32> = can
        .iter()
        .filter_map(|can| match &can.r#type {
            Some(plugin_capability::Type::Service(service)) => Some(service.r#type),
            _ => None,
        })
        .collect();
    ensure!(services == BTreeSet::from([1, 2]), "{services:?}");
    let ready = driver.wait(async { driver.identity().probe(ProbeRequest {}).await })?.ready;
    ensure!(ready == Some(true), "{ready:?}");
    Ok(format!("{} {}", info.name, info.vendor_version))
}

fn created(driver: &Driver) -> Result<String> {
    let request = || asked("pvc-made", Mode::SingleNodeWriter, &[]);
    let made = driver.create(request())?;
    ensure!(made.capacity_bytes >= 16 << 20 && made.volume_id == "pvc-made", "{made:?}");
    ensure!(made.accessible_topology == [Topology { segments: map(&[(TOPOLOGY, NODE)]) }], "{made:?}");
    ensure!(driver.create(request())? == made, "another one");
    let sized = |required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..request()
    };
    ensure!(driver.create(sized(1, 1 << 30))? == made, "within the range");
    let said = refused("twice the size", driver.create(sized(32 << 20, 0)), Code::AlreadyExists)?;
    let over = asked("pvc-made", Mode::SingleNodeWriter, &[("capsule", "tools"), ("mode", "rw")]);
    refused("of a capsule", driver.create(over), Code::AlreadyExists)?;
    driver.delete("pvc-made")?;
    for name in ["x".repeat(128), "Not A Volume's Name/π".to_owned()] {
        let made = driver.create(asked(&name, Mode::SingleNodeWriter, &[]))?;
        ensure!(driver.create(asked(&name, Mode::SingleNodeWriter, &[]))? == made, "another one");
        driver.delete(&made.volume_id)?;
    }
    let namespace = ("csi.storage.k8s.io/pvc/namespace", "shop");
    let made = driver.create(asked("pvc-made", Mode::SingleNodeWriter, &[namespace]))?;
    ensure!(made.volume_id == "shop/pvc-made", "{made:?}");
    driver.delete(&made.volume_id)?;
    Ok(said)
}

fn mistakes(driver: &Driver) -> Result<String> {
    let good = || asked("pvc-wrong", Mode::SingleNodeWriter, &[]);
    let sized = |required_bytes, limit_bytes| CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..good()
    };
    let mut block = good();
    block.volume_capabilities[0].access_type = Some(AccessType::Block(BlockVolume {}));
    let with = |parameters| asked("pvc-wrong", Mode::SingleNodeWriter, parameters);
    for (what, request, code) in [
        ("no name", CreateVolumeRequest { name: String::new(), ..good() }, Code::InvalidArgument),
        (
            "no capabilities",
            CreateVolumeRequest { volume_capabilities: Vec::new(), ..good() },
            Code::InvalidArgument,
        ),
        ("block", block, Code::InvalidArgument),
        ("many nodes", asked("pvc-wrong", Mode::MultiNodeMultiWriter, &[]), Code::InvalidArgument),
        ("an unknown key", with(&[("colour", "red")]), Code::InvalidArgument),
        ("an unknown capsule", with(&[("capsule", "nothing"), ("mode", "rw")]), Code::NotFound),
        ("a writer of what is read", with(&[("capsule", "tools")]), Code::InvalidArgument),
        ("a negative size", sized(-1, 0), Code::InvalidArgument),
        ("an impossible range", sized(2 << 20, 1 << 20), Code::OutOfRange),
        ("nothing is so small", sized(0, 4096), Code::OutOfRange),
        ("larger than the disk", sized(1 << 60, 0), Code::ResourceExhausted),
    ] {
        refused(what, driver.create(request), code)?;
    }
    let listed = list(driver, 0, "")?;
    ensure!(listed.entries.is_empty(), "{listed:?}");
    refused("an unknown key", driver.create(with(&[("colour", "red")])), Code::InvalidArgument)
}

fn reached(driver: &Driver) -> Result<String> {
    let on = |node: &str| {
        let requisite = vec![Topology { segments: map(&[(TOPOLOGY, node)]) }];
        let accessibility_requirements = Some(TopologyRequirement { requisite, preferred: Vec::new() });
        CreateVolumeRequest { accessibility_requirements, ..asked("pvc-far", Mode::SingleNodeWriter, &[]) }
    };
    driver.create(on(NODE))?;
    driver.delete("pvc-far")?;
    refused("another node", driver.create(on("node2")), Code::ResourceExhausted)
}

fn list(driver: &Driver, max_entries: i32, token: &str) -> Result<ListVolumesResponse, Status> {
    let request = ListVolumesRequest { max_entries, starting_token: token.to_owned() };
    driver.wait(async { driver.controller().list_volumes(request).await })
}

fn ids(listed: &ListVolumesResponse) -> Vec<&str> {
    listed
        .entries
        .iter()
        .filter_map(|entry| entry.volume.as_ref())
        .map(|volume| volume.volume_id.as_str())
        .collect()
}

fn listed(driver: &Driver) -> Result<String> {
    for n in 0..3 {
        driver.create(asked(&format!("pvc-{n}"), Mode::SingleNodeWriter, &[]))?;
    }
    let first = list(driver, 2, "")?;
    ensure!(ids(&first) == ["pvc-0", "pvc-1"] && !first.next_token.is_empty(), "{first:?}");
    // They come and go between pages.
    driver.delete("pvc-1")?;
    driver.create(asked("pvc-3", Mode::SingleNodeWriter, &[]))?;
    let second = list(driver, 2, &first.next_token)?;
    ensure!(ids(&second) == ["pvc-2", "pvc-3"] && second.next_token.is_empty(), "{second:?}");
    let condition = first.entries[0].status.clone().and_then(|status| status.volume_condition);
    ensure!(
        condition.is_some_and(|condition| !condition.abnormal && !condition.message.is_empty()),
        "{first:?}"
    );
    refused("another's token", list(driver, 0, "invalid-token"), Code::Aborted)?;
    refused("a negative number", list(driver, -1, ""), Code::InvalidArgument)?;
    let get = |id: &str| {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        driver.wait(async { driver.controller().controller_get_volume(request).await })
    };
    let got = get("pvc-0")?;
    ensure!(got.volume == first.entries[0].volume && got.status.is_some(), "{got:?}");
    refused("no id", get(""), Code::InvalidArgument)?;
    refused("nothing", get("none"), Code::NotFound)?;
    for n in [0, 2, 3] {
        driver.delete(&format!("pvc-{n}"))?;
    }
    Ok(first.next_token)
}

fn validated(driver: &Driver) -> Result<String> {
    driver.create(asked("pvc-valid", Mode::SingleNodeWriter, &[]))?;
    let validate = |id: &str, modes: &[Mode], context: &[(&str, &str)]| {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
            volume_context: map(context),
            ..Default::default()
        };
        driver.wait(async { driver.controller().validate_volume_capabilities(request).await })
    };
    let confirmed = |answer: &ValidateVolumeCapabilitiesResponse| answer.confirmed.is_some();
    ensure!(confirmed(&validate("pvc-valid", &[Mode::SingleNodeWriter], &[])?), "a writer");
    let read = [("capsule", "tools"), ("mode", "ro")];
    ensure!(confirmed(&validate("pvc-read", &[Mode::MultiNodeReaderOnly], &read)?), "a reader");
    let other = validate("pvc-valid", &[Mode::MultiNodeMultiWriter], &[])?;
    ensure!(!confirmed(&other) && !other.message.is_empty(), "{other:?}");
    refused("no id", validate("", &[Mode::SingleNodeWriter], &[]), Code::InvalidArgument)?;
    refused("no capabilities", validate("pvc-valid", &[], &[]), Code::InvalidArgument)?;
    refused("nothing", validate("none", &[Mode::SingleNodeWriter], &[]), Code::NotFound)?;
    driver.delete("pvc-valid")?;
    Ok(other.message)
}

fn deleted(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-gone", Mode::SingleNodeWriter, &[]))?;
    driver.publish(published(&volume, "/vol/gone", Mode::SingleNodeWriter))?;
    let said = refused("published", driver.delete(&volume.volume_id), Code::FailedPrecondition)?;
    driver.unpublish(&volume.volume_id, "/vol/gone")?;
    for id in [volume.volume_id.as_str(), "pvc-gone", "none", "No Volume's Id"] {
        driver.delete(id)?;
    }
    refused("no id", driver.delete(""), Code::InvalidArgument)?;
    Ok(said)
}

fn modified(driver: &Driver) -> Result<String> {
    let over = [("capsule", "tools"), ("version", "1"), ("mode", "rw")];
    let volume = driver.create(asked("pvc-over", Mode::SingleNodeWriter, &over))?;
    let modify = |id: &str, parameters: &[(&str, &str)]| {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: map(parameters),
            ..Default::default()
        };
        driver.wait(async { driver.controller().controller_modify_volume(request).await })
    };
    for (what, id, parameters, code) in [
        ("no id", "", &[("version", "2")][..], Code::InvalidArgument),
        ("no parameters", "pvc-over", &[], Code::InvalidArgument),
        ("another key", "pvc-over", &[("capsule", "other")], Code::InvalidArgument),
        ("nothing", "none", &[("version", "2")], Code::NotFound),
        ("an unknown version", "pvc-over", &[("version", "9")], Code::InvalidArgument),
    ] {
        refused(what, modify(id, parameters), code)?;
    }
    driver.publish(published(&volume, "/vol/over", Mode::SingleNodeWriter))?;
    let said = refused("mounted", modify("pvc-over", &[("version", "2")]), Code::FailedPrecondition)?;
    driver.unpublish("pvc-over", "/vol/over")?;
    modify("pvc-over", &[("version", "2")])?;
    driver.publish(published(&volume, "/vol/over", Mode::SingleNodeWriter))?;
    let version = std::fs::read_to_string("/vol/over/version").context("read")?;
    ensure!(version == "2", "it has {version}");
    driver.unpublish("pvc-over", "/vol/over")?;
    driver.delete("pvc-over")?;
    Ok(said)
}

fn offered(driver: &Driver) -> Result<String> {
    let request = ControllerGetCapabilitiesRequest {};
    let can = driver.wait(async { driver.controller().controller_get_capabilities(request).await })?;
    let can: BTreeSet<i32> = can
        .capabilities
        .iter()
        .filter_map(|can| can.r#type.as_ref())
        .map(|controller_service_capability::Type::Rpc(rpc)| rpc.r#type)
        .collect();
    for not in [Offered::ExpandVolume, Offered::PublishUnpublishVolume, Offered::CloneVolume] {
        ensure!(!can.contains(&not.into()), "it says that it has {not:?}");
    }
    let publish = async {
        driver.controller().controller_publish_volume(ControllerPublishVolumeRequest::default()).await
    };
    refused("publish", driver.wait(publish), Code::Unimplemented)?;
    let expand = async {
        driver.controller().controller_expand_volume(ControllerExpandVolumeRequest::default()).await
    };
    refused("expand", driver.wait(expand), Code::Unimplemented)?;
    let room = |node: &str| -> Result<i64, Status> {
        let accessible_topology = Some(Topology { segments: map(&[(TOPOLOGY, node)]) });
        let request = GetCapacityRequest { accessible_topology, ..Default::default() };
        Ok(driver.wait(async { driver.controller().get_capacity(request).await })?.available_capacity)
    };
    let here = room(NODE)?;
    ensure!(here > 1 << 20 && room("node2")? == 0, "{here} bytes");
    Ok(format!("{here} bytes are left"))
}
