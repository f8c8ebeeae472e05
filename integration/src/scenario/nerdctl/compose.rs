//! `nerdctl compose`: on containerd's own snapshotter and runtime first, and then on ours, with capsules.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::client::done as nerdctl_done;
use super::{node, until};
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::{OURS, Stack};

const FOLDER: &str = "/srv/compose";
/// What a service with capsules names, and what is on no other runtime.
const CAPSULES: &str = "    annotations:\n      resourcecapsules.io/attach: lib@1\n";

/// One service with a volume, on the stack's runtime, and one on the default.
fn file(stack: Stack) -> String {
    let capsules = if stack == OURS { CAPSULES } else { "" };
    format!(
        "\
services:
  web:
    image: localhost/busybox:latest
    runtime: {}
{capsules}    command: [\"/bin/sh\", \"-c\", \"echo started; cat /opt/lib/version; exec sleep 100000\"]
    volumes:
      - data:/data
  plain:
    image: localhost/busybox:latest
    command: [\"/bin/sleep\", \"100000\"]
volumes:
  data: {{}}
",
        stack.runtime
    )
}

fn compose(stack: Stack, args: &[&str]) -> Result<String> {
    let file = format!("{FOLDER}/compose.yaml");
    let fixed = ["--snapshotter", stack.snapshotter, "compose", "-f", &file, "-p", "shop"];
    nerdctl_done(&[&fixed[..], args].concat())
}

/// From `up` to `down`.
pub fn run(stack: Stack) -> Result<String> {
    fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER}"))?;
    fs::write(format!("{FOLDER}/compose.yaml"), file(stack)).context("write the file")?;
    let before = node()?;
    compose(stack, &["up", "-d"])?;
    let used = used(stack);
    // Whatever became of it, the next stack finds nothing of it.
    let down = compose(stack, &["down", "-v"]);
    let used = used?;
    down?;
    before.is_the_same()?;
    Ok(used)
}

fn used(stack: Stack) -> Result<String> {
    let list = compose(stack, &["ps", "--format", "json"])?;
    ensure!(list.contains("shop-web-1") && list.contains("shop-plain-1"), "{list}");
    until("in its log: started", || Ok(compose(stack, &["logs", "--no-color", "web"])?.contains("started")))?;
    let exec = |script: &str| compose(stack, &["exec", "-T", "web", "/bin/sh", "-c", script]);
    ensure!(exec("echo kept > /data/file; cat /data/file")? == "kept", "the volume");
    // Services find each other by their names.
    exec("ping -c 1 -W 5 plain")?;
    if stack == OURS {
        capsules(&exec)?;
    }
    compose(stack, &["restart", "-t", "0", "web"])?;
    until("running again", || Ok(exec("true").is_ok()))?;
    ensure!(exec("cat /data/file")? == "kept", "the volume after a restart");
    if stack == OURS {
        let shown = json(&["ps", "shop-web-1"])?;
        let labels: Vec<String> = shown["attachments"].as_array().into_iter().flatten().map(label).collect();
        ensure!(labels == ["lib@2", "tool@1"], "after a restart: {labels:?}");
        ensure!(exec("cat /opt/lib/version /opt/tool/version")? == "21", "after a restart");
    }
    Ok(list.lines().next().unwrap_or_default().chars().take(60).collect())
}

fn label(one: &serde_json::Value) -> String {
    format!("{}@{}", one["capsule"].as_str().unwrap_or_default(), one["version"].as_str().unwrap_or_default())
}

fn capsules(exec: &impl Fn(&str) -> Result<String>) -> Result<()> {
    ensure!(exec("cat /opt/lib/version")? == "1", "what the annotation names");
    done(&["attach", "shop-web-1", "tool"])?;
    done(&["upgrade", "shop-web-1", "lib"])?;
    ensure!(exec("cat /opt/lib/version /opt/tool/version")? == "21", "what was attached and upgraded");
    refused(&["attach", "shop-plain-1", "tool"], &["io.containerd.runc.v2"]).map(drop)
}
