//! A second death: the disk dies again while the next start repairs what the first death left.

use super::{
    single::{points, run_until_death},
    *,
};
use crate::rig;

/// Each point of the first death that is tried, one in so many.
const STRIDE: u64 = 4;

/// Dies at every point of a start on `image`; gives how many there were.
fn die_in_start(image: &[u8], dirs: &Dirs, known: &Known, case: &str) -> u64 {
    let allowed = known.allowed();
    // All deaths of one start leave the same: either without what was under way or with it.
    let settled = found(image.to_vec(), dirs, case);
    assert!(allowed.contains(&settled), "{case}: {settled:?}");
    let mut budget = 0;
    loop {
        plant_leftovers(dirs);
        let disk = Faulty::new(image.to_vec(), budget);
        let opened = try_open(&disk, dirs, false).is_some();
        for choice in 0..2 {
            let case = format!("{case}, then after {budget} of the start, choice {choice}");
            let found = found(disk.after_power_cut(choice), dirs, &case);
            assert!(found == settled, "{case}: {found:?}, and {settled:?} before");
        }
        budget += 1;
        if opened {
            return budget * 2;
        }
    }
}

#[test]
fn no_power_cut_during_the_repair_loses_anything() {
    let empty = empty_store();
    let points = points(&empty);
    let mut cases = 0;
    for budget in (0..points).step_by(usize::try_from(STRIDE).unwrap()) {
        for choice in 0..3 {
            let root = in_memory();
            let dirs = fresh_dirs(&root);
            let disk = Faulty::new(empty.clone(), budget);
            let known = run_until_death(&disk, &dirs, choice == 0);
            let case = format!("death after {budget} of {points}, choice {choice}: {:?}", known.under_way);
            cases += die_in_start(&disk.after_power_cut(choice), &dirs, &known, &case);
        }
    }
    assert!(cases > 1000, "{cases} cases");
    rig::report(&format!("torn writes, a second time during the start: {cases} cases, nothing lost"));
}
