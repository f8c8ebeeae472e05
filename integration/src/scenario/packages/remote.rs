//! The remote API by the package's unit, which an administrator switches on.

use std::fs;

use anyhow::{Context as _, Result};

use super::node::{CONFIG, process};
use crate::scenario::boots::systemctl;
use crate::scenario::capsulectl::done;

/// Its program, and its unit.
pub const NAME: &str = "capsule-remote";
/// Made by [`switched_on`].
pub const CERTIFICATES: &str = "/etc/capsule/remote";
const ADDRESS: &str = "127.0.0.1:7443";
const FILE: &str = "/root/ada.yml";

/// Configured, enabled and started as docs/remote.md says, and called by a client file.
pub fn switched_on() -> Result<String> {
    let text = fs::read_to_string(CONFIG).context(CONFIG)?;
    let on = text.replace("address = \"none\"", &format!("address = \"{ADDRESS}\""));
    fs::write(CONFIG, on).context(CONFIG)?;
    done(&["certs", "init", "--host", "127.0.0.1"])?;
    done(&["certs", "issue", "ada", "--role", "admin", "--to", &format!("node1={ADDRESS}"), "--file", FILE])?;
    systemctl(&["enable", "--now", NAME])?;
    called()?;
    Ok(format!("process {}", process(NAME)?))
}

/// It answers a client file.
pub fn called() -> Result<String> {
    done(&["--config", FILE, "ls"])
}
