//! The disk dies at every point of a workload: what was acknowledged is there, what was under way is there whole or
//! not at all, and the directories fit. For one caller, for several whose changes share commits, and once more
//! while the next start repairs what the first death left.

mod grouped;
mod repair;
mod single;

use std::fs;

use capsuled::{dirs::Dirs, snapshots::Snapshots, store::Store};

use super::{
    check_directories, environment,
    faulty::Faulty,
    in_memory, open,
    ops::{Op, State, apply, held, observe, perform, refusal},
    reference::Reference,
};

/// What a caller knows when the disk has died: what was acknowledged to it, and the operation under way.
#[derive(Clone, Debug, Default)]
struct Known {
    model: Reference,
    under_way: Option<Op>,
}

impl Known {
    /// Performs operations until the disk dies; the model must say the same of each.
    fn run(&mut self, engine: &Snapshots, ops: impl IntoIterator<Item = Op>) {
        for op in ops {
            match perform(engine, &op) {
                Ok(()) => apply(&mut self.model, &op).unwrap(),
                Err(error) => match refusal(&error) {
                    Some(refusal) => assert_eq!(apply(&mut self.model, &op), Err(refusal), "{op:?}"),
                    None => {
                        self.under_way = Some(op);
                        return;
                    }
                },
            }
        }
    }

    /// All that may be found: without the operation under way, and with it.
    fn allowed(&self) -> [State; 2] {
        let mut done = self.model.clone();
        if let Some(op) = &self.under_way {
            _ = apply(&mut done, op); // one that is refused may meet the dead disk first
        }
        [held(&self.model), held(&done)]
    }
}

/// A store that is whole and empty: a new one is made under another name (`Store::open`).
fn empty_store() -> Vec<u8> {
    let empty = Faulty::new(Vec::new(), u64::MAX);
    drop(Store::with_backend(empty.clone()).unwrap());
    empty.after_power_cut(0)
}

fn fresh_dirs(root: &tempfile::TempDir) -> Dirs {
    let dirs = Dirs::new(root.path());
    dirs.create().unwrap();
    dirs
}

/// Opens an engine on a disk that may die meanwhile.
fn try_open(disk: &Faulty, dirs: &Dirs, async_remove: bool) -> Option<Snapshots> {
    let store = Store::with_backend(disk.clone()).ok()?;
    Snapshots::open(environment(store, dirs, async_remove)).ok()
}

/// A death of the process leaves directories that no record names; here they are planted.
fn plant_leftovers(dirs: &Dirs) {
    for name in ["new-0", "new-7", "40/fs", "41"] {
        fs::create_dir_all(dirs.snapshots().join(name)).unwrap();
    }
}

/// What a start finds on the disk as the death left it. Its directories must be those of its records.
fn found(image: Vec<u8>, dirs: &Dirs, case: &str) -> State {
    plant_leftovers(dirs);
    let image = Faulty::new(image, u64::MAX);
    let store = Store::with_backend(image).unwrap_or_else(|error| panic!("{case}: {error}"));
    let engine = open(store, dirs);
    check_directories(&engine, dirs);
    observe(&engine)
}
