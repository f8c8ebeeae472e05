//! Device programs, of the container's own rules and of others: what is attached is allowed beside them, and nothing else changes.

use anyhow::Result;

use super::{MATRIX, prepare, rules, strangers, told_as};
use crate::event::Reporter;
use crate::scenario::ctr::OURS;
use crate::scenario::world::{World, with_logs};

/// Runs every case. Needs control groups of version 2.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and specs are there", || {
        OURS.import()?;
        prepare()?;
        rules::prepare().map(|()| ((), String::new()))
    })?;
    for (binary, systemd) in MATRIX {
        // With systemd's driver, which makes a program of its own whatever the rules, the most.
        for count in rules::COUNTS.into_iter().skip(if systemd { rules::COUNTS.len() - 1 } else { 0 }) {
            let case = format!("{}: beside {count} rules of its own", told_as(binary, systemd));
            reporter.check(&case, || rules::life(binary, systemd, count));
        }
    }
    reporter.check("a stranger's program is kept behind a device, and told", strangers::kept);
    reporter.check("what a stranger takes is back within seconds, and told", strangers::repaired);
    reporter.check("with refuse_foreign_programs a stranger decides", || strangers::refusing(&mut world));
    world.stop()
}
