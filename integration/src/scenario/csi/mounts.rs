//! What is at the paths: files of the right version, writes that are refused, bounded and kept, and another version under readers.

use std::cell::RefCell;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::csi::v1::volume_capability::access_mode::Mode;
use capsule_proto::csi::v1::{ControllerModifyVolumeRequest, NodePublishVolumeRequest};

use super::driver::{Driver, asked, inline, map, published};
use crate::event::Reporter;
use crate::scenario::capsulectl::json;
use crate::scenario::ctr::REFERENCE;
use crate::scenario::readers::{Inside, Readers, SHARED, expect_seamless};
use crate::scenario::world::path;

/// As the kubelet calls it.
const POD: &str = "/var/lib/kubelet/pods/8a0c/volumes/kubernetes.io~csi/tools/mount";
/// Where another mount namespace has it.
const BOUND: &str = "/mnt/bound";
const READER: &str = "/shared/capsule-reader";

pub fn cases(reporter: &mut Reporter, driver: &Driver) {
    reporter.check("what is only read has its version, and refuses writes", || read(driver));
    reporter.check("what is written is bounded, stays, and belongs to whom it should", || written(driver));
    reporter.check("inline volumes come and go with their pods, read and written", || inlined(driver));
    reporter.check(
        "another version comes to readers at the path, in a container and in a namespace, and no read fails",
        || upgraded(driver),
    );
}

/// A folder for the kubelet's mounts, and a reader that the node can run.
pub fn prepare() -> Result<()> {
    for folder in [SHARED, "/vol", BOUND] {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
    }
    // The kubelet makes the parent of each path.
    fs::create_dir_all(Path::new(POD).parent().context("a folder")?).context("create the pod's folder")?;
    let image = REFERENCE.start("image", &[], &["/bin/sleep", "100000"])?;
    fs::copy(format!("/proc/{}/root/usr/bin/capsule-reader", image.pid()?), READER)
        .context("copy the reader")?;
    image.remove().map(drop)
}

fn refuses(at: &str) -> Result<()> {
    let kind = fs::write(format!("{at}/version"), "mine").err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ReadOnlyFilesystem), "{at}: {kind:?}");
    Ok(())
}

fn version(at: &str) -> Result<String> {
    fs::read_to_string(format!("{at}/version")).with_context(|| format!("read {at}/version"))
}

fn read(driver: &Driver) -> Result<String> {
    let request = asked("pvc-read", Mode::MultiNodeReaderOnly, &[("capsule", "tools"), ("version", "1")]);
    let volume = driver.create(request)?;
    ensure!(volume.capacity_bytes == 0 && volume.accessible_topology.is_empty(), "{volume:?}");
    let listed = json(&["volumes"])?;
    ensure!(listed["volumes"].as_array().is_some_and(Vec::is_empty), "something is kept of it: {listed}");
    for at in [POD, "/vol/two"] {
        driver.publish(published(&volume, at, Mode::MultiNodeReaderOnly))?;
        ensure!(version(at)? == "1", "{at} has {}", version(at)?);
        refuses(at)?;
    }
    for at in [POD, "/vol/two"] {
        driver.unpublish(&volume.volume_id, at)?;
        ensure!(!Path::new(at).exists(), "{at} stays");
    }
    driver.delete(&volume.volume_id)?;
    Ok(String::new())
}

fn written(driver: &Driver) -> Result<String> {
    let parameters = [("owner", "1000:1001"), ("permissions", "2770")];
    let volume = driver.create(asked("pvc-data", Mode::SingleNodeMultiWriter, &parameters))?;
    driver.publish(published(&volume, POD, Mode::SingleNodeMultiWriter))?;
    let root = fs::metadata(POD).context("its root")?;
    ensure!((root.uid(), root.gid(), root.mode() & 0o7777) == (1000, 1001, 0o2770), "{root:?}");
    fs::write(format!("{POD}/kept"), "kept").context("write")?;
    let full = fs::write(format!("{POD}/big"), vec![1; 32 << 20]).err().map(|error| error.kind());
    ensure!(full == Some(ErrorKind::StorageFull), "{full:?}");
    fs::remove_file(format!("{POD}/big")).context("remove")?;
    let reads = published(&volume, "/vol/look", Mode::SingleNodeMultiWriter);
    driver.publish(NodePublishVolumeRequest { readonly: true, ..reads })?;
    let kind = fs::write("/vol/look/kept", "x").err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ReadOnlyFilesystem), "{kind:?}");
    ensure!(fs::read_to_string("/vol/look/kept").context("read")? == "kept", "another volume");
    for at in [POD, "/vol/look"] {
        driver.unpublish(&volume.volume_id, at)?;
    }
    driver.publish(published(&volume, POD, Mode::SingleNodeMultiWriter))?;
    ensure!(fs::read_to_string(format!("{POD}/kept")).context("read")? == "kept", "it is gone");
    driver.unpublish(&volume.volume_id, POD)?;
    driver.delete(&volume.volume_id)?;
    Ok(format!("{full:?} at 16 MiB"))
}

