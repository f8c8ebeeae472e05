//! `doctor`: what is in the way of capsules on this machine, and what to do about it.
//!
//! Each room reads what it is about and judges it; the judging is pure. Nothing is changed, and what is missing (a daemon that
//! does not run, a file that root alone may read) is a finding and never an end.

mod capsuled;
mod configuration;
mod containerd;
mod devices;
mod machine;
mod runtime;

use std::path::Path;

use serde::Serialize;

use self::configuration::{Configured, Cri};
use self::containerd::Containerd;
use crate::host::Settings;
use crate::host::cgroups::Driver;

/// What to do where containerd's configuration lacks something.
const SETUP: &str = "run `capsulectl setup`, then restart containerd";

/// How things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As they should be.
    Ok,
    /// Something that capsules can do will not work.
    Warning,
    /// Capsules do not work.
    Error,
    /// Nobody has looked.
    Skipped,
}

impl State {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name, for programs.
    pub check: &'static str,
    /// How things are.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; `null` when nothing.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), advice: None }
    }

    fn skipped(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Skipped, found: found.into(), advice: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn error(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Error, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything. `address` is capsuled's socket, `settings` its configuration.
pub async fn examine(address: &Path, settings_file: &Path) -> Vec<Finding> {
    let settings = Settings::read(settings_file);
    let program = capsuled::program();
    let capsuled = capsuled::Capsuled::read(address).await;
    let containerd = Containerd::read(&settings.containerd).await;
    let configured = Configured::read(&containerd, &settings.snapshotter).await;
    let mut findings = vec![machine::kernel(program.as_deref()).await, machine::cgroups()];
    findings.push(machine::disk(&settings.root));
    findings.push(capsuled::configuration(program.as_deref(), settings_file).await);
    findings.extend(capsuled.judge(address, &settings));
    findings.extend(containerd.judge(&settings.containerd));
    findings.push(containerd.snapshotter(&settings, address, configured.as_ref().ok()));
    findings.extend(containerd.ids(&settings, configured.as_ref().ok()));
    match &configured {
        Ok(configured) => {
            findings.push(configured.unpack(&settings.snapshotter, containerd.transfer_error()));
            let cri = match (containerd.cri_error(), containerd.runs_cri()) {
                (Some(error), _) => Cri::Failed(error),
                (None, Some(true)) => Cri::On,
                (None, None) if !configured.cri_disabled => Cri::On,
                _ => Cri::Off,
            };
            findings.extend(configured.handler(cri, &settings.snapshotter, Driver::read()));
        }
        Err(reason) => findings.push(Finding::skipped("configuration", reason)),
    }
    findings.extend(runtime::examine(containerd.process.as_ref(), &settings).await);
    findings.extend(devices::examine(&capsuled, &settings));
    findings
}
