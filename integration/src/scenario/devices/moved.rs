//! A set with limits and a device that moves to other versions and back, and goes, of which a daemon is killed in the middle: all of it is
//! of one version afterwards, or gone.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::cut::pids_max;
use super::{FILES, open, start};
use crate::scenario::capsulectl::{Seen, capsulectl, done, ps};
use crate::scenario::ctr::Container;
use crate::scenario::reboot::{kill, shim_of};
use crate::scenario::world::{World, until};

/// How often each daemon is killed in the middle of a move, and of a detach, at moments spread over the time that it takes.
const ROUNDS: u32 = 2;
const ID: &str = "moved";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Capsuled,
    Shim,
}

pub fn sets(world: &mut World) -> Result<String> {
    for (version, cap) in [("1", 50), ("2", 70)] {
        declare("under", version, "")?;
        let more = format!(
            "requires = ['under ={version}']\ndevices = ['example.com/gpu=0']\n[caps]\n'pids.max' = {cap}\n"
        );
        declare("over", version, &more)?;
    }
    let container = start(ID, "runc", false)?;
    done(&["attach", ID, "over@1"])?;
    ensure!(whole(&container)? == Some(1), "the set is not there: {:?}", look(&container)?);
    let mut told = Vec::new();
    for victim in [Victim::Capsuled, Victim::Shim] {
        told.push(format!("{victim:?} killed: {}", moves(world, &container, victim)?));
    }
    container.remove()?;
    Ok(told.join("; "))
}

/// Publishes a version whose file says which it is.
fn declare(name: &str, version: &str, more: &str) -> Result<()> {
    let tree = format!("{FILES}/{name}@{version}");
    fs::create_dir_all(&tree).context("a tree")?;
    let toml = format!("name = '{name}'\nversion = '{version}'\ntarget = '/opt/{name}'\n{more}");
    fs::write(format!("{tree}/capsule.toml"), toml).context("a declaration")?;
    fs::write(format!("{tree}/version"), version).context("a file")?;
    done(&["build", &tree]).map(drop)
}

/// Upgrades and rollbacks, then detaches; what came of them.
fn moves(world: &mut World, container: &Container, victim: Victim) -> Result<String> {
    let (mut moved, mut gone) = (0, 0);
    let mut at = whole(container)?.context("the set is not there")?;
    let began = Instant::now();
    done(&to_other(at))?;
    let takes = began.elapsed();
    at = settled(container)?.context("an upgrade has taken it away")?;
    for round in 0..ROUNDS {
        cut(world, container, victim, &to_other(at), takes * round / ROUNDS)?;
        let now = settled(container)?.context("a move has taken it away")?;
        moved += u32::from(now != at);
        at = now;
    }
    for round in 0..ROUNDS {
        cut(world, container, victim, &["detach", ID, "over"], takes * round / ROUNDS)?;
        match settled(container)? {
            Some(now) => ensure!(now == at, "a detach has moved it from {at} to {now}"),
            None => {
                gone += 1;
                done(&["detach", ID, "under"])?;
                done(&["attach", ID, "over@1"])?;
                at = settled(container)?.context("an attach is not there")?;
            }
        }
    }
    Ok(format!("{moved} of {ROUNDS} moved, {gone} of {ROUNDS} gone; {takes:?} uncut"))
}

fn to_other(at: u32) -> [&'static str; 3] {
    if at == 1 { ["upgrade", ID, "over"] } else { ["rollback", ID, "over"] }
}

/// Kills one so long after the call has begun, and has it, or the container's next task, started again.
fn cut(
    world: &mut World,
    container: &Container,
    victim: Victim,
    call: &[&'static str; 3],
    after: Duration,
) -> Result<()> {
    let call = *call;
    let caller = thread::spawn(move || capsulectl(&call));
    thread::sleep(after);
    match victim {
        Victim::Capsuled => world.kill_capsuled()?,
        Victim::Shim => kill(shim_of(container)?)?,
    }
    caller.join().map_err(|_| anyhow!("the caller's thread"))??;
    match victim {
        Victim::Capsuled => world.restart_capsuled_alone(),
        Victim::Shim => container.start_again(),
    }
}

/// Waits until it is of one version, or gone, as a whole.
fn settled(container: &Container) -> Result<Option<u32>> {
    let waited = until("a set of one version, or nothing of it", || Ok(whole(container).is_ok()));
    waited.with_context(|| format!("{:?}", look(container)))?;
    whole(container)
}

/// The version that all of it has, `None` where `over` is gone with all that it brought; an error where it is something between.
fn whole(container: &Container) -> Result<Option<u32>> {
    let seen = look(container)?;
    for version in [1, 2] {
        let text = version.to_string();
        let cap = if version == 1 { "50" } else { "70" };
        let is = Look {
            under: text.clone(),
            over: text.clone(),
            device: true,
            pids: cap.to_owned(),
            listed: vec![format!("over@{version}"), format!("under@{version}")],
        };
        if seen == is {
            return Ok(Some(version));
        }
    }
    let is_gone = seen.over.is_empty() && !seen.device && seen.pids == "max";
    if is_gone && seen.listed == [format!("under@{}", seen.under)] { Ok(None) } else { bail!("{seen:?}") }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    under: String,
    over: String,
    device: bool,
    pids: String,
    listed: Vec<String>,
}

/// What the container has, and what capsuled says that it has.
fn look(container: &Container) -> Result<Look> {
    let pid = container.pid()?;
    let file =
        |name: &str| fs::read_to_string(format!("/proc/{pid}/root/opt/{name}/version")).unwrap_or_default();
    let all: Vec<Seen> = ps()?.into_iter().filter(|seen| seen.container == ID).collect();
    let mut listed: Vec<String> = all.iter().map(|one| format!("{}@{}", one.capsule, one.version)).collect();
    listed.sort();
    Ok(Look {
        under: file("under"),
        over: file("over"),
        device: open(container, "look", "<", "/dev/example0")?.is_ok(),
        pids: pids_max(container)?,
        listed,
    })
}
