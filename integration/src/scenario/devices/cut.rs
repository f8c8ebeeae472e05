//! A set of everything (capsules, what one requires, its devices, its limits, and a device by itself) of which a daemon is killed in the
//! middle: all of it is there afterwards, or none.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{FILES, attached, open, start};
use crate::scenario::capsulectl::{capsulectl, done};
use crate::scenario::ctr::Container;
use crate::scenario::reboot::{kill, shim_of};
use crate::scenario::world::{World, until};

/// How often each daemon is killed, at moments spread over the time that an attach takes.
const ROUNDS: u32 = 6;
const ATTACH: [&str; 5] = ["attach", "cut", "heavy", "--device", "example.com/gpu=1"];
/// What the call attaches: `tool`, which `heavy` requires, `heavy`, and the device.
const WHOLE: usize = 3;

pub fn sets(world: &mut World) -> Result<String> {
    let tree = format!("{FILES}/heavy");
    fs::create_dir_all(&tree).context("a tree")?;
    let toml = "name = 'heavy'\nversion = '1'\ntarget = '/opt/heavy'\nrequires = ['tool']\n\
        devices = ['example.com/gpu=0']\n[caps]\n'pids.max' = 50\n";
    fs::write(format!("{tree}/capsule.toml"), toml).context("a declaration")?;
    fs::write(format!("{tree}/file"), "heavy").context("a file")?;
    done(&["build", &tree])?;
    let container = start("cut", "runc", false)?;
    let began = Instant::now();
    done(&ATTACH)?;
    let takes = began.elapsed();
    ensure!(whole(&container)?, "the set is not there");
    take_away(&container)?;

    let capsuled = rounds(takes, |delay| {
        let caller = thread::spawn(|| capsulectl(&ATTACH));
        thread::sleep(delay);
        world.kill_capsuled()?;
        caller.join().map_err(|_| anyhow!("the caller's thread"))??;
        world.restart_capsuled()?;
        settled(&container)
    })?;
    let shims = rounds(takes, |delay| {
        let caller = thread::spawn(|| capsulectl(&ATTACH));
        thread::sleep(delay);
        kill(shim_of(&container)?)?;
        caller.join().map_err(|_| anyhow!("the caller's thread"))??;
        container.start_again()?;
        settled(&container)
    })?;
    container.remove()?;
    Ok(format!("{takes:?} uncut; capsuled killed: {capsuled}; the shim killed: {shims}"))
}

/// How many of the sets were there afterwards.
fn rounds(takes: Duration, mut cut: impl FnMut(Duration) -> Result<bool>) -> Result<String> {
    let mut there = 0;
    for round in 0..ROUNDS {
        let delay = takes * round / ROUNDS;
        there += u32::from(cut(delay).with_context(|| format!("killed after {delay:?}"))?);
    }
    Ok(format!("{there} of {ROUNDS} there"))
}

/// Waits until it is there, or not, as a whole; takes it away then.
fn settled(container: &Container) -> Result<bool> {
    until("a whole set, or nothing of it", || match attached("cut")?.len() {
        0 => none(container),
        WHOLE => whole(container),
        _ => Ok(false),
    })?;
    let is_whole = whole(container)?;
    if is_whole {
        take_away(container)?;
    }
    Ok(is_whole)
}

fn take_away(container: &Container) -> Result<()> {
    done(&["detach", "cut", "--device", "example.com/gpu=1"])?;
    done(&["detach", "cut", "heavy"])?;
    done(&["detach", "cut", "tool"])?;
    ensure!(none(container)?, "something is left: {:?}", seen(container)?);
    Ok(())
}

fn whole(container: &Container) -> Result<bool> {
    Ok(seen(container)?.iter().all(|(_, there)| *there))
}

fn none(container: &Container) -> Result<bool> {
    Ok(seen(container)?.iter().all(|(_, there)| !there))
}

/// What of it the container has.
fn seen(container: &Container) -> Result<[(&'static str, bool); 5]> {
    let pid = container.pid()?;
    let file = |path: &str| fs::symlink_metadata(format!("/proc/{pid}/root{path}")).is_ok();
    // A shell that opens for writing makes what is missing.
    let opened = |exec: &str, path: &str| Ok::<_, anyhow::Error>(open(container, exec, "<", path)?.is_ok());
    Ok([
        ("tool", file("/opt/tool/version")),
        ("heavy", file("/opt/heavy/file")),
        ("its device", opened("see-0", "/dev/example0")?),
        ("the device", opened("see-1", "/dev/example1")?),
        ("its cap", pids_max(container)? == "50"),
    ])
}

pub(super) fn pids_max(container: &Container) -> Result<String> {
    let group =
        fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?)).context("its control group")?;
    let group = group.trim().strip_prefix("0::/").context("a unified control group")?;
    let limit = fs::read_to_string(format!("/sys/fs/cgroup/{group}/pids.max")).context("pids.max")?;
    Ok(limit.trim().to_owned())
}
