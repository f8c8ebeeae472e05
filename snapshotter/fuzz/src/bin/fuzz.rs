//! The target that `FUZZ_TARGET` names, for libFuzzer.
#![no_main]

use std::sync::LazyLock;

use capsule_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => panic!("FUZZ_TARGET is {name:?}: known are {:?}", TARGETS.map(|(known, _)| known)),
    }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
