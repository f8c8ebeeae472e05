//! The runtime suite: what a container's runtime must do, the same cases on containerd's own and on ours.
//!
//! A [`Case`] asserts one behaviour through what any client sees: `ctr`, containerd's gRPC services
//! ([`client`]). It is run on `io.containerd.runc.v2` first, which proves the case, then on ours.
//! `TEST_RUNTIME` names one of the two; `TEST_CASES` a part of the cases' names.
//!
//! | room | what its cases assert |
//! | --- | --- |
//! | [`bed`] | nothing: what a case is given |
//! | `case` | nothing: one behaviour, what it needs, and who is forgiven it |
//! | [`client`], [`task`] | nothing: containerd's services, and a task driven through them |
//! | [`asked`] | nothing: the messages in which runtime options come |
//! | [`shim`] | nothing: a shim's own socket |
//! | [`basics`] | what `ctr run`, `exec`, `kill` and `rm` need |
//! | [`streams`] | log URIs |
//! | [`fifos`], [`terminals`], [`bulk`] | standard input and output: clients that stall or leave, sizes, every byte |
//! | [`signals`] | signals and the exits that they make |
//! | [`events`] | every event, its order and content |
//! | [`life`] | states, pids and exits of tasks and execs, and who is told |
//! | [`limits`] | limits of the shim's process, and those that its containers have |
//! | [`refusals`] | the status code of every call in every state |
//! | [`cgroups`] | metrics, events of memory, limits, drivers, and processes that stay |
//! | [`traces`] | nothing: what containers leave on a node |
//! | [`faulty`] | nothing: an OCI runtime that fails as it is told |
//! | [`kills`] | shims killed in each state |
//! | [`steps`] | nothing: the calls for which a shim runs such a command |
//! | [`commands`] | the OCI runtime's commands killed in each state, or hanging |
//! | [`many`] | many containers at once |
//! | [`soak`] | thousands of execs in one container |
//! | [`restarts`] | containerd killed in each state, and started anew |
//! | [`process`] | the shim's process: how it is started, grouped, found again and ended |
//! | [`options`] | runtime options, each by its effect |
//! | [`sandboxes`] | the Sandbox API |
//! | [`pods`] | pods as CRI of containerd 2 makes them |
//! | [`ends`] | what a shim tells that ends while containerd is away |
//! | [`capsules`] | the annotations, which only our runtime follows |
//! | [`rootless`] | what is different on a node without root |
//! | [`origins`] | checkpoints, roots that others mount, user namespaces |
//! | [`mounts`] | roots in files, of several mounts, and of programs |
//! | [`again`] | attachments that a container's next task has too |
//!
//! A new room is one file with `pub const CASES: &[Case]`, and one line of [`ROOMS`].

pub mod again;
pub mod asked;
pub mod basics;
pub mod bed;
pub mod bulk;
pub mod capsules;
mod case;
pub mod cgroups;
pub mod client;
pub mod commands;
pub mod ends;
pub mod events;
pub mod faulty;
pub mod fifos;
pub mod kills;
pub mod life;
pub mod limits;
pub mod many;
pub mod mounts;
pub mod options;
pub mod origins;
pub mod pods;
pub mod process;
pub mod refusals;
pub mod restarts;
pub mod rootless;
pub mod sandboxes;
pub mod shim;
pub mod signals;
pub mod soak;
pub mod steps;
pub mod streams;
pub mod task;
pub mod terminals;
pub mod traces;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
pub use bed::{Bed, Facts};
pub use case::{Case, Forgiven, Need};

use super::ctr::{OURS, REFERENCE, Stack};
use super::world::send_logs;
use crate::event::Reporter;

/// The cases of every runtime, by room.
const ROOMS: &[Room] = &[
    Room { name: "basics", cases: basics::CASES },
    Room { name: "streams", cases: streams::CASES },
    Room { name: "signals", cases: signals::CASES },
    Room { name: "events", cases: events::CASES },
    Room { name: "refusals", cases: refusals::CASES },
    Room { name: "cgroup metrics", cases: cgroups::stats::CASES },
    Room { name: "cgroup devices", cases: cgroups::devices::CASES },
    Room { name: "cgroup oom", cases: cgroups::oom::CASES },
    Room { name: "cgroup update", cases: cgroups::update::CASES },
    Room { name: "cgroup drivers", cases: cgroups::drivers::CASES },
    Room { name: "cgroup processes", cases: cgroups::processes::CASES },
    Room { name: "life", cases: life::CASES },
    Room { name: "limits", cases: limits::CASES },
    Room { name: "fifos", cases: fifos::CASES },
    Room { name: "terminals", cases: terminals::CASES },
    Room { name: "bulk", cases: bulk::CASES },
    Room { name: "origins", cases: origins::CASES },
    Room { name: "origins mounts", cases: mounts::CASES },
    Room { name: "process", cases: process::CASES },
    Room { name: "options", cases: options::CASES },
    Room { name: "sandboxes", cases: sandboxes::CASES },
    Room { name: "pods", cases: pods::CASES },
    Room { name: "ends", cases: ends::CASES },
    Room { name: "rootless", cases: rootless::CASES },
];

