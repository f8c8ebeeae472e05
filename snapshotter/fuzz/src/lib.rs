//! What must hold for any input from outside, as functions of bytes that panic when it does not.
//!
//! `make fuzz` runs them under libFuzzer, guided by the coverage of capsuled's own code; the tests here run
//! what is kept in `seeds/`. An input that once failed belongs there, and its cause into a test beside the code.

#![allow(clippy::expect_used)] // what does not hold panics

mod cdi;
mod config;
mod filters;
mod keys;
mod labels;
mod oci;

/// A property of any input.
pub type Target = fn(&[u8]);

/// All of them by the names that `FUZZ_TARGET` takes.
pub const TARGETS: [(&str, Target); 6] = [
    ("cdi", cdi::check),
    ("config", config::check),
    ("filters", filters::check),
    ("keys", keys::check),
    ("labels", labels::check),
    ("oci", oci::check),
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_seeds_hold() {
        for (name, target) in super::TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
            let mut seeds = 0;
            for entry in fs::read_dir(&folder).unwrap() {
                target(&fs::read(entry.unwrap().path()).unwrap());
                seeds += 1;
            }
            assert!(seeds > 0, "{name} has no seeds");
            target(b"");
        }
    }
}
