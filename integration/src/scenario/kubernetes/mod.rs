//! A cluster of one node, as `kubectl` drives it: a real kubelet makes each pod, on containerd's own runtime first for what both can.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`cluster`] | nothing: it starts the cluster's programs and the node's |
//! | [`files`] | nothing: what they are told |
//! | [`kubectl`] | nothing: pods as `kubectl` drives them |
//! | [`everyday`] | what a kubelet does to pods every day, on either runtime |
//! | [`shipped`] | the files of `configs/kubernetes`, as they are |
//! | [`capsules`] | what annotations name is there from the first process on, and after a restart; mistakes; a rollout |
//! | [`devices`] | devices of pods, by annotation and by a device plugin |
//! | [`plugin`] | nothing: it is a device plugin |
//! | [`users`] | that a pod with `hostUsers: false` is refused for ours by its type |
//! | [`job`] | the main job, by the names that Kubernetes gives |
//! | [`lasts`] | pods go on while the kubelet, containerd and capsuled are restarted |
//! | [`installed`] | a node gets all of it from the cluster, by `configs/kustomize` and by the chart |
//! | [`guarded`] | what the accounts may do that this makes, and what namespaces may have |
//! | [`compared`] | that those two say the same |
//! | [`wanted`] | what `CapsuleAttachment`s ask for, by the controller and the agent |
//! | [`asked`] | nothing: what the cluster is asked for, and the two programs that see to it |
//! | [`kept`] | what `Capsule`s have nodes fetch |
//! | [`rollouts`] | what `CapsuleRollout`s do to 20 pods |
//! | [`storage`] | volumes of pods, by the CSI driver, and what outlives the cluster |
//! | [`large`] | what the controller takes for 5,000 nodes that nobody runs |
//! | [`left`] | that nothing is left of pods |

mod asked;
mod capsules;
mod cluster;
mod compared;
mod conflicts;
mod devices;
mod everyday;
mod files;
mod guarded;
mod installed;
mod job;
mod kept;
mod kubectl;
mod large;
mod lasts;
mod left;
mod machine;
mod pages;
mod plugin;
mod rollouts;
mod shipped;
mod signed;
mod storage;
mod users;
mod wanted;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::cluster::Cluster;
use super::sets::publish;
use super::world::{World, with_logs, within};
use super::{cri, ctr::ctr};
use crate::event::Reporter;
use crate::images::Image;
use crate::kubernetes;

/// The kubelet looks again after some seconds, and waits longer each time after what has failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// The image that configs/kubernetes/pod.yaml names.
const SHIPPED_IMAGE: &str = "docker.io/library/busybox:1.37";
const CONFIG: &str = "/etc/capsule/config.toml";
/// What a pod is given by the name of a device.
const SPEC: &str = "/etc/cdi/example.yaml";

pub use self::installed::run as run_by_image;
pub use self::large::{SCENARIO as LARGE, run as run_large};
pub use self::machine::{SCENARIO as MACHINE, run as run_machine};
pub use self::rollouts::{SCENARIO as ROLLOUTS, run as run_rollouts};
pub use self::storage::{SCENARIO as STORAGE, run as run_storage};
pub use self::wanted::{SCENARIO as WANTED, run as run_wanted};

/// Which runtime a pod is to have: by no RuntimeClass it is containerd's own.
type Class = Option<&'static str>;
const REFERENCE: Class = None;
const OURS: Class = Some("capsule");

fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, is)
}

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

type Case = fn(Class) -> Result<String>;

fn cases(reporter: &mut Reporter) -> Result<()> {
    let (mut world, mut cluster) = begin(reporter)?;
    for (name, class) in [("runc", REFERENCE), ("capsule", OURS)] {
        let cases: [(&str, Case); 5] = [
            ("probes, logs, execs, volumes and a limit", everyday::lives),
            ("what the kubelet measures", everyday::measured),
            ("restarts, by a probe and of what was killed", everyday::restarts),
            ("a pod that ends by itself", everyday::ends),
            ("a pod is deleted, and nothing is left", everyday::deleted),
        ];
        for (what, case) in cases {
            reporter.check(&format!("{name}: {what}"), || case(class));
        }
    }
    reporter.check("the pod of configs/kubernetes, as it is", shipped::pod);
    reporter.check(
        "annotations: there from the first process on, and again after a restart, once",
        capsules::restarted,
    );
    reporter.check("annotations: a mistake is told, and the kubelet tries again", capsules::mistake);
    reporter.check("annotations: a Deployment is rolled out to another version", capsules::rollout);
    reporter.check("annotations: a device", devices::named);
    reporter.check("a device plugin: a device, by the kubelet", devices::by_plugin);
    reporter.check("hostUsers: false: the kubelet refuses it for ours by its type", users::refused);
    reporter.check("by hand: the main job, under readers", job::main_job);
    reporter.check("by hand: not in a pod without the RuntimeClass", job::refused_elsewhere);
    reporter.check("a pod outlives the kubelet, containerd and capsuled", || {
        lasts::daemons(&mut world, &mut cluster)
    });
    reporter.check("nothing is left of pods", left::nothing);
    drop(cluster);
    world.stop()
}

/// A node with all of ours that is ready, and the RuntimeClass.
fn begin(reporter: &mut Reporter) -> Result<(World, Cluster)> {
    reporter.must("Kubernetes is there", || {
        kubernetes::install()?;
        files::write()?;
        Ok(((), kubernetes::VERSION.to_owned()))
    })?;
    let mut world = World::start_with_cri(|shipped| cri::configuration(shipped, false))?;
    reporter.must("images, capsules and a device are there", || {
        prepare(&mut world).map(|()| ((), String::new()))
    })?;
    let cluster = reporter.must("the node is ready", || {
        let cluster = Cluster::start()?;
        let said = cluster::node_is_ready()?;
        Ok((cluster, said))
    })?;
    reporter.must("the RuntimeClass of configs/kubernetes", || shipped::class().map(|said| ((), said)))?;
    Ok((world, cluster))
}

/// Images by either name, capsules, and a device that pods may name.
fn prepare(world: &mut World) -> Result<()> {
    cri::import()?;
    ctr(&["-n", cri::K8S, "image", "tag", Image::Busybox.name(), SHIPPED_IMAGE])?
        .success("name the image")?;
    for label in ["lib@1", "lib@2", "tool@1"] {
        publish(label, &[])?;
    }
    fs::create_dir_all("/etc/cdi").context("create the folder of specs")?;
    fs::copy(Path::new("/payload/configs/cdi-example.yaml"), SPEC)
        .with_context(|| format!("write {SPEC}"))?;
    let text = fs::read_to_string(CONFIG).context("read the configuration")?;
    let with = text.replace("pods_may_name = []", "pods_may_name = [\"example.com/gpu\"]");
    ensure!(with != text, "the configuration has no pods_may_name");
    fs::write(CONFIG, with).context("write the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()
}
