//! The Node service: what is asked, and what is answered.

use std::path::Path;

use anyhow::{Result, ensure};
use capsule_proto::csi::v1::node_service_capability::rpc::Type as Offered;
use capsule_proto::csi::v1::volume_capability::{AccessType, BlockVolume, MountVolume, access_mode::Mode};
use capsule_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
    node_service_capability, volume_usage::Unit,
};
use tonic::{Code, Status};

use super::driver::{Driver, NODE, TOPOLOGY, asked, inline, map, published, refused};
use crate::event::Reporter;

const AT: &str = "/vol/node";

pub fn cases(reporter: &mut Reporter, driver: &Driver) {
    reporter.check("NodeGetInfo and NodeGetCapabilities: which node, and what it can do", || info(driver));
    reporter.check(
        "NodePublishVolume: what lacks something, or cannot be, is refused, and nothing is mounted",
        || mistakes(driver),
    );
    reporter
        .check("NodePublishVolume: as often as is wanted, and at one path where the mode says so", || {
            again(driver)
        });
    reporter.check("NodePublishVolume: twice at once", || at_once(driver));
    reporter.check("NodeUnpublishVolume: as often as is wanted, also of what is not there", || {
        unpublished(driver)
    });
    reporter.check("NodeGetVolumeStats: bytes, files, condition; and of what is not there", || stats(driver));
}

