//! nerdctl, as its own command line drives it: on containerd's own snapshotter and runtime first, for what both have.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`client`] | nothing: containers as `nerdctl` drives them |
//! | [`everyday`] | what nerdctl does every day, on any stack |
//! | [`compose`] | the same of `nerdctl compose` |
//! | [`lasts`] | what is attached outlives restarts, and ends with the container |
//! | [`asked`] | names, annotations, and refusals |

mod asked;
mod client;
mod compose;
mod everyday;
mod lasts;

use std::time::Duration;

use anyhow::Result;

use super::ctr::{OURS, REFERENCE, SNAPSHOTTER, Stack};
use super::left::{Node, Places};
use super::sets::publish;
use super::world::{World, with_logs, within};
use super::{job, others};
use crate::event::Reporter;
use crate::nerdctl;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// A folder of the node's.
const FILES: &str = "/srv/nerdctl";

const PLACES: Places = Places {
    namespace: "default",
    folders: &[
        "/run/netns",
        "/var/lib/nerdctl/*/containers/default",
        "/var/lib/nerdctl/*/names/default",
        "/var/lib/nerdctl/*/etchosts/default",
    ],
};

/// What the node has now that goes with nerdctl's containers.
fn node() -> Result<Node> {
    Node::now(&PLACES)
}

/// containerd's monitor takes its time before it starts the same container again.
const PATIENCE: Duration = Duration::from_secs(90);

fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, is)
}

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start_with(true, others::MONITOR)?;
    reporter.must("nerdctl, an image and capsules are there", || {
        nerdctl::install()?;
        everyday::prepare()?;
        for stack in [REFERENCE, OURS] {
            client::load(stack)?;
        }
        for label in ["lib@1", "lib@2", "tool@1", "late@1"] {
            publish(label, &[])?;
        }
        Ok(((), client::done(&["--version"])?))
    })?;
    for stack in [REFERENCE, SNAPSHOTTER, OURS] {
        everyday(reporter, stack);
    }
    job::run::<client::Container>(reporter, &PLACES)?;
    reporter.check("restart, stop and start keep what is attached", lasts::restarts);
    reporter.check("a restart policy keeps it", lasts::policy);
    reporter.check("so do restarts of capsuled and containerd", || lasts::daemons(&mut world));
    reporter.check("and of the node", || lasts::reboot(&mut world));
    reporter.check("rm ends it, and leaves nothing", lasts::removed);
    reporter.check("a container is found by its name, and by the beginning of its id", asked::names);
    reporter.check("a name is the newest container's", asked::same_name);
    reporter.check("a name may be of two namespaces", asked::namespaces);
    reporter.check("capsules are switched on and off for each container", asked::on_and_off);
    reporter.check("a wrong annotation is said, and leaves nothing", asked::mistakes);
    world.stop()
}

type Case = fn(Stack) -> Result<String>;

fn everyday(reporter: &mut Reporter, stack: Stack) {
    let cases: [(&str, Case); 6] = [
        ("output, execs, volumes, restart, stop and start", everyday::lives),
        ("containers in the foreground", everyday::ends),
        ("a restart policy", everyday::policy),
        ("nerdctl's own network, and a published port", everyday::network),
        ("a device by its CDI name", everyday::device),
        ("compose", compose::run),
    ];
    for (what, case) in cases {
        reporter.check(&format!("{}: {what}", stack.name), || case(stack));
    }
}
