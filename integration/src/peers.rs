//! Programs of others that single scenarios need: other snapshotters of Debian, for the benchmark alone, and Prometheus, which
//! need nothing but libc; nerdctl; and a cluster's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt::Apt;
use crate::rootfs::{self, Suite};
use crate::scenario::{self, snapshotters};
use crate::workspace::{Workspace, output_of, remove_tree};
use crate::{kubernetes, nerdctl};

/// Debian's package and the daemon in it. Debian's package of stargz has only the client's program.
const PEERS: [(&str, &str); 3] = [
    ("soci-snapshotter", "soci-snapshotter-grpc"),
    ("nydus-snapshotter", "containerd-nydus-grpc"),
    ("accelerated-container-image", "overlaybd-snapshotter"),
];

const PROMETHEUS: (&str, &str) = ("prometheus", "prometheus");

/// The folder that a scenario's machine has as `/peers`; the others download nothing for it.
pub fn of(workspace: &Workspace, scenario: &str) -> Result<Option<PathBuf>> {
    match scenario {
        snapshotters::FULL => ready(workspace, "programs", &PEERS).map(Some),
        "dashboard" => ready(workspace, "prometheus", &[PROMETHEUS]).map(Some),
        scenario::kubernetes::ROLLOUTS => with_prometheus(workspace).map(Some),
        _ if nerdctl::needed_by(scenario) => nerdctl::ready(workspace).map(Some),
        _ if kubernetes::needed_by(scenario) => kubernetes::ready(workspace).map(Some),
        _ => Ok(None),
    }
}

/// A cluster's programs, and Prometheus.
fn with_prometheus(workspace: &Workspace) -> Result<PathBuf> {
    let folders = [kubernetes::ready(workspace)?, ready(workspace, "prometheus", &[PROMETHEUS])?];
    workspace.cached("peers", "rollouts", &format!("{folders:?}"), |folder| {
        for from in &folders {
            output_of(Command::new("cp").arg("-a").arg(format!("{}/.", from.display())).arg(folder))?;
        }
        Ok(())
    })
}

/// The folder with these programs of Debian's packages, and a file `versions` that names the packages.
fn ready(workspace: &Workspace, name: &str, programs: &[(&str, &str)]) -> Result<PathBuf> {
    let rootfs = rootfs::ready(workspace, Suite::Forky)?;
    let recipe = format!("{programs:?} {} {}", rootfs.display(), include_str!("peers.rs"));
    workspace.cached("peers", name, &recipe, |folder| {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let scratch = folder.with_extension("scratch");
        remove_tree(&scratch)?;
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let keyring = rootfs::keyring(&scratch.join("keyring"))?;
        let apt = Apt::of(&rootfs, Suite::Forky.name(), keyring.as_deref(), &scratch.join("apt"))?;
        let mut versions = String::new();
        for (package, program) in programs {
            let deb = apt.download(package)?;
            let unpacked = scratch.join(package);
            output_of(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
            let from = unpacked.join("usr/bin").join(program);
            fs::copy(&from, folder.join(program)).with_context(|| format!("copy {}", from.display()))?;
            let show = "--showformat=${Package} ${Version}\n";
            versions += &output_of(Command::new("dpkg-deb").arg("-W").arg(show).arg(&deb))?;
        }
        fs::write(folder.join("versions"), versions).context("write the versions")?;
        remove_tree(&scratch)
    })
}
