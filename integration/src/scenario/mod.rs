//! What is done inside a machine, as a user would do it: with `ctr` and `capsulectl`, and with what any user can see.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`world`] | nothing: it starts containerd and capsuled, and stops them |
//! | [`ctr`] | nothing: containers as `ctr` drives them |
//! | [`capsulectl`] | nothing: capsules as `capsulectl` drives them |
//! | [`api`] | nothing: capsuled's API without the command line |
//! | [`bench`] | nothing but that every operation succeeds: it measures |
//! | [`random_trees`] | random trees come out the same whole and over each other |
//! | [`readers`] | programs in the container, and what they saw |
//! | [`demo`] | the main job, end to end |
//! | [`follow`] | nothing: events, as followers get them |
//! | [`errors`] | every refusal: one line, cause and cure, nothing changed |
//! | [`full`] | a full disk is said, costs nothing, and ends when there is room |
//! | [`sets`] | what a capsule requires comes with it, stays while it is needed, and is explained |
//! | [`csi`] | the storage driver does what the specification of CSI says, and the paths have what they should |
//! | [`devices`] | devices of CDI specs are given to live containers and taken back, and to those that are created |
//! | [`denials`] | system calls that capsules deny to what is started with them |
//! | [`limits`] | limits of live containers are changed by what is attached to them, and put back |
//! | [`cri`] | what Kubernetes asks of a node: pods with capsules, by a RuntimeClass, annotations and hand |
//! | [`job`] | the main job again, through a client that has names for containers |
//! | [`left`] | that nothing is left of a client's containers |
//! | [`docker`] | Docker's containers live on ours as on containerd's own, with capsules, which last as long as they do |
//! | [`dashboard`] | each question of the dashboard has an answer |
//! | [`kubernetes`] | a cluster of one node, as `kubectl` drives it: pods on containerd's own and on ours, with capsules |
//! | [`nerdctl`] | containers of nerdctl's live on ours as on containerd's own, with capsules |
//! | [`registry`] | tags; versions move between machines, by a registry and by archives |
//! | [`versions`] | versions are compared, built on each other and from images, and stored once |
//! | [`snapshots`] | nothing: snapshots as `ctr` drives them |
//! | [`images`] | images of many layers come out as containerd's overlayfs makes them |
//! | [`snapshotters`] | nothing but that every call succeeds: it measures snapshotters |
//! | [`runtime`] | what a container's runtime must do, on containerd's own and on ours |
//! | [`runtimes`] | nothing but that every call succeeds: it measures runtimes |
//! | [`remote`] | clients elsewhere do the main job, strangers hear nothing, and all of it is written down |
//! | [`rootless`] | the runtime suite holds on a node without root |
//! | [`setup`] | `setup` writes what containerd needs and takes it back to the byte; `doctor` finds what is missing |
//! | [`sharing`] | equal files of capsules are one file, whatever is killed meanwhile |
//! | [`storage`] | nothing but that every call succeeds: it measures what versions take |
//! | [`terminal`] | `top` follows what is attached, and leaves a terminal as it was |
//! | [`suite`] | the snapshotter's conformance suite, through containerd, on its overlayfs and on ours |
//! | [`idle`] | a capsuled that nobody uses ends, and the next call starts it |
//! | [`idmapped`] | owners in user namespaces are those of containerd's overlayfs |
//! | [`volumes`] | volumes of the node: upgraded wherever they are mounted, kept, bounded and published |
//! | [`written`] | what is written to attachments is kept, dropped and published as asked |
//! | [`others`] | what is attached outlives what others do to its images and its task |
//! | [`told`] | what was not asked for is told too, to those who follow containerd as well |
//! | [`boots`] | what is attached, kept and told outlives restarts of the machine itself |
//! | [`packages`] | the package is installed, used, upgraded under readers, removed and purged |
//! | [`upgrade`] | no call fails while capsuled is replaced |

