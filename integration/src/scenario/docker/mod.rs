//! Docker, as its own command line drives it: on containerd's own snapshotter and runtime first, for what both have.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`client`] | nothing: dockerd, and containers as `docker` drives them |
//! | [`everyday`] | what Docker does every day, on any stack |
//! | [`lasts`] | what is attached outlives what Docker does to its containers, and ends with them |
//! | [`asked`] | names, annotations, and refusals |

mod asked;
mod client;
mod everyday;
mod lasts;

use std::time::Duration;

use anyhow::Result;

use self::client::{SAVED, Setup, done};
use super::ctr::{OURS, REFERENCE, SNAPSHOTTER};
use super::job;
use super::left::{Node, Places};
use super::sets::publish;
use super::world::{World, with_logs, within};
use crate::event::Reporter;
use crate::images::Image;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
const PLACES: Places = Places {
    namespace: client::NAMESPACE,
    folders: &[
        "/run/docker/containerd",
        "/run/docker/netns",
        "/run/docker/runtime-runc/moby",
        "/var/lib/docker/containers",
        "/var/lib/docker/rootfs/capsule",
        "/var/lib/docker/rootfs/overlayfs",
        "/var/lib/docker/volumes",
    ],
};

/// What the node has now that goes with Docker's containers.
fn node() -> Result<Node> {
    Node::now(&PLACES)
}

fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    within(Duration::from_secs(90), what, is)
}

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("capsules are there", || {
        for label in ["lib@1", "lib@2", "tool@1"] {
            publish(label, &[])?;
        }
        Ok(((), String::new()))
    })?;
    let overlayfs = Setup { driver: "overlayfs", ..Setup::OURS };
    let dockerd = reporter.must("dockerd is there, on containerd's overlayfs", || {
        let dockerd = overlayfs.start()?;
        done(&["save", "-o", SAVED, Image::Busybox.name()])?;
        Ok((dockerd, done(&["version", "--format", "{{.Server.Version}}"])?))
    })?;
    everyday(reporter, REFERENCE.name, REFERENCE.runtime);
    reporter.check("on it, what is attached lasts too", || lasts::other_driver(true));
    drop(dockerd);
    let mut dockerd =
        reporter.must("dockerd is there, on ours", || Ok((Setup::OURS.start()?, String::new())))?;
    for stack in [SNAPSHOTTER, OURS] {
        everyday(reporter, stack.name, stack.runtime);
    }
    job::run::<client::Container>(reporter, &PLACES)?;
    reporter.check("a container is found by its name, and by the beginning of its id", asked::names);
    reporter.check("what is told of a container has its name", asked::told);
    reporter.check("a name may be another client's too", asked::clients);
    reporter
        .check("a dockerd that hangs or is away holds up nobody", || asked::hung(&mut world, &mut dockerd));
    reporter.check("capsules are switched on and off for each container", asked::on_and_off);
    reporter.check("a wrong annotation is said, and leaves nothing", asked::mistakes);
    reporter.check("a process that is killed is started again, with what is attached", lasts::policy);
    reporter.check("stop and start: what is attached waits, and can be detached meanwhile", lasts::stopped);
    reporter.check("capsuled and containerd are started anew while a container is stopped", || {
        lasts::daemons(&mut world, &mut dockerd)
    });
    reporter.check("containers outlive a dockerd with live-restore, with what is attached", || {
        lasts::live_restored(&mut dockerd)
    });
    reporter.check("the node restarts", || lasts::reboot(&mut world, &mut dockerd));
    reporter.check("rm ends what is attached, of a stopped container too", || lasts::removed(&mut world));
    drop(dockerd);
    reporter.check("on a storage driver of Docker's own, what is attached ends with a stop", || {
        let vfs = Setup { driver: "vfs", in_containerd: false, ..Setup::OURS };
        let dockerd = vfs.start()?;
        let said = lasts::other_driver(false);
        drop(dockerd);
        said
    });
    world.stop()
}

type Case = fn(&str) -> Result<String>;

fn everyday(reporter: &mut Reporter, stack: &str, runtime: &str) {
    let cases: [(&str, Case); 2] = [
        ("output, execs, volumes, bind mounts, restart, stop and start", everyday::lives),
        ("containers in the foreground", everyday::ends),
    ];
    for (what, case) in cases {
        reporter.check(&format!("{stack}: {what}"), || case(runtime));
    }
}
