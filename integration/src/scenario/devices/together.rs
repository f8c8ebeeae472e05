//! Devices and capsules in one set, devices that are in use, and those that a capsule declares.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{DENIED, FILES, attached, denied, opens, start, used_by};
use crate::scenario::capsulectl::{done, refused};
use crate::scenario::ctr::ctr;
use crate::scenario::world::until;

pub fn sets() -> Result<String> {
    let container = start("sets", "runc", false)?;
    let mounts = container.mounts()?;
    refused(
        &["attach", "sets", "tool", "--device", "example.com/gpu=0", "--device", "example.com/bad=fails"],
        &["status 3"],
    )?;
    // The capsule comes last, and its target is a file.
    let target = ["attach", "sets", "tool", "--target", "/bin/sh", "--device", "example.com/gpu=0"];
    let line = refused(&target, &["/bin/sh"])?;
    ensure!(container.mounts()? == mounts && attached("sets")?.is_empty(), "half a set is there");
    denied(&container, "none", "<", "/dev/example0", "o such file")?;
    done(&["attach", "sets", "tool", "--device", "example.com/gpu=0", "--device", "example.com/gpu=1"])?;
    ensure!(attached("sets")?.len() == 3, "{:?}", attached("sets")?);
    opens(&container, "zero", "<>", "/dev/example0")?;
    opens(&container, "one", "<", "/dev/example1")?;
    denied(&container, "one-w", "<>", "/dev/example1", DENIED)?;
    container.sh("tool", "cat /opt/tool/version")?;
    // What both share goes with the last.
    done(&["detach", "sets", "--device", "example.com/gpu=0"])?;
    opens(&container, "ctl", "<>", "/dev/examplectl")?;
    container.sh("lib", "cat /usr/lib/example/libexample.so.1")?;
    done(&["detach", "sets", "tool"])?;
    done(&["detach", "sets", "--device", "example.com/gpu=1"])?;
    ensure!(container.mounts()? == mounts && attached("sets")?.is_empty(), "something is left");
    container.remove()?;
    Ok(line)
}

pub fn in_use() -> Result<String> {
    let container = start("used", "crun", false)?;
    done(&["attach", "used", "--device", "example.com/gpu=0"])?;
    container.spawn("holder", &["/bin/sh", "-c", "exec 9<>/dev/example0; exec sleep 1000"])?;
    let mut line = String::new();
    let detach = ["detach", "used", "--device", "example.com/gpu=0"];
    until("the device is held open", || holds_fd_9("used"))?;
    line += &refused(&detach, &["example.com/gpu=0", "(sleep) has /dev/example0 (fd 9)", "--lazy"])?;
    opens(&container, "still", "<>", "/dev/example0")?;
    let said = done(&[&detach[..], &["--lazy"]].concat())?;
    ensure!(said.contains("what is open stays open: in use by sleep"), "{said}");
    denied(&container, "gone", "<", "/dev/example0", "o such file")?;
    container.remove()?;
    Ok(format!("{line} | {}", said.trim()))
}

/// Whether a process of the container's control group has a descriptor 9.
fn holds_fd_9(id: &str) -> Result<bool> {
    let processes = ctr(&["task", "ps", id])?.success("ctr task ps")?;
    let pids = processes.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse::<u32>().ok());
    Ok(pids.into_iter().any(|pid| fs::symlink_metadata(format!("/proc/{pid}/fd/9")).is_ok()))
}

pub fn declared() -> Result<String> {
    let tree = format!("{FILES}/cuda");
    fs::create_dir_all(&tree).context("a tree")?;
    let toml = "name = 'cuda'\nversion = '1'\ntarget = '/opt/cuda'\ndevices = ['example.com/gpu=0']\n";
    fs::write(format!("{tree}/capsule.toml"), toml).context("a declaration")?;
    fs::write(format!("{tree}/file"), "cuda").context("a file")?;
    done(&["build", &tree])?;
    fs::write(format!("{tree}/file"), "other").context("a file")?;
    fs::write(format!("{tree}/capsule.toml"), toml.replace("'1'", "'2'").replace("gpu=0", "gpu=1"))
        .context("a declaration")?;
    done(&["build", &tree])?;
    let container = start("cuda", "runc", false)?;
    let mounts = container.mounts()?;
    let said = done(&["attach", "cuda", "cuda@1"])?;
    opens(&container, "open", "<>", "/dev/example0")?;
    used_by("cuda", "example.com/gpu=0", true)?;
    let other = refused(&["upgrade", "cuda", "cuda@2"], &["cuda@2", "other devices", "example.com/gpu=1"])?;
    refused(&["detach", "cuda", "--device", "example.com/gpu=0"], &["by itself", "with cuda"])?;
    done(&["detach", "cuda", "cuda"])?;
    denied(&container, "gone", "<", "/dev/example0", "o such file")?;
    ensure!(container.mounts()? == mounts, "the mount table is another one");
    container.remove()?;
    Ok(format!("{} | {other}", said.trim()))
}
