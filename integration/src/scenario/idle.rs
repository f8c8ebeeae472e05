//! A capsuled that nobody uses ends, and the next call starts it: systemd holds its socket, and containers go on.
//!
//! For a machine with systemd, containerd and the units as they are shipped, in which nothing is attached.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::boots::systemctl;
use super::capsulectl::done;
use super::ctr::{OURS, ctr, run as run_program};
use super::sets::publish;
use super::world::within;
use crate::event::Reporter;

const CONFIG: &str = "/etc/capsule/config.toml";
const NEVER: &str = "idle_stop = \"0s\"";
const SOON: &str = "idle_stop = \"4s\"";
/// The same, to wait for.
const TIME: Duration = Duration::from_secs(4);
/// Where processors are emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lets capsuled end when it is idle, and has it called; afterwards it is as it was.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let shipped = fs::read_to_string(CONFIG).context(CONFIG)?;
    let idle = reporter.must("a container runs, and capsuled may end when it is idle", || {
        ensure!(shipped.contains(NEVER), "{CONFIG} does not say {NEVER}");
        let idle = OURS.start("idle", &[], &["/bin/sleep", "100000"])?;
        configure(&shipped.replacen(NEVER, SOON, 1))?;
        Ok((idle, String::new()))
    })?;
    reporter.check("nobody uses capsuled: it ends, its socket stays, the container goes on", || {
        ended()?;
        let result = systemctl(&["show", "--property=Result", "--value", "capsuled.service"])?;
        ensure!(result.trim() == "success", "its unit says {result:?}");
        systemctl(&["is-active", "capsuled.socket"])?;
        idle.sh("alone", "echo goes on")
    });
    reporter.check("the next call of capsulectl starts it", || {
        ended()?;
        // Answered by one that has ended since it was asked last, or not at all.
        done(&["ls"])
    });
    reporter.check("so does the next of containerd's", || {
        ended()?;
        // containerd gives a new connection a second to be answered, and tries again then.
        within(PATIENCE, "a listing by containerd", || {
            Ok(ctr(&["snapshots", "--snapshotter", "capsule", "ls"])?.code == 0)
        })?;
        OURS.run_once("after-idle", &["/bin/echo", "started"], b"")?.success("ctr run")
    });
    reporter.check("what is attached keeps it", || {
        publish("idle-lib@1", &[])?;
        done(&["attach", "idle", "idle-lib"])?;
        let before = pid()?;
        sleep(3 * TIME);
        let after = pid()?;
        ensure!(before == after && after != "0", "process {before}, then {after}");
        done(&["detach", "idle", "idle-lib"])?;
        ended()?;
        Ok(format!("process {before}"))
    });
    drop(idle);
    configure(&shipped)
}

fn configure(text: &str) -> Result<()> {
    fs::write(CONFIG, text).context(CONFIG)?;
    systemctl(&["restart", "capsuled.service"]).map(drop)
}

/// Waits until capsuled has ended.
fn ended() -> Result<()> {
    within(PATIENCE, "an end of capsuled", || {
        Ok(run_program("systemctl", &["is-active", "capsuled.service"], b"")?.out.trim() == "inactive")
    })
}

fn pid() -> Result<String> {
    Ok(systemctl(&["show", "--property=MainPID", "--value", "capsuled.service"])?.trim().to_owned())
}
