//! The machine itself starts anew, with systemd and the units as they are shipped: once in order, and once as if its power
//! had been cut.
//!
//! A scenario that boots is started by each boot ([`SCENARIOS`]). What it has done is in a file on the disk, which the
//! machine keeps: qemu goes on, with what its disk was told.

mod node;
mod profiles;
mod proofs;

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

pub(super) use self::node::systemctl;
use self::node::{AUTO, HAND};
use super::capsulectl::done;
use super::ctr::{Container, OURS};
use super::follow::last;
use super::idle;
use super::sets::publish;
use crate::event::{Event, Reporter};
use crate::workspace::output_of;

/// Scenarios in whose machines a restart is no end.
pub const SCENARIOS: [&str; 2] = ["reboot", "systemd"];

/// On the machine's disk: what the boots before were about.
const SO_FAR: &str = "/var/lib/capsule-testbed.json";

/// What lasts from one boot to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SoFar {
    /// Boots that are over.
    boots: u32,
    /// The number of the last event that was told.
    event: u64,
}

/// Does what this boot is for. `first` is done in the first boot, before all else.
pub fn run(reporter: &mut Reporter, first: impl FnOnce(&mut Reporter) -> Result<()>) -> Result<()> {
    let so_far: SoFar = match fs::read_to_string(SO_FAR) {
        Ok(text) => serde_json::from_str(&text).context(SO_FAR)?,
        Err(_) => SoFar::default(),
    };
    let outcome = match so_far.boots {
        0 => first(reporter)
            .and_then(|()| prepared(reporter))
            .and_then(|()| leave(reporter, &SoFar { boots: 1, event: event()? }, in_order)),
        1 => after_the_first(reporter, &so_far)
            .and_then(|()| leave(reporter, &SoFar { boots: 2, event: event()? }, without_power)),
        2 => after_the_second(reporter, &so_far),
        more => bail!("boot {more}: a machine does not come to an end"),
    };
    if outcome.is_err() || !reporter.all_ok() {
        send_journal(reporter);
    }
    outcome
}

/// Writes down where it is, and ends this boot.
fn leave(reporter: &mut Reporter, so_far: &SoFar, how: fn() -> Result<()>) -> Result<()> {
    if !reporter.all_ok() {
        send_journal(reporter);
    }
    let mut file = File::create(SO_FAR).context(SO_FAR)?;
    file.write_all(&serde_json::to_vec(so_far)?).and_then(|()| file.sync_all()).context(SO_FAR)?;
    File::open("/var/lib").and_then(|folder| folder.sync_all()).context("/var/lib")?;
    how()?;
    loop {
        std::thread::park();
    }
}

/// As `reboot` does it: daemons end, file systems are unmounted. This program is ended, too, which is no reason to stop.
fn in_order() -> Result<()> {
    let drop_in = "/run/systemd/system/capsule-testbed.service.d";
    fs::create_dir_all(drop_in).context(drop_in)?;
    fs::write(format!("{drop_in}/reboot.conf"), "[Unit]\nSuccessAction=none\nFailureAction=none\n")
        .context(drop_in)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["--no-block", "reboot"]).map(drop)
}

/// Nothing ends, and nothing is written that was not written yet.
fn without_power() -> Result<()> {
    fs::write("/proc/sysrq-trigger", "b").context("/proc/sysrq-trigger")
}

fn event() -> Result<u64> {
    last()?.parse().context("a number")
}

/// What [`prepared`] does of capsule-remote and of the profiles, alone.
pub fn remote(reporter: &mut Reporter) -> Result<()> {
    reporter.must("containerd and capsuled are installed, and run", || {
        node::install()?;
        Ok(((), node::wait()?))
    })?;
    reporter.check(REMOTE, node::remote);
    reporter.check(PROFILES, profiles::each);
    Ok(())
}

const PROFILES: &str =
    "capsulectl profile: each of them, as the configuration and systemd say it, and one that is refused";
const REMOTE: &str = "capsule-remote serves under its unit, and not where it is switched off";