fn info(driver: &Driver) -> Result<String> {
    let info = driver.wait(async { driver.node().node_get_info(NodeGetInfoRequest {}).await })?;
    ensure!(info.node_id == NODE, "{info:?}");
    let topology = info.accessible_topology.map(|topology| topology.segments);
    ensure!(topology == Some(map(&[(TOPOLOGY, NODE)])), "{topology:?}");
    let request = NodeGetCapabilitiesRequest {};
    let can = driver.wait(async { driver.node().node_get_capabilities(request).await })?.capabilities;
    let can: Vec<i32> = can
        .iter()
        .filter_map(|can| can.r#type.as_ref())
        .map(|node_service_capability::Type::Rpc(rpc)| rpc.r#type)
        .collect();
    let has = |offered: Offered| can.contains(&offered.into());
    ensure!(has(Offered::GetVolumeStats) && has(Offered::VolumeCondition), "{can:?}");
    ensure!(!has(Offered::StageUnstageVolume) && !has(Offered::ExpandVolume), "{can:?}");
    let stage = async { driver.node().node_stage_volume(NodeStageVolumeRequest::default()).await };
    refused("stage", driver.wait(stage), Code::Unimplemented)?;
    let expand = async { driver.node().node_expand_volume(NodeExpandVolumeRequest::default()).await };
    refused("expand", driver.wait(expand), Code::Unimplemented)?;
    Ok(format!("{} calls", can.len()))
}

fn with(request: &NodePublishVolumeRequest, access_type: AccessType) -> NodePublishVolumeRequest {
    let access_mode = request.volume_capability.as_ref().and_then(|capability| capability.access_mode);
    let capability = VolumeCapability { access_mode, access_type: Some(access_type) };
    NodePublishVolumeRequest { volume_capability: Some(capability), ..request.clone() }
}

fn mistakes(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-node", Mode::SingleNodeWriter, &[]))?;
    let good = published(&volume, AT, Mode::SingleNodeWriter);
    let named = |id: &str| NodePublishVolumeRequest { volume_id: id.to_owned(), ..good.clone() };
    let at = |path: &str| NodePublishVolumeRequest { target_path: path.to_owned(), ..good.clone() };
    let mount = |mount| with(&good, AccessType::Mount(mount));
    let flags = MountVolume { mount_flags: vec!["noexec".to_owned()], ..MountVolume::default() };
    let ext4 = MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() };
    for (what, request, code) in [
        ("no id", named(""), Code::InvalidArgument),
        ("no id of a volume", named("No Volume's"), Code::InvalidArgument),
        ("nothing", named("none"), Code::NotFound),
        ("no path", at(""), Code::InvalidArgument),
        ("a relative path", at("vol/node"), Code::InvalidArgument),
        ("a path with ..", at("/vol/../etc"), Code::InvalidArgument),
        (
            "no capability",
            NodePublishVolumeRequest { volume_capability: None, ..good.clone() },
            Code::InvalidArgument,
        ),
        ("block", with(&good, AccessType::Block(BlockVolume {})), Code::InvalidArgument),
        ("an option of mounts", mount(flags), Code::InvalidArgument),
        ("a file system", mount(ext4), Code::InvalidArgument),
        ("an unknown attribute", inline("csi-1", AT, &[("colour", "red")]), Code::InvalidArgument),
        ("an unknown capsule", inline("csi-1", AT, &[("capsule", "nothing")]), Code::NotFound),
        (
            "an unknown version",
            inline("csi-1", AT, &[("capsule", "tools"), ("version", "9")]),
            Code::NotFound,
        ),
    ] {
        refused(what, driver.publish(request), code)?;
    }
    ensure!(!Path::new(AT).exists(), "the path was made");
    driver.delete("pvc-node")?;
    refused("nothing", driver.publish(good), Code::NotFound)
}

fn again(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-node", Mode::SingleNodeWriter, &[]))?;
    let mut said = String::new();
    for mode in [Mode::SingleNodeSingleWriter, Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter] {
        for _ in 0..2 {
            driver.publish(published(&volume, AT, mode))?;
        }
        let other = driver.publish(published(&volume, "/vol/other", mode));
        if mode == Mode::SingleNodeMultiWriter {
            other?;
            std::fs::write(format!("{AT}/told"), "told")?;
            ensure!(std::fs::read_to_string("/vol/other/told")? == "told", "one volume");
        } else {
            said = refused("elsewhere", other, Code::FailedPrecondition)?;
        }
        driver.unpublish("pvc-node", AT)?;
        driver.unpublish("pvc-node", "/vol/other")?;
    }
    driver.delete("pvc-node")?;
    Ok(said)
}

/// For two pods, and for one that is asked for once more before it is answered.
fn at_once(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-node", Mode::SingleNodeMultiWriter, &[]))?;
    for (round, other) in [AT, "/vol/other"].into_iter().cycle().take(20).enumerate() {
        let (one, two) = (
            published(&volume, AT, Mode::SingleNodeMultiWriter),
            published(&volume, other, Mode::SingleNodeMultiWriter),
        );
        let (mut first, mut second) = (driver.node(), driver.node());
        let calls = [first.node_publish_volume(one), second.node_publish_volume(two)];
        for result in driver.both(calls) {
            result.map_err(|status| anyhow::anyhow!("round {round}: {status}"))?;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let count = |path: &str| mounts.lines().filter(|line| line.split(' ').nth(4) == Some(path)).count();
        ensure!(count(AT) == 1 && count("/vol/other") == usize::from(other != AT), "round {round}: {mounts}");
        driver.unpublish("pvc-node", AT)?;
        driver.unpublish("pvc-node", "/vol/other")?;
    }
    driver.delete("pvc-node")?;
    Ok("20 times".to_owned())
}

fn unpublished(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-node", Mode::SingleNodeWriter, &[]))?;
    driver.unpublish("pvc-node", AT)?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    for _ in 0..2 {
        driver.unpublish("pvc-node", AT)?;
    }
    ensure!(!Path::new(AT).exists(), "the directory stays");
    driver.unpublish("none", AT)?;
    driver.unpublish("pvc-node", "/no/such/path")?;
    driver.delete("pvc-node")?;
    refused("no id", driver.unpublish("", AT), Code::InvalidArgument)?;
    refused("no path", driver.unpublish("pvc-node", ""), Code::InvalidArgument)
}

fn stats(driver: &Driver) -> Result<String> {
    let volume = driver.create(asked("pvc-node", Mode::SingleNodeWriter, &[]))?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    let ask = |id: &str, path: &str| -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        driver.wait(async { driver.node().node_get_volume_stats(request).await })
    };
    let used = |unit: Unit| -> Result<i64> {
        let answer = ask("pvc-node", AT)?;
        ensure!(answer.volume_condition.as_ref().is_some_and(|it| !it.abnormal), "{answer:?}");
        let usage = answer.usage.iter().find(|usage| usage.unit == i32::from(unit));
        let usage = usage.ok_or_else(|| anyhow::anyhow!("no {unit:?}: {answer:?}"))?;
        ensure!(usage.total > 0 && usage.available > 0 && usage.available <= usage.total, "{usage:?}");
        Ok(usage.used)
    };
    let before = (used(Unit::Bytes)?, used(Unit::Inodes)?);
    std::fs::write(format!("{AT}/some"), vec![1; 2 << 20])?;
    std::fs::File::open(format!("{AT}/some"))?.sync_all()?;
    let after = (used(Unit::Bytes)?, used(Unit::Inodes)?);
    ensure!(after.0 >= before.0 + (2 << 20) && after.1 == before.1 + 1, "{before:?} and {after:?}");
    for (what, id, path, code) in [
        ("no id", "", AT, Code::InvalidArgument),
        ("no path", "pvc-node", "", Code::InvalidArgument),
        ("nothing", "none", AT, Code::NotFound),
        ("elsewhere", "pvc-node", "/vol", Code::NotFound),
        ("no way", "pvc-node", "/no/such/path", Code::NotFound),
    ] {
        refused(what, ask(id, path), code)?;
    }
    // Somebody else unmounts it.
    let gone = std::process::Command::new("umount").arg(AT).status()?;
    ensure!(gone.success(), "umount");
    let condition = ask("pvc-node", AT)?.volume_condition;
    ensure!(condition.as_ref().is_some_and(|it| it.abnormal && !it.message.is_empty()), "{condition:?}");
    driver.unpublish("pvc-node", AT)?;
    driver.delete("pvc-node")?;
    Ok(condition.map(|condition| condition.message).unwrap_or_default())
}