/// The cases of what no other runtime has.
const OWN_ROOMS: &[Room] = &[
    Room { name: "streams", cases: streams::OWN },
    Room { name: "process", cases: process::OWN_CASES },
    Room { name: "options", cases: options::OWN_CASES },
    Room { name: "sandboxes", cases: sandboxes::OWN_CASES },
    Room { name: "pods", cases: pods::OWN_CASES },
    Room { name: "capsules", cases: capsules::CASES },
    Room { name: "again", cases: again::CASES },
    Room { name: "rootless", cases: rootless::OWN },
];

/// The rooms that a node without root runs, unless `TEST_CASES` names others.
const ROOTLESS: &[&str] = &[
    "basics",
    "streams",
    "signals",
    "events",
    "refusals",
    "life",
    "terminals",
    "origins",
    "options",
    "rootless",
];

/// The cases of every runtime that take minutes: a scenario of their own.
const CAMPAIGNS: &[Room] = &[
    Room { name: "kills", cases: kills::CASES },
    Room { name: "commands", cases: commands::CASES },
    Room { name: "restarts", cases: restarts::CASES },
    Room { name: "many", cases: many::CASES },
    Room { name: "soak", cases: soak::CASES },
];

/// Of these, what no other runtime has.
const OWN_CAMPAIGNS: &[Room] = &[
    Room { name: "kills", cases: kills::OWN },
    Room { name: "commands", cases: commands::OWN },
    Room { name: "restarts", cases: restarts::OWN },
    Room { name: "many", cases: many::OWN },
];

struct Room {
    name: &'static str,
    cases: &'static [Case],
}

/// Which cases of the suite are run on which stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    stacks: Vec<Stack>,
    /// A part of `ROOM: CASE` with `-` for blanks; nothing for all.
    part: String,
    /// Whether the campaigns are meant, and not the rest. A part may be of either.
    campaigns: bool,
}

impl Choice {
    /// From a scenario's name: `runtime`, `runtime:RUNTIME`, `runtime:RUNTIME:PART`; an empty runtime is both.
    /// `campaigns` in the place of `runtime` means them, `soak` is for [`soak::run`], `rootless` for [`super::rootless::run`].
    ///
    /// Not one of these: nothing. A runtime that is not known: an error.
    pub fn parse(scenario: &str) -> Option<Result<Self>> {
        let (name, rest) = scenario.split_once(':').unwrap_or((scenario, ""));
        let (runtime, part) = rest.split_once(':').unwrap_or((rest, ""));
        matches!(name, "runtime" | "rootless" | "campaigns" | "soak").then(|| {
            let stacks = match runtime {
                "" => vec![REFERENCE, OURS],
                runtime => {
                    let known = [REFERENCE, OURS].into_iter().find(|stack| stack.runtime == runtime);
                    vec![known.with_context(|| {
                        format!("TEST_RUNTIME={runtime}: use {} or {}", REFERENCE.runtime, OURS.runtime)
                    })?]
                }
            };
            Ok(Self { stacks, part: part.to_owned(), campaigns: name == "campaigns" })
        })
    }
}

/// The scenario that `TEST_RUNTIME` and `TEST_CASES` ask for, as [`Choice::parse`] has it.
pub fn scenario_of_environment() -> String {
    let variable = |name| std::env::var(name).unwrap_or_default();
    format!("runtime:{}:{}", variable("TEST_RUNTIME"), variable("TEST_CASES").replace(' ', "-"))
}

/// The same in a VM, where it takes minutes: of our runtime alone, unless `TEST_RUNTIME` says otherwise. containerd's own proves the
/// cases on machines without one, and `make test-runtime TEST_RUNTIME=io.containerd.runc.v2` proves those of a VM alone.
pub fn scenario_of_vm() -> String {
    scenario_of_environment().replacen("runtime::", &format!("runtime:{}:", OURS.runtime), 1)
}

/// The campaigns of a VM, likewise.
pub fn campaigns_of_vm() -> Option<String> {
    campaigns_of_environment().map(|scenario| match scenario.as_str() {
        "campaigns:" => format!("campaigns:{}", OURS.runtime),
        _ => scenario,
    })
}

/// The scenario of campaigns that `TEST_RUNTIME` asks for; none where `TEST_CASES` names cases, which are run with the suite
/// whatever they are.
pub fn campaigns_of_environment() -> Option<String> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    variable("TEST_CASES").is_empty().then(|| format!("campaigns:{}", variable("TEST_RUNTIME")))
}

