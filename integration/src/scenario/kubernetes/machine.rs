//! A cluster on a machine with a kernel of its own and control groups of version 2: what no native machine can give a pod that runs.

use anyhow::Result;

use super::asked::{Parts, definitions};
use super::kubectl::done as kubectl;
use super::wanted::given;
use super::{begin, devices, left};
use crate::event::Reporter;
use crate::scenario::world::with_logs;

/// The scenario's name.
pub const SCENARIO: &str = "kubernetes-vm";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, |reporter| {
        let (world, cluster) = begin(reporter)?;
        let mut parts = reporter.must("the two programs start", || {
            definitions()?;
            Ok((Parts::start(&[])?, String::new()))
        })?;
        reporter.check("pods that run have a capsule", given);
        reporter
            .check("devices come with a capsule and go with it, where pods may name them", devices::wanted);
        reporter.check("the agent is killed while devices come and go", || devices::killed(&mut parts));
        reporter.check("all goes, and nothing is left of pods", gone);
        drop((parts, cluster));
        world.stop()
    })
}

fn gone() -> Result<String> {
    kubectl(&["delete", "capsuleattachments", "--all", "--timeout=120s"])?;
    kubectl(&["delete", "deployment", "shelf", "--cascade=foreground", "--timeout=110s"])?;
    left::no_pod().map(|()| String::new())
}
