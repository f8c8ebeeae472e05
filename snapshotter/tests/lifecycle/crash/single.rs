//! One caller: every kind of change, and death at each of its writes and syncs.

use super::*;
use crate::rig;

/// Every kind of change, with the refusals between.
pub(super) fn workload() -> Vec<Op> {
    let own = |text: &str| text.to_owned();
    let prepare = |key, parent| Op::Prepare { key: own(key), parent: own(parent), label: own("x") };
    let view = |key, parent| Op::View { key: own(key), parent: own(parent), label: own("") };
    let commit_on = |name, key, parent| Op::Commit {
        name: own(name),
        key: own(key),
        parent: own(parent),
        label: own("y"),
    };
    let commit = |name, key| commit_on(name, key, "");
    let remove = |key| Op::Remove { key: own(key) };
    let update = |key, label| Op::Update { key: own(key), label: own(label) };
    vec![
        prepare("a", ""),
        commit("A", "a"),
        prepare("b", "A"),
        view("v", "A"),
        remove("A"),
        update("b", "z"),
        commit("B", "b"),
        commit("B", "v"),
        prepare("c", "B"),
        remove("v"),
        Op::Cleanup,
        prepare("d", ""),
        commit_on("D", "d", "B"),
        remove("c"),
        update("B", ""),
        update("missing", ""),
        remove("D"),
        Op::Cleanup,
        remove("B"),
        prepare("a", "A"),
    ]
}

/// Runs the workload on a disk that dies; gives what was acknowledged.
pub(super) fn run_until_death(disk: &Faulty, dirs: &Dirs, async_remove: bool) -> Known {
    let mut known = Known::default();
    if let Some(engine) = try_open(disk, dirs, async_remove) {
        known.run(&engine, workload());
    }
    known
}

/// How many changes and syncs the workload makes.
pub(super) fn points(empty: &[u8]) -> u64 {
    let whole = Faulty::new(empty.to_vec(), u64::MAX);
    let root = in_memory();
    assert!(run_until_death(&whole, &fresh_dirs(&root), true).under_way.is_none());
    let points = whole.done();
    assert!(points > 100, "the workload makes {points} changes");
    points
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    const CHOICES: u64 = 20;
    let empty = empty_store();
    let points = points(&empty);
    for budget in 0..points {
        for choice in 0..CHOICES {
            let root = in_memory();
            let dirs = fresh_dirs(&root);
            let disk = Faulty::new(empty.clone(), budget);
            let known = run_until_death(&disk, &dirs, choice % 2 == 0);
            let case = format!("death after {budget} of {points}, choice {choice}: {:?}", known.under_way);
            let found = found(disk.after_power_cut(choice), &dirs, &case);
            assert!(known.allowed().contains(&found), "{case}: {found:?}");
        }
    }
    rig::report(&format!("torn writes, one caller: {} cases, nothing lost", points * CHOICES));
}
