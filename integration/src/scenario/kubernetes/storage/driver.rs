//! The driver's program, beside a kubelet.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::DRIVER;
use crate::scenario::capsulectl::json;
use crate::scenario::kubernetes::files::{NODE, file};
use crate::scenario::kubernetes::kubectl::{administer, get};
use crate::scenario::kubernetes::until;
use crate::scenario::world::{Daemon, path};

const ENDPOINT: &str = "/var/lib/kubelet/plugins/csi.resourcecapsules.io/csi.sock";
const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.resourcecapsules.io-reg.sock";

/// `capsule-controller csi`; it is killed when this is dropped.
pub struct Driver(Option<Daemon>);

impl Driver {
    /// Starts it, and tells the cluster of it.
    pub fn start() -> Result<Self> {
        administer("kubectl", &["apply", "-f", "/payload/configs/kustomize/csi.yaml"])?;
        for socket in [ENDPOINT, REGISTRATION] {
            let folder = std::path::Path::new(socket).parent().context("a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let mut driver = Self(None);
        driver.start_again()?;
        Ok(driver)
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |mut daemon| daemon.kill())
    }

    /// Starts one that was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new("capsule-controller");
        let words = [
            "csi",
            "--node",
            NODE,
            "--endpoint",
            ENDPOINT,
            "--kubelet-endpoint",
            ENDPOINT,
            "--registration",
            REGISTRATION,
            "--current-versions",
        ];
        command.args(words).env("PATH", path()).env("KUBECONFIG", file("admin.conf"));
        self.0 = Some(Daemon::start("capsule-csi", &mut command)?);
        Ok(())
    }

    /// Both.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }
}

/// The kubelet has told the cluster of it; what it says.
pub fn is_registered() -> Result<String> {
    let drivers = || get(&["csinode", NODE]);
    until("the driver registered", || Ok(drivers()?["spec"]["drivers"].to_string().contains(DRIVER)))?;
    until("where volumes can be, on the node", || {
        Ok(get(&["node", NODE])?["metadata"]["labels"]["topology.resourcecapsules.io/node"] == NODE)
    })?;
    Ok(drivers()?["spec"]["drivers"].to_string())
}

/// What capsuled has of volumes.
pub fn volumes() -> Result<Vec<Value>> {
    let list = json(&["volumes"])?;
    list["volumes"].as_array().cloned().context("volumes")
}
