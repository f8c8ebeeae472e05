//! What is still being copied when the shim ends.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    copy::{LOOK, Output},
    lock,
};

/// All outputs and logging programs of this shim, for its last moments.
#[derive(Clone, Default)]
pub struct Copies {
    outputs: Arc<Mutex<Vec<Weak<Output>>>>,
    ending: Arc<AtomicUsize>,
}

/// A logging program that takes in what is left, while this lives.
pub struct Ending(Arc<AtomicUsize>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Copies {
    /// Counts a logging program that is about to end.
    pub fn begin_end(&self) -> Ending {
        self.ending.fetch_add(1, Relaxed);
        Ending(self.ending.clone())
    }

    /// Counts an output.
    pub(super) fn add(&self, output: &Arc<Output>) {
        let mut outputs = lock(&self.outputs);
        outputs.retain(|output| output.strong_count() > 0);
        outputs.push(Arc::downgrade(output));
    }

    /// Waits until all that was written has been delivered, at most `limit`, and for logging programs, whose end has
    /// limits of its own.
    pub async fn finish(&self, limit: Duration) {
        let outputs = || lock(&self.outputs).iter().filter_map(Weak::upgrade).any(|output| output.pending());
        let wait = async {
            while outputs() {
                sleep(LOOK).await;
            }
        };
        if timeout(limit, wait).await.is_err() {
            log::warn!("output is dropped: its reader has stalled for {limit:?}");
        }
        while self.ending.load(Relaxed) > 0 {
            sleep(LOOK).await;
        }
    }
}
