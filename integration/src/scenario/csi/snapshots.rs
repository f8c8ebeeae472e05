//! Snapshots: versions of a capsule, made of what was written to a volume.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::csi::v1::volume_capability::access_mode::Mode;
use capsule_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use capsule_proto::csi::v1::{
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, ListSnapshotsRequest,
    ListSnapshotsResponse, Snapshot, Volume, VolumeContentSource,
};
use tonic::{Code, Status};

use super::driver::{Driver, asked, map, published, refused};
use crate::event::Reporter;
use crate::scenario::capsulectl::{done, json};

const AT: &str = "/vol/written";
const OVER: [(&str, &str); 3] = [("capsule", "tools"), ("version", "1"), ("mode", "rw")];

pub fn cases(reporter: &mut Reporter, driver: &Driver) {
    reporter.check("CreateSnapshot: what was written, once for a name, also while it is written to", || {
        taken(driver)
    });
    reporter.check("CreateSnapshot: what lacks something, or cannot be one, is refused", || mistakes(driver));
    reporter.check("ListSnapshots: by volume, by id, in pages", || listed(driver));
    reporter.check("CreateVolume: over a snapshot, which outlives its volume", || restored(driver));
    reporter
        .check("DeleteSnapshot: not while it is in use, and then as often as is wanted", || deleted(driver));
}

fn snapshot(driver: &Driver, of: &str, name: &str, parameters: &[(&str, &str)]) -> Result<Snapshot, Status> {
    let request = CreateSnapshotRequest {
        source_volume_id: of.to_owned(),
        name: name.to_owned(),
        parameters: map(parameters),
        ..Default::default()
    };
    let made = driver.wait(async { driver.controller().create_snapshot(request).await })?;
    made.snapshot.ok_or_else(|| Status::internal("no snapshot"))
}

fn delete(driver: &Driver, id: &str) -> Result<(), Status> {
    let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    driver.wait(async { driver.controller().delete_snapshot(request).await }).map(drop)
}

fn list(driver: &Driver, request: ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
    driver.wait(async { driver.controller().list_snapshots(request).await })
}

fn ids(listed: &ListSnapshotsResponse) -> Vec<&str> {
    listed
        .entries
        .iter()
        .filter_map(|entry| entry.snapshot.as_ref())
        .map(|one| one.snapshot_id.as_str())
        .collect()
}

/// A volume over `tools@1` at the path, with a file.
fn written(driver: &Driver, name: &str) -> Result<Volume> {
    let volume = driver.create(asked(name, Mode::SingleNodeWriter, &OVER))?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    fs::write(format!("{AT}/mine"), name).context("write")?;
    Ok(volume)
}

fn removed(driver: &Driver, id: &str) -> Result<()> {
    driver.unpublish(id, AT)?;
    driver.delete(id)?;
    Ok(())
}

fn taken(driver: &Driver) -> Result<String> {
    let name = "snapshot-6f1b2a34-0000-4000-8000-123456789abc";
    written(driver, "pvc-one")?;
    let made = snapshot(driver, "pvc-one", name, &[])?;
    ensure!(made.snapshot_id == format!("tools@{name}") && made.source_volume_id == "pvc-one", "{made:?}");
    ensure!(made.ready_to_use && made.creation_time.is_some(), "{made:?}");
    // What is written afterwards is in none that was taken before, and asking again makes no other.
    fs::write(format!("{AT}/later"), "later").context("write")?;
    ensure!(snapshot(driver, "pvc-one", name, &[])? == made, "another one");
    driver.create(asked("pvc-two", Mode::SingleNodeWriter, &OVER))?;
    let said = refused("another volume", snapshot(driver, "pvc-two", name, &[]), Code::AlreadyExists)?;
    driver.delete("pvc-two")?;
    let longest = snapshot(driver, "pvc-one", &"s".repeat(128), &[])?;
    ensure!(done(&["ls", "tools"])?.contains(name), "it is a version");
    // It is a pre-release: who asks for the newest does not get it.
    let newest = json(&["inspect", "tools"])?["version"]["version"].clone();
    ensure!(newest == "2", "the newest is {newest}");
    for id in [&made.snapshot_id, &longest.snapshot_id] {
        delete(driver, id)?;
    }
    removed(driver, "pvc-one")?;
    Ok(said)
}

