//! Signals, and the exits that they make.

use anyhow::{Result, ensure};

use super::Case;
use super::bed::{Bed, SLEEP, eventually};
use crate::scenario::ctr::ctr;

/// The cases.
pub const CASES: &[Case] =
    &[Case::new("a real-time signal reaches an exec, and its exit tells", real_time_signal)];

fn real_time_signal(bed: &Bed) -> Result<String> {
    let container = bed.start_container("signal", &SLEEP)?;
    let id = container.id.clone();
    let exec = std::thread::spawn(move || ctr(&["task", "exec", "--exec-id", "x", &id, SLEEP[0], SLEEP[1]]));
    eventually("the exec to be signalled", || {
        ctr(&["task", "kill", "--exec-id", "x", "-s", "40", &container.id])?.success("ctr task kill")
    })?;
    let ended = exec.join().map_err(|_| anyhow::anyhow!("the exec panicked"))??;
    ensure!(ended.code == 128 + 40, "exit status {} instead of 168: {}", ended.code, ended.err);
    container.remove().map(|_| String::new())
}
