//! The storage driver: each call as the specification of CSI has it, and what is at the paths then.

mod controller;
mod driver;
mod kubelet;
mod mounts;
mod node;
mod snapshots;

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::json;
use super::ctr::{OURS, REFERENCE};
use super::sets::publish;
use super::world::{World, with_logs};
use crate::event::Reporter;
use driver::Driver;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        REFERENCE.import()?;
        for label in ["tools@1", "tools@2", "other@1"] {
            publish(label, &[])?;
        }
        mounts::prepare()?;
        Ok(((), String::new()))
    })?;
    let before = mount_points()?;
    let mut driver = reporter.must("a driver serves, and needs no capability", || {
        let driver = Driver::start()?;
        let detail = driver.resident()?;
        Ok((driver, detail))
    })?;
    controller::cases(reporter, &driver);
    snapshots::cases(reporter, &driver);
    node::cases(reporter, &driver);
    mounts::cases(reporter, &driver);
    kubelet::cases(reporter, &mut driver, &mut world);
    reporter.check("calls are counted, and each is logged once", || driver.counted());
    reporter.check("nothing is left on the node", || left(&before));
    driver.end()?;
    world.stop()
}

fn mount_points() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    Ok(mounts.lines().map(|line| line.split(' ').nth(4).unwrap_or_default().to_owned()).collect())
}

fn left(before: &[String]) -> Result<String> {
    let new: Vec<_> = mount_points()?.into_iter().filter(|one| !before.contains(one)).collect();
    ensure!(new.is_empty(), "mounts: {new:?}");
    let listed = json(&["volumes"])?;
    ensure!(listed["volumes"].as_array().is_some_and(Vec::is_empty), "volumes: {listed}");
    Ok(String::new())
}
