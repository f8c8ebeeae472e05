//! Pods with users of their own, which a handler by our shim's own type cannot have (docs/kubernetes.md, Pods with users of their own).

use anyhow::{Context as _, Result};
use serde_json::json;

use super::everyday::SLEEP;
use super::kubectl::{Manifest, done as kubectl};
use super::{OURS, until};

/// The kubelet makes no such pod with a handler of which it is not told that it can.
pub fn refused() -> Result<String> {
    let own = |spec: &mut serde_json::Value| spec["hostUsers"] = json!(false);
    let pod = Manifest::new("refused", OURS, &[("app", SLEEP)]).with(own).applied()?;
    let said = || kubectl(&["describe", "pod", "refused"]);
    until("told", || Ok(said()?.contains("user namespaces")))?;
    let said = said()?;
    let line = said.lines().find(|line| line.contains("user namespaces")).context("told no more")?.trim();
    pod.delete()?;
    Ok(line.to_owned())
}
