//! The snapshotter's conformance suite, by the client that every other backend has, against a real containerd: its own
//! overlayfs, so that each expectation is proved, and ours behind it.

use std::path::Path;

use anyhow::{Result, ensure};

use super::ctr::{REFERENCE, SNAPSHOTTER, run as run_program};
use super::world::{CONTAINERD_SOCKET, World, send_logs};
use crate::event::Reporter;
use crate::payload::SUITE;

/// Runs the suite on both.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    for stack in [REFERENCE, SNAPSHOTTER] {
        on(reporter, stack.snapshotter)?;
    }
    if !reporter.all_ok() {
        send_logs(reporter);
    }
    world.stop()
}

/// One step for each scenario of the suite.
fn on(reporter: &mut Reporter, snapshotter: &str) -> Result<()> {
    let output = reporter.must(&format!("{snapshotter}: the suite ran to its end"), || {
        let program = Path::new("/payload/bin").join(SUITE);
        ensure!(program.exists(), "the machine was given no {SUITE}: run `make suite` first");
        let socket = format!("CAPSULE_TEST_CONTAINERD={CONTAINERD_SOCKET}");
        let snapshotter = format!("CAPSULE_TEST_SNAPSHOTTER={snapshotter}");
        let args = [&socket, &snapshotter, SUITE, "--ignored", "--exact", "reference", "--nocapture"];
        let output = run_program("env", &args, b"")?;
        ensure!(output.out.contains("running 1 test\n"), "{} {}", output.out, output.err);
        Ok((output, String::new()))
    })?;
    let outcomes = outcomes(&output.err);
    for (name, ok) in &outcomes {
        reporter.check(&format!("{snapshotter}: {name}"), || {
            ensure!(*ok, "{}", output.err);
            Ok(String::new())
        });
    }
    reporter.check(&format!("{snapshotter}: the suite holds"), || {
        ensure!(output.code == 0, "exit status {}: {} {}", output.code, output.out, output.err);
        ensure!(!outcomes.is_empty(), "no scenario was run: {}", output.err);
        Ok(format!("{} scenarios", outcomes.len()))
    });
    Ok(())
}

/// The names in lines like `reference: NAME ... ok`.
fn outcomes(report: &str) -> Vec<(&str, bool)> {
    let lines = report.lines().filter_map(|line| line.strip_prefix("reference: ")?.split_once(" ... "));
    lines.map(|(name, outcome)| (name, outcome == "ok")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_the_report() {
        let report = "reference: a ... ok\nthread panicked\nreference: b ... FAILED\n";
        assert_eq!(outcomes(report), [("a", true), ("b", false)]);
    }
}