/// Two containers with attachments of every kind, one of which containerd starts again by itself.
fn prepared(reporter: &mut Reporter) -> Result<()> {
    reporter.must("containerd and capsuled are installed, and run", || {
        node::install()?;
        node::wait()?;
        OURS.import()?;
        for label in ["lib@1", "lib@2", "tool@1"] {
            publish(label, &[])?;
        }
        done(&["tag", "lib@1", "stable"])?;
        Ok(((), String::new()))
    })?;
    reporter.check(REMOTE, node::remote);
    reporter.check(PROFILES, profiles::each);
    idle::run(reporter)?;
    reporter.must("two containers have attachments of every kind", || {
        for id in [AUTO, HAND] {
            OURS.start(id, &[], &node::PROGRAM).map(std::mem::forget)?;
        }
        node::start_by_itself(AUTO, true)?;
        for id in [AUTO, HAND] {
            done(&["attach", id, "lib@1"])?;
            done(&["attach", id, "tool", "--mode", "union", "--target", "/bin"])?;
        }
        done(&["upgrade", AUTO, "lib"])?;
        for (target, more) in [
            ("/opt/sized", &["--persist", "sized", "--size", "8MiB"][..]),
            ("/opt/plain", &["--persist", "plain"]),
            ("/opt/own", &["--writable"]),
        ] {
            done(&[&["attach", HAND, "tool", "--target", target], more].concat())?;
        }
        done(&["attach", HAND, "--device", node::DEVICE])?;
        proofs::written_by_hand("first")?;
        Ok(((), done(&["ps"])?))
    })
}

fn after_the_first(reporter: &mut Reporter, so_far: &SoFar) -> Result<()> {
    reporter.must("after a restart, systemd has started both again", || Ok(((), node::wait()?)))?;
    reporter.check("versions, tags and names are there, and events count on", || proofs::node(so_far.event));
    reporter.check("what containerd starts again has its attachments before its first process", || {
        proofs::container(AUTO, "2", 2, 0)
    });
    reporter.check("so has what is started by hand, with all that it had written", || {
        node::start_again(HAND)?;
        proofs::container(HAND, "1", 5, 1)?;
        proofs::has_written("first")
    });
    reporter.check("and it goes on: back, to another version, away, published", || {
        done(&["rollback", AUTO, "lib"])?;
        done(&["upgrade", HAND, "lib"])?;
        proofs::written_by_hand("second")?;
        done(&["commit", "--upper", "plain", "--version", "of-plain"])?;
        done(&["commit", HAND, "tool", "--target", "/opt/sized", "--version", "of-sized"])?;
        done(&["detach", HAND, "tool", "--target", "/opt/own", "--keep", "own"])?;
        done(&["tag", "lib@2", "stable"])?;
        // The last of all, and acknowledged.
        done(&["attach", HAND, "lib@1", "--target", "/opt/late"])?;
        done(&["ps"])
    });
    Ok(())
}

fn after_the_second(reporter: &mut Reporter, so_far: &SoFar) -> Result<()> {
    reporter.must("after a power cut, systemd has started both again", || Ok(((), node::wait()?)))?;
    reporter.check("versions, tags and names are there, and events still count on", || {
        proofs::node(so_far.event)
    });
    reporter.check("what containerd starts again has what was acknowledged", || {
        proofs::container(AUTO, "1", 2, 0)
    });
    reporter.check("so has what is started by hand, with all that it had written and synced", || {
        node::start_again(HAND)?;
        proofs::container(HAND, "2", 5, 1)?;
        proofs::has_written("second")
    });
    reporter
        .check("and what was published of it, and the tag that moved last", || proofs::published("second"));
    reporter.check("no mount, mark, loop device or directory is there that nothing needs", || {
        proofs::nothing_left(&["sized", "plain", "own"], 2)
    });
    reporter.check("when all is taken away, nothing is left", || {
        node::let_go(AUTO)?;
        for id in [AUTO, HAND] {
            Container { id: id.to_owned() }.remove()?;
        }
        for name in ["sized", "plain", "own"] {
            done(&["uppers", "rm", name])?;
        }
        proofs::nothing_left(&[], 0)
    });
    Ok(())
}

pub(super) fn send_journal(reporter: &mut Reporter) {
    for (unit, lines) in [("capsuled", "60"), ("containerd", "40")] {
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "--boot", "--output=cat", "-n", lines, "-u", unit]);
        let tail = output_of(&mut command).unwrap_or_else(|error| format!("{error:#}"));
        reporter.send(&Event::Log { program: unit.to_owned(), tail });
    }
}