pub mod api;
pub mod bench;
pub mod boots;
pub mod capsulectl;
pub mod collect;
pub mod cri;
pub mod csi;
pub mod ctr;
pub mod dashboard;
pub mod demo;
pub mod denials;
pub mod devices;
pub mod docker;
pub mod docs;
pub mod errors;
pub mod follow;
pub mod full;
pub mod http;
pub mod idle;
pub mod idmapped;
pub mod images;
pub mod job;
pub mod keep;
pub mod kubernetes;
pub mod left;
pub mod life;
pub mod limits;
pub mod moves;
pub mod nerdctl;
pub mod others;
pub mod packages;
pub mod random_trees;
pub mod readers;
pub mod reboot;
pub mod registry;
pub mod remote;
pub mod rootless;
pub mod runtime;
pub mod runtimes;
pub mod scale;
pub mod sets;
pub mod setup;
pub mod sharing;
pub mod snapshots;
pub mod snapshotters;
pub mod storage;
pub mod suite;
pub mod terminal;
pub mod told;
mod traces;
pub mod upgrade;
pub mod versions;
pub mod volumes;
pub mod world;
pub mod written;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::event::{Event, Reporter};
use crate::machine::Job;
use crate::native::{self, Site};

/// Runs the scenario `name` in this machine.
pub fn run(name: &str, reporter: &mut Reporter) -> Result<()> {
    if let Some(seed) = life::seed_of(name) {
        return life::run(reporter, seed, 10);
    }
    match name {
        "reference" => runtime::run_basics(reporter, &[ctr::REFERENCE]),
        "conformance" => runtime::run_basics(reporter, &[ctr::REFERENCE, ctr::SNAPSHOTTER, ctr::OURS]),
        "images" => images::run(reporter, &[ctr::REFERENCE, ctr::SNAPSHOTTER, ctr::OURS]),
        "suite" => suite::run(reporter),
        "idmapped" => idmapped::run(reporter),
        "idle" => idle(reporter, ctr::REFERENCE),
        "idle-ours" => idle(reporter, ctr::OURS),
        "bench" => bench::run(reporter, bench::Counts { operations: 1000, recreations: 100, crun: 100 }),
        // A VM without KVM is fifty times slower.
        "bench-vm" => bench::run(reporter, bench::Counts { operations: 50, recreations: 5, crun: 20 }),
        snapshotters::FULL => snapshotters::run(reporter, snapshotters::Plan::FULL),
        snapshotters::QUICK => snapshotters::run(reporter, snapshotters::Plan::QUICK),
        runtimes::FULL => runtimes::run(reporter, runtimes::Plan::FULL),
        runtimes::QUICK => runtimes::run(reporter, runtimes::Plan::QUICK),
        storage::FULL => storage::run(reporter),
        "nested" => nested(reporter),
        "demo" => demo::run(reporter),
        "errors" => errors::run(reporter),
        "full" => full::run(reporter),
        "devices" => devices::run(reporter),
        "bench-devices" => devices::bench::run(reporter),
        "programs" => devices::programs::run(reporter),
        "created" => devices::created::run(reporter),
        // Both in one machine, as below.
        "devices-more" => devices::programs::run(reporter).and_then(|()| devices::created::run(reporter)),
        "denials" => denials::run(reporter),
        "limits" => limits::run(reporter),
        "sets" => sets::run(reporter),
        "traces" => traces::run(reporter),
        "setup" => setup::run(reporter),
        "moves" => moves::run(reporter),
        "keep" => keep::run(reporter),
        "volumes" => volumes::run(reporter),
        "written" => written::run(reporter),
        "collect" => collect::run(reporter),
        "dashboard" => dashboard::run(reporter),
        "scale" => scale::run(reporter, scale::FULL),
        "scale-quick" => scale::run(reporter, scale::QUICK),
        "registry" => registry::run(reporter, false),
        "registry-old" => registry::run(reporter, true),
        "versions" => versions::run(reporter),
        "upgrade" => upgrade::take_over(reporter, 50),
        crate::packages::SCENARIO => packages::run(reporter),
        "upgrade-systemd" => upgrade::systemd(reporter, 10),
        "reboot" => boots::run(reporter, |_| Ok(())),
        // Both in one machine: a boot takes half a minute.
        "systemd" => boots::run(reporter, |reporter| upgrade::systemd(reporter, 10)),
        _ if CLIENTS.contains(&name) => through_clients(name, reporter),
        _ if name.starts_with("docs-") => docs::run(reporter, name.trim_start_matches("docs-")),
        _ => match runtime::Choice::parse(name) {
            Some(choice) if name.starts_with("rootless") => {
                choice?;
                rootless::run(reporter, &name.replacen("rootless", "runtime", 1))
            }
            Some(choice) if name.starts_with("soak") => runtime::soak::run(reporter, &choice?),
            Some(choice) => runtime::run(reporter, &choice?),
            None => bail!("there is no scenario {name:?}"),
        },
    }
}

