//! Nodes of other kinds than the example's: a block device, the kernel's virtual machines, and a GPU; the last two where the node has
//! them, and said where it has not.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{DENIED, denied, opens, start};
use crate::scenario::capsulectl::{done, json};
use crate::scenario::ctr::Container;
use crate::workspace::output_of;

const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "example.com/node", "devices": [
{"name": "loop", "containerEdits": {"deviceNodes": [{"path": "/dev/exampleloop", "hostPath": "/dev/loop0", "permissions": "rw"}]}},
{"name": "kvm", "containerEdits": {"deviceNodes": [{"path": "/dev/kvm", "permissions": "rw"}]}}
]}"#;
/// What a GPU's spec and its nodes are on a node that has one.
const NVIDIA: (&str, &str) = ("/var/run/cdi/nvidia.yaml", "/dev/nvidiactl");

pub fn prepare() -> Result<()> {
    // The first of the loop devices is made when one is asked for.
    let _ = Command::new("losetup").arg("-f").output();
    fs::write("/etc/cdi/node.json", SPEC).context("a spec")
}

/// A block device, and `/dev/kvm`: opened by the spec's nodes and by some of the container's own while they are attached. Whether there
/// is a `/dev/kvm`.
pub fn opened(container: &Container) -> Result<&'static str> {
    let has_kvm = Path::new("/dev/kvm").exists();
    let mut nodes = vec![("example.com/node=loop", "/dev/exampleloop", "/dev/own-loop")];
    if has_kvm {
        nodes.push(("example.com/node=kvm", "/dev/kvm", "/dev/own-kvm"));
    }
    let named: Vec<&str> = nodes.iter().flat_map(|(device, ..)| ["--device", *device]).collect();
    let paths: Vec<&str> = nodes.iter().flat_map(|(_, node, own)| [*own, *node]).collect();
    // Of each device its own node and the spec's: a shell that opens for reading makes nothing.
    let look = |exec: &str, own: &str, spec: &str| -> Result<()> {
        let make = "[ -e /dev/own-loop ] || mknod /dev/own-loop b 7 0; [ -e /dev/own-kvm ] || mknod /dev/own-kvm c 10 232";
        let open =
            format!("for path in {}; do ( : <$path ) 2>&1 && echo opened; done; true", paths.join(" "));
        let said = container.sh(exec, &format!("{make}; {open}"))?;
        let lines: Vec<&str> = said.lines().collect();
        let as_wanted = lines.iter().zip([own, spec].iter().cycle()).all(|(line, want)| line.contains(want));
        ensure!(lines.len() == paths.len() && as_wanted, "{exec}: {said}, instead of {own:?} and {spec:?}");
        Ok(())
    };
    look("nodes-before", DENIED, "o such file")?;
    done(&[&["attach", &container.id], &named[..]].concat())?;
    look("nodes-attached", "opened", "opened")?;
    done(&[&["detach", &container.id], &named[..]].concat())?;
    look("nodes-after", DENIED, "o such file")?;
    Ok(if has_kvm { "/dev/kvm too" } else { "no /dev/kvm on this machine" })
}

/// A real GPU behind the spec that `nvidia-ctk` writes for it.
pub fn gpu() -> Result<String> {
    let (spec, control) = NVIDIA;
    if !Path::new(control).exists() {
        return Ok("not run: no NVIDIA GPU here".to_owned());
    }
    output_of(Command::new("nvidia-ctk").args(["cdi", "generate", &format!("--output={spec}")]))?;
    let listed = json(&["devices", "nvidia.com/gpu"])?;
    let device = listed["devices"][0]["name"].as_str().context("no device of nvidia.com/gpu")?.to_owned();
    let container = start("gpu", "runc", false)?;
    let mounts = container.mounts()?;
    denied(&container, "before", "<>", control, "o such file")?;
    done(&["attach", "gpu", "--device", &device])?;
    opens(&container, "attached", "<>", control)?;
    let libraries = container.sh("libraries", "grep -c libcuda /proc/self/mounts || true")?;
    ensure!(libraries.trim() != "0", "the driver's libraries are not there");
    done(&["detach", "gpu", "--device", &device])?;
    denied(&container, "after", "<>", control, "o such file")?;
    ensure!(container.mounts()? == mounts, "the mount table is another one");
    container.remove()?;
    Ok(format!("{device}: {} mounts of libcuda", libraries.trim()))
}
