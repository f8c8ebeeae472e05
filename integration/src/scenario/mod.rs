//! What is done inside a machine, as a user would do it: with `ctr` and `capsulectl`, and with what any user can see.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`world`] | nothing: it starts containerd and capsuled, and stops them |
//! | [`ctr`] | nothing: containers as `ctr` drives them |
//! | [`reference`] | what any runtime and snapshotter must do, on containerd's own and on ours |

pub mod ctr;
pub mod reference;
pub mod world;

use anyhow::{Result, bail};

use crate::event::Reporter;

/// Runs the scenario `name` in this machine.
pub fn run(name: &str, reporter: &mut Reporter) -> Result<()> {
    match name {
        "reference" => reference::run(reporter, &[ctr::REFERENCE]),
        "conformance" => reference::run(reporter, &[ctr::REFERENCE, ctr::OURS]),
        _ => bail!("there is no scenario {name:?}"),
    }
}