fn mistakes(driver: &Driver) -> Result<String> {
    driver.create(asked("pvc-none", Mode::SingleNodeWriter, &OVER))?;
    driver.create(asked("pvc-directory", Mode::SingleNodeWriter, &[]))?;
    for (what, of, name, parameters, code) in [
        ("no volume", "", "s", &[][..], Code::InvalidArgument),
        ("no name", "pvc-none", "", &[], Code::InvalidArgument),
        ("an unknown key", "pvc-none", "s", &[("colour", "red")], Code::InvalidArgument),
        ("nothing", "none", "s", &[], Code::NotFound),
        ("of no capsule", "pvc-directory", "s", &[], Code::InvalidArgument),
        ("a version that is there", "pvc-none", "s", &[("version", "2")], Code::AlreadyExists),
    ] {
        refused(what, snapshot(driver, of, name, parameters), code)?;
    }
    let said = refused("nothing written", snapshot(driver, "pvc-none", "s", &[]), Code::FailedPrecondition)?;
    driver.delete("pvc-none")?;
    driver.delete("pvc-directory")?;
    Ok(said)
}

fn listed(driver: &Driver) -> Result<String> {
    written(driver, "pvc-one")?;
    for version in ["0-a", "0-b", "0-c"] {
        snapshot(driver, "pvc-one", version, &[("version", version)])?;
    }
    let any = ListSnapshotsRequest::default;
    let first = list(driver, ListSnapshotsRequest { max_entries: 2, ..any() })?;
    ensure!(ids(&first) == ["tools@0-a", "tools@0-b"], "{first:?}");
    let rest = list(driver, ListSnapshotsRequest { starting_token: first.next_token.clone(), ..any() })?;
    ensure!(ids(&rest) == ["tools@0-c"] && rest.next_token.is_empty(), "{rest:?}");
    let of = |id: &str| list(driver, ListSnapshotsRequest { source_volume_id: id.to_owned(), ..any() });
    ensure!(of("pvc-one")?.entries.len() == 3 && of("none")?.entries.is_empty(), "by volume");
    let by = |id: &str| list(driver, ListSnapshotsRequest { snapshot_id: id.to_owned(), ..any() });
    ensure!(ids(&by("tools@0-b")?) == ["tools@0-b"], "by id");
    ensure!(ids(&by("tools@1")?) == ["tools@1"], "a version that is no snapshot");
    ensure!(by("tools@9")?.entries.is_empty() && by("none")?.entries.is_empty(), "nothing");
    let bad = list(driver, ListSnapshotsRequest { starting_token: "invalid".to_owned(), ..any() });
    let said = refused("another's token", bad, Code::Aborted)?;
    for version in ["0-a", "0-b", "0-c"] {
        delete(driver, &format!("tools@{version}"))?;
    }
    removed(driver, "pvc-one")?;
    Ok(said)
}

fn source(r#type: Type) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(r#type) }),
        ..asked("pvc-again", Mode::SingleNodeWriter, &[("capsule", "tools"), ("mode", "rw")])
    }
}

fn of_snapshot(id: &str) -> CreateVolumeRequest {
    source(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }))
}

fn restored(driver: &Driver) -> Result<String> {
    written(driver, "pvc-one")?;
    let made = snapshot(driver, "pvc-one", "snapshot-kept", &[])?;
    removed(driver, "pvc-one")?;
    let volume = driver.create(of_snapshot(&made.snapshot_id))?;
    ensure!(volume.content_source == of_snapshot(&made.snapshot_id).volume_content_source, "{volume:?}");
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    let (mine, version) =
        (fs::read_to_string(format!("{AT}/mine")), fs::read_to_string(format!("{AT}/version")));
    ensure!(mine.context("mine")? == "pvc-one" && version.context("version")? == "1", "other files");
    removed(driver, &volume.volume_id)?;
    delete(driver, &made.snapshot_id)?;
    refused("no snapshot", driver.create(of_snapshot(&made.snapshot_id)), Code::NotFound)?;
    refused("no version, but a tag", driver.create(of_snapshot("tools@latest")), Code::NotFound)?;
    let clone = source(Type::Volume(VolumeSource { volume_id: "pvc-one".to_owned() }));
    refused("a clone", driver.create(clone), Code::InvalidArgument)
}

fn deleted(driver: &Driver) -> Result<String> {
    written(driver, "pvc-one")?;
    let made = snapshot(driver, "pvc-one", "snapshot-used", &[])?;
    removed(driver, "pvc-one")?;
    let volume = driver.create(of_snapshot(&made.snapshot_id))?;
    driver.publish(published(&volume, AT, Mode::SingleNodeWriter))?;
    let said = refused("in use", delete(driver, &made.snapshot_id), Code::FailedPrecondition)?;
    removed(driver, &volume.volume_id)?;
    for id in [made.snapshot_id.as_str(), made.snapshot_id.as_str(), "none", "tools@none"] {
        delete(driver, id)?;
    }
    refused("no id", delete(driver, ""), Code::InvalidArgument)?;
    ensure!(json(&["inspect", "tools@1"])?["version"]["complete"] == true, "tools@1");
    Ok(said)
}