/// The scenarios of clients other than `ctr`, and of what they install.
const CLIENTS: [&str; 14] = [
    "csi",
    "docker",
    "cri",
    cri::SYSTEMD,
    "nerdctl",
    "kubernetes",
    kubernetes::MACHINE,
    kubernetes::WANTED,
    kubernetes::STORAGE,
    kubernetes::ROLLOUTS,
    kubernetes::LARGE,
    crate::image::SCENARIO,
    "remote",
    "remote-unit",
];

fn through_clients(name: &str, reporter: &mut Reporter) -> Result<()> {
    match name {
        "csi" => csi::run(reporter),
        "docker" => docker::run(reporter),
        "cri" => cri::run(reporter),
        cri::SYSTEMD => cri::run_with_systemd(reporter),
        "nerdctl" => nerdctl::run(reporter),
        "kubernetes" => kubernetes::run(reporter),
        kubernetes::MACHINE => kubernetes::run_machine(reporter),
        kubernetes::WANTED => kubernetes::run_wanted(reporter),
        kubernetes::STORAGE => kubernetes::run_storage(reporter),
        kubernetes::ROLLOUTS => kubernetes::run_rollouts(reporter),
        kubernetes::LARGE => kubernetes::run_large(reporter),
        crate::image::SCENARIO => kubernetes::run_by_image(reporter),
        "remote" => remote::run(reporter),
        "remote-unit" => boots::remote(reporter),
        _ => bail!("there is no scenario {name:?}"),
    }
}

/// Holds a running container until the machine is killed: for tests of what a machine leaves behind, and for a person
/// who wants to look around (`nsenter`).
fn idle(reporter: &mut Reporter, stack: ctr::Stack) -> Result<()> {
    let _world = world::World::start(stack == ctr::OURS)?;
    stack.import()?;
    let container = stack.start("idle", &[], &["/bin/sleep", "100000"])?;
    reporter.must("idle now", || Ok(((), format!("process {}", container.pid()?))))?;
    loop {
        std::thread::park();
    }
}

/// A native machine inside this machine, with this machine's own root file system: in a VM, that is native mode on a
/// host with unified cgroups.
fn nested(reporter: &mut Reporter) -> Result<()> {
    let site = Site {
        testbed: PathBuf::from("/payload/bin/capsule-testbed"),
        runs: PathBuf::from("/var/tmp"),
        rootfs: PathBuf::from("/"),
        payload: PathBuf::from("/payload"),
        peers: None,
    };
    let job = Job { scenario: "conformance".to_owned(), silence: Duration::from_secs(480) };
    let report = native::run(&site, &job, |event| {
        if !matches!(event, Event::Done { .. }) {
            reporter.send(event);
        }
    })?;
    report.expect_ok()?;
    reporter.check("the native machine left no cgroup", || {
        let left = std::fs::read_dir("/sys/fs/cgroup").context("read the cgroups")?.filter_map(Result::ok);
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        ensure!(!left.iter().any(|name| name.to_string_lossy().starts_with("capsule-run")), "{left:?}");
        Ok(String::new())
    });
    Ok(())
}
