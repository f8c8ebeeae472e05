//! The files of `configs/kubernetes`, applied as they are.

use anyhow::{Result, ensure};

use super::kubectl::{Pod, done};
use super::until;
use crate::scenario::capsulectl;
use crate::scenario::sets::publish;

const FILES: &str = "/payload/configs/kubernetes";
/// What its annotations name.
const CAPSULES: [&str; 2] = ["tzdata@2026.1", "debug-tools@1"];

/// The RuntimeClass is there before the first pod that names it.
pub fn class() -> Result<String> {
    done(&["apply", "-f", &format!("{FILES}/runtimeclass.yaml")])
}

/// Each container has what the annotations give it.
pub fn pod() -> Result<String> {
    for label in CAPSULES {
        publish(label, &[])?;
    }
    done(&["apply", "-f", &format!("{FILES}/pod.yaml")])?;
    let pod = Pod { name: "web".to_owned() };
    pod.is_ready()?;
    let (app, log) = (pod.member("app")?, pod.member("log")?);
    app.expect(&["debug-tools@1 attached", "tzdata@2026.1 attached"])?;
    log.expect(&["tzdata@2026.1 attached"])?;
    ensure!(app.sh("cat /opt/tzdata/version /opt/debug/version")? == "2026.11", "other files");
    let said = capsulectl::done(&["ps", &log.reference()])?;
    pod.delete()?;
    until("ended", || Ok(capsulectl::ps()?.is_empty()))?;
    for label in CAPSULES {
        capsulectl::done(&["rm", label])?;
    }
    Ok(said.lines().last().unwrap_or_default().to_owned())
}
