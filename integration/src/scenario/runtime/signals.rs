//! Signals, and the exits that they make.

use anyhow::{Result, anyhow, ensure};

use super::Case;
use super::bed::{Bed, SLEEP};
use super::task::{Stdio, Task};

/// The cases.
pub const CASES: &[Case] =
    &[Case::new("a real-time signal reaches an exec, and its exit tells", real_time_signal)];

fn real_time_signal(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "signal", &Stdio::default(), &SLEEP)?;
    task.run_exec("e1", &Stdio::default(), &SLEEP)?;
    let ended = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| task.wait("e1"));
        // More than once: until the runtime has become the program, it takes the signal and goes on.
        while !waiting.is_finished() {
            let _ = task.kill("e1", 40, false);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        waiting.join().map_err(|_| anyhow!("the waiter panicked"))
    })??;
    ensure!(ended.exit_status == 128 + 40, "exit status {} instead of 168", ended.exit_status);
    task.remove().map(|()| String::new())
}
