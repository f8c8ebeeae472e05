//! What becomes of devices when capsuled or the container's task ends.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{FILES, SPEC, attached, denied, opens, start};
use crate::scenario::capsulectl::done;
use crate::scenario::ctr::{Container, ctr};
use crate::scenario::world::{World, until};

pub fn tasks(world: &mut World) -> Result<String> {
    let container = start("again", "runc", false)?;
    done(&["attach", "again", "--device", "example.com/gpu=0"])?;
    world.kill_capsuled()?;
    opens(&container, "alone", "<>", "/dev/example0")?;
    world.restart_capsuled()?;
    ensure!(attached("again")?.len() == 1, "{:?}", attached("again")?);
    // Whatever the spec says by now.
    fs::write("/etc/cdi/example.yaml", SPEC.replace("/dev/example0", "/dev/other0")).context("a spec")?;
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", "again"])?;
    until("it waits", || Ok(attached("again")?.first().is_some_and(|a| a["state"] == "waiting")))?;
    ctr(&["task", "start", "-d", "--null-io", "again"])?.success("ctr task start")?;
    container.wait_for("RUNNING")?;
    opens(&container, "next", "<>", "/dev/example0")?;
    fs::write("/etc/cdi/example.yaml", SPEC).context("a spec")?;
    let gone = without_a_library(&container)?;
    let told = done(&["events", "--no-follow", "--all"])?;
    let of_it = |line: &&str| line.contains("restored") && line.contains("default/again");
    let line = told.lines().find(of_it).context("no event of it")?.to_owned();
    ensure!(line.contains("example.com/gpu=0"), "{line}");
    container.remove()?;
    Ok(format!("{line} | {gone}"))
}

/// A library that the spec has named is gone when the next task comes, as after a change of the driver: that is said, with what to do.
fn without_a_library(container: &Container) -> Result<String> {
    let (library, away) = (format!("{FILES}/libexample.so.1"), format!("{FILES}/away"));
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", "again"])?;
    fs::rename(&library, &away).context("take a library away")?;
    let start = || ctr(&["task", "start", "-d", "--null-io", "again"]);
    let output = start()?;
    let advice = "capsulectl detach default/again --device example.com/gpu=0";
    ensure!(output.code != 0, "it starts without {library}");
    for word in ["example.com/gpu=0", &format!("the node has no {library}"), "CDI spec", advice] {
        ensure!(output.err.contains(word), "does not name {word:?}: {}", output.err);
    }
    ensure!(container.task()?.is_none_or(|(_, status)| status != "RUNNING"), "it runs");
    ensure!(attached("again")?.first().is_some_and(|a| a["state"] == "waiting"), "{:?}", attached("again")?);
    // As it says.
    done(&advice.split(' ').skip(1).collect::<Vec<_>>())?;
    if container.task()?.is_some() {
        ctr(&["task", "rm", "-f", "again"])?.success("ctr task rm")?;
    }
    start()?.success("ctr task start")?;
    container.wait_for("RUNNING")?;
    denied(container, "without", "<", "/dev/example0", "o such file")?;
    fs::rename(&away, &library).context("put a library back")?;
    Ok(output.err.trim().to_owned())
}
