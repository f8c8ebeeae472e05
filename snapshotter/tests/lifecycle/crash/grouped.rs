//! Several callers: their changes share commits, and all lose the disk at once.

use std::thread;

use super::*;
use crate::rig;

const CALLERS: usize = 4;

/// What a caller does, beside the others, on a parent that all have.
fn workload(caller: usize) -> Vec<Op> {
    let own = |text: &str| format!("{caller}/{text}");
    let (base, label) = ("base".to_owned(), "x".to_owned());
    let commit = |name, key| Op::Commit {
        name: own(name),
        key: own(key),
        parent: String::new(),
        label: label.clone(),
    };
    vec![
        Op::Prepare { key: own("a"), parent: base.clone(), label: label.clone() },
        Op::Update { key: own("a"), label: "y".to_owned() },
        commit("A", "a"),
        Op::View { key: own("v"), parent: own("A"), label: String::new() },
        commit("A", "v"),
        Op::Cleanup,
        Op::Remove { key: own("v") },
        Op::Prepare { key: own("v"), parent: own("A"), label: label.clone() },
        Op::Remove { key: own("A") },
        Op::Remove { key: own("v") },
        Op::Remove { key: own("A") },
        Op::Prepare { key: own("a"), parent: base, label },
    ]
}

/// A store with the parent of all, and the directories that belong to it.
fn with_base(dirs: &Dirs) -> (Vec<u8>, Known) {
    let disk = Faulty::new(empty_store(), u64::MAX);
    let mut known = Known::default();
    let (key, name, none) = ("base-key".to_owned(), "base".to_owned(), String::new());
    let prepare = Op::Prepare { key: key.clone(), parent: none.clone(), label: none.clone() };
    let commit = Op::Commit { name, key, parent: none.clone(), label: none };
    known.run(&try_open(&disk, dirs, false).unwrap(), [prepare, commit]);
    (disk.after_power_cut(0), known)
}

/// Lets all callers work until the disk dies; gives what each knows.
fn run_until_death(disk: &Faulty, dirs: &Dirs, base: &Known, async_remove: bool) -> Vec<Known> {
    let Some(engine) = try_open(disk, dirs, async_remove) else { return vec![base.clone(); CALLERS] };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (engine, mut known) = (&engine, base.clone());
                scope.spawn(move || {
                    known.run(engine, workload(caller));
                    known
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    })
}

/// The part of what was found that a caller knows about: its own, and the parent of all.
fn of(found: &State, caller: usize) -> State {
    let own = |key: &String| key.starts_with(&format!("{caller}/")) || key == "base";
    found.iter().filter(|(key, _)| own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn no_power_cut_loses_what_was_acknowledged_to_any_of_several_callers() {
    const CHOICES: u64 = 6;
    let points = {
        let root = in_memory();
        let dirs = fresh_dirs(&root);
        let (image, base) = with_base(&dirs);
        let whole = Faulty::new(image, u64::MAX);
        let known = run_until_death(&whole, &dirs, &base, false);
        assert!(known.iter().all(|known| known.under_way.is_none()));
        whole.done()
    };
    let (mut cases, mut several) = (0, 0);
    for budget in 0..points {
        for choice in 0..CHOICES {
            let root = in_memory();
            let dirs = fresh_dirs(&root);
            let (image, base) = with_base(&dirs);
            let disk = Faulty::new(image, budget);
            let known = run_until_death(&disk, &dirs, &base, choice % 2 == 0);
            let case = format!("death after {budget} of {points}, choice {choice}");
            let found = found(disk.after_power_cut(choice), &dirs, &case);
            for (caller, known) in known.iter().enumerate() {
                let found = of(&found, caller);
                assert!(known.allowed().contains(&found), "{case}: {:?}: {found:?}", known.under_way);
            }
            cases += 1;
            several += u64::from(known.iter().filter(|known| known.under_way.is_some()).count() > 1);
        }
    }
    assert!(several > cases / 4, "only {several} of {cases} deaths met several callers");
    rig::report(&format!(
        "torn writes, {CALLERS} callers: {cases} cases, {several} with several calls under way, nothing lost"
    ));
}