/// Runs the suite.
pub fn run(reporter: &mut Reporter, choice: &Choice) -> Result<()> {
    let ours = choice.stacks.contains(&OURS);
    let mut bed = Bed::start(reporter, ours)?;
    for stack in &choice.stacks {
        bed.use_stack(reporter, *stack)?;
        let suites = [(ROOMS, OWN_ROOMS, !choice.campaigns), (CAMPAIGNS, OWN_CAMPAIGNS, choice.campaigns)];
        let meant = suites.iter().filter(|(.., meant)| *meant || !choice.part.is_empty());
        let rooms = meant.flat_map(|(all, own, _)| all.iter().chain(own.iter().filter(|_| *stack == OURS)));
        let ran: usize = rooms.map(|room| run_room(reporter, &bed, room, &choice.part)).sum();
        ensure!(ran > 0, "no case of this machine has {:?} in `ROOM: CASE`", choice.part.replace('-', " "));
        reporter.check(&format!("{}: nothing is left: no task, no shim, no mount", stack.name), || {
            bed.nothing_left()
        });
    }
    bed.stop()
}

/// Runs only the cases that say something about snapshotters too, on all of `stacks`.
pub fn run_basics(reporter: &mut Reporter, stacks: &[Stack]) -> Result<()> {
    let mut bed = Bed::start(reporter, stacks.iter().any(|stack| stack.snapshotter == OURS.snapshotter))?;
    for stack in stacks {
        bed.use_stack(reporter, *stack)?;
        run_room(reporter, &bed, &ROOMS[0], "basics");
        reporter.check(&format!("{}: nothing is left: no task, no shim, no mount", stack.name), || {
            bed.nothing_left()
        });
    }
    bed.stop()
}

/// Runs the cases of a room that are meant; how many there were.
fn run_room(reporter: &mut Reporter, bed: &Bed, room: &Room, part: &str) -> usize {
    let mut ran = 0;
    for case in room.cases {
        let name = format!("{}: {}", room.name, case.name);
        let named = name.replace(' ', "-").contains(part);
        let facts = bed.facts();
        let worth = match facts {
            _ if !part.is_empty() => true,
            Facts { rootless: true, .. } => ROOTLESS.contains(&room.name),
            Facts { systemd: true, .. } => case.in_vm || case.needs_vm(),
            _ => true,
        };
        if !named || !worth || !case.needs.iter().all(|need| facts.has(*need)) {
            continue;
        }
        ran += 1;
        let held = reporter.check(&format!("{}: {name}", bed.stack.name), || run_case(bed, case));
        if !held {
            // Now: at the end, what the cases after it did would stand there.
            send_logs(reporter);
            bed.clean();
        }
    }
    ran
}

fn run_case(bed: &Bed, case: &Case) -> Result<String> {
    let began = Instant::now();
    let error = match (case.run)(bed) {
        Err(error) if bed.stack.runtime == REFERENCE.runtime => error,
        outcome => return outcome,
    };
    match case.forgiven {
        Some(known) if known.covers(&format!("{error:#}")) => {
            bed.clean();
            Ok(format!("forgiven, since {}: {error:#}, after {:?}", known.reason, began.elapsed()))
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn parse(scenario: &str) -> Option<Vec<&'static str>> {
        Choice::parse(scenario).map(|choice| match choice {
            Ok(choice) => choice.stacks.iter().map(|stack| stack.name).collect(),
            Err(_) => vec![],
        })
    }

    #[test]
    fn a_scenario_names_its_stacks() {
        assert_eq!(parse("runtime"), Some(vec!["reference", "ours"]));
        assert_eq!(parse("runtime::"), Some(vec!["reference", "ours"]));
        assert_eq!(parse("runtime:io.containerd.runc.v2"), Some(vec!["reference"]));
        assert_eq!(parse("runtime:io.containerd.capsule.v1:log-file"), Some(vec!["ours"]));
        assert_eq!(parse("campaigns:"), Some(vec!["reference", "ours"]));
        assert_eq!(parse("runtime:crun"), Some(vec![]));
        assert_eq!(parse("rootless::basics"), Some(vec!["reference", "ours"]));
        assert_eq!(parse("demo"), None);
        let part = Choice::parse("runtime::log-file").map(|choice| choice.map(|choice| choice.part).ok());
        assert_eq!(part, Some(Some("log-file".to_owned())));
    }

    #[test]
    fn names_of_cases_are_unique() {
        let mut seen = HashSet::new();
        for room in [ROOMS, OWN_ROOMS, CAMPAIGNS, OWN_CAMPAIGNS].into_iter().flatten() {
            for case in room.cases {
                assert!(seen.insert((room.name, case.name)), "{}: {}", room.name, case.name);
            }
        }
    }
}
