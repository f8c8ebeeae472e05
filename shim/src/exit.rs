//! The signal that ends the shim.

use tokio::sync::watch;

/// Set once, seen by all who wait and all who will.
#[derive(Debug, Default)]
pub struct ExitSignal(watch::Sender<bool>);

impl ExitSignal {
    /// Ends the shim.
    pub fn signal(&self) {
        self.0.send_replace(true);
    }

    /// Whether the shim is on its way out.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the end.
    pub async fn wait(&self) {
        // The sender is `self`: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|ended| *ended).await;
    }
}