fn inlined(driver: &Driver) -> Result<String> {
    let id = format!("csi-{}", "0123456789abcdef".repeat(4));
    driver.publish(inline(&id, POD, &[("capsule", "tools"), ("version", "2")]))?;
    ensure!(version(POD)? == "2", "it has {}", version(POD)?);
    refuses(POD)?;
    driver.unpublish(&id, POD)?;
    driver.publish(inline(&id, POD, &[("capsule", "tools"), ("mode", "rw"), ("size", "16Mi")]))?;
    fs::write(format!("{POD}/mine"), "mine").context("write")?;
    let full = fs::write(format!("{POD}/big"), vec![1; 32 << 20]).err().map(|error| error.kind());
    ensure!(full == Some(ErrorKind::StorageFull), "{full:?}");
    driver.unpublish(&id, POD)?;
    let listed = json(&["volumes"])?;
    ensure!(listed["volumes"].as_array().is_some_and(Vec::is_empty), "it is kept: {listed}");
    driver.publish(inline(&id, POD, &[("size", "16Mi"), ("permissions", "0711")]))?;
    ensure!(
        fs::read_dir(POD).context("read")?.all(|entry| entry.is_ok_and(|e| e.file_name() == "lost+found")),
        "not empty"
    );
    driver.unpublish(&id, POD)?;
    Ok(id)
}

/// A process of the node that reads: at the path, or in a mount namespace of its own, which has bound the path elsewhere.
struct Process {
    bound: bool,
    children: RefCell<Vec<Child>>,
}

impl Inside for Process {
    fn spawn(&self, _: &str, command: &[&str]) -> Result<()> {
        let mut child = if self.bound {
            let script = format!("mount --bind {POD} {BOUND} && exec {READER} \"$@\"");
            let mut child = Command::new("unshare");
            child.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
            child
        } else {
            Command::new(READER)
        };
        let elsewhere = |word: &&str| if self.bound { word.replace(POD, BOUND) } else { (*word).to_owned() };
        child.args(command[1..].iter().map(elsewhere)).env("PATH", path()).stdin(Stdio::null());
        self.children.borrow_mut().push(child.spawn().context("start a reader")?);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for child in self.children.get_mut() {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// A reader, wherever it is.
enum Spot<'a> {
    Container(&'a crate::scenario::ctr::Container),
    Process(Process),
}

impl Inside for Spot<'_> {
    fn spawn(&self, exec_id: &str, command: &[&str]) -> Result<()> {
        match self {
            Self::Container(container) => container.spawn(exec_id, command),
            Self::Process(process) => Inside::spawn(process, exec_id, command),
        }
    }
}

fn upgraded(driver: &Driver) -> Result<String> {
    let request = asked("pvc-moves", Mode::MultiNodeReaderOnly, &[("capsule", "tools"), ("version", "1")]);
    let volume = driver.create(request)?;
    driver.publish(published(&volume, POD, Mode::MultiNodeReaderOnly))?;
    // As a runtime binds what the kubelet gives it: another mount, which no propagation reaches.
    let bind = format!("type=bind,src={POD},dst={POD},options=rbind:ro");
    let trees = "type=bind,src=/tmp/sets,dst=/tmp/sets,options=rbind:ro";
    let shared = "type=bind,src=/shared,dst=/shared,options=rbind:rw";
    let pod = REFERENCE.start(
        "pod",
        &["--mount", &bind, "--mount", trees, "--mount", shared],
        &["/bin/sleep", "100000"],
    )?;
    let process = |bound| Spot::Process(Process { bound, children: RefCell::default() });
    let spots = [Spot::Container(&pod), process(false), process(true)];
    let all: Vec<&Spot<'_>> = spots.iter().collect();
    let allowed = ["1", "2"].map(|version| format!("/tmp/sets/tools@{version}/version"));
    let readers = Readers::across(&all, &format!("{POD}/version"), &allowed)?;
    for to in ["2", "1", "2"] {
        let request = ControllerModifyVolumeRequest {
            volume_id: volume.volume_id.clone(),
            mutable_parameters: map(&[("version", to)]),
            ..Default::default()
        };
        driver.wait(async { driver.controller().controller_modify_volume(request).await })?;
        ensure!(version(POD)? == to, "the node has {}", version(POD)?);
        sleep(Duration::from_millis(300));
    }
    let line = expect_seamless(&readers.stop()?)?;
    ensure!(pod.sh("now", &format!("cat {POD}/version"))? == "2", "in the container");
    drop(spots);
    pod.remove()?;
    driver.unpublish(&volume.volume_id, POD)?;
    driver.delete(&volume.volume_id)?;
    Ok(line)
}
