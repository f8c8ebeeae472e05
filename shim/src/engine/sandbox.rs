//! The sandbox that the shim was started for, when containerd's sandbox controller `shim` starts it: a place for
//! containers, with no process and no namespaces of its own.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use super::EngineError;

/// The sandbox of this shim: none, until containerd makes one.
#[derive(Default)]
pub struct Sandboxes(Mutex<Option<Sandbox>>);

struct Sandbox {
    id: String,
    phase: watch::Sender<Phase>,
}

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, not started.
    Created,
    /// Started.
    Ready {
        /// When.
        since: SystemTime,
    },
    /// Stopped, for good.
    Stopped {
        /// When it was started, if it was.
        since: Option<SystemTime>,
        /// When it was stopped.
        at: SystemTime,
    },
}

impl Sandboxes {
    /// Makes the sandbox.
    ///
    /// # Errors
    /// [`EngineError::Exists`]: one shim has one.
    pub fn create(&self, id: &str) -> Result<(), EngineError> {
        let mut sandbox = self.lock();
        if let Some(there) = &*sandbox {
            return Err(EngineError::Exists(there.id.clone()));
        }
        *sandbox = Some(Sandbox { id: id.to_owned(), phase: watch::Sender::new(Phase::Created) });
        Ok(())
    }

    /// Starts it; when it was.
    ///
    /// # Errors
    /// [`EngineError::NoSandbox`], [`EngineError::SandboxPhase`].
    pub fn start(&self, id: &str, now: SystemTime) -> Result<SystemTime, EngineError> {
        self.with(id, |sandbox| {
            let phase = *sandbox.phase.borrow();
            if phase != Phase::Created {
                return Err(EngineError::SandboxPhase(id.to_owned(), phase.name()));
            }
            sandbox.phase.send_replace(Phase::Ready { since: now });
            Ok(now)
        })?
    }

    /// Stops it. Not an error when it is.
    ///
    /// # Errors
    /// [`EngineError::NoSandbox`].
    pub fn stop(&self, id: &str, now: SystemTime) -> Result<(), EngineError> {
        self.with(id, |sandbox| {
            sandbox.phase.send_if_modified(|phase| {
                let since = match *phase {
                    Phase::Created => None,
                    Phase::Ready { since } => Some(since),
                    Phase::Stopped { .. } => return false,
                };
                *phase = Phase::Stopped { since, at: now };
                true
            });
        })
    }

    /// Forgets it, stopped. Not an error when there is none.
    pub fn remove(&self, id: &str, now: SystemTime) {
        // Whoever waits for it is to see its end.
        if self.stop(id, now).is_ok() {
            *self.lock() = None;
        }
    }

    /// How far it has come.
    ///
    /// # Errors
    /// [`EngineError::NoSandbox`].
    pub fn phase(&self, id: &str) -> Result<Phase, EngineError> {
        self.with(id, |sandbox| *sandbox.phase.borrow())
    }

    /// Waits until it is stopped; when it was.
    ///
    /// # Errors
    /// [`EngineError::NoSandbox`], at once.
    pub async fn wait(&self, id: &str) -> Result<SystemTime, EngineError> {
        let mut phase = self.with(id, |sandbox| sandbox.phase.subscribe())?;
        loop {
            if let Phase::Stopped { at, .. } = *phase.borrow_and_update() {
                return Ok(at);
            }
            // The sender goes after the last change.
            if phase.changed().await.is_err() {
                return Err(EngineError::NoSandbox(id.to_owned()));
            }
        }
    }

    /// Whether there is one.
    pub fn is_empty(&self) -> bool {
        self.lock().is_none()
    }

    fn with<T>(&self, id: &str, step: impl FnOnce(&Sandbox) -> T) -> Result<T, EngineError> {
        let sandbox = self.lock();
        let found = sandbox.as_ref().filter(|sandbox| sandbox.id == id);
        found.map(step).ok_or_else(|| EngineError::NoSandbox(id.to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    /// As containerd's sandbox services name them (`core/sandbox`, CRI).
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "SANDBOX_CREATED",
            Self::Ready { .. } => "SANDBOX_READY",
            Self::Stopped { .. } => "SANDBOX_NOTREADY",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn a_sandbox_is_made_started_stopped_and_forgotten_once() {
        let sandboxes = Arc::new(Sandboxes::default());
        assert!(matches!(sandboxes.start("s", at(1)), Err(EngineError::NoSandbox(_))));
        sandboxes.create("s").unwrap();
        assert!(matches!(sandboxes.create("t"), Err(EngineError::Exists(there)) if there == "s"));
        assert!(matches!(sandboxes.phase("t"), Err(EngineError::NoSandbox(_))));
        assert_eq!(sandboxes.start("s", at(1)).unwrap(), at(1));
        assert!(matches!(sandboxes.start("s", at(2)), Err(EngineError::SandboxPhase(..))));
        let waiting = tokio::spawn({
            let sandboxes = sandboxes.clone();
            async move { sandboxes.wait("s").await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        sandboxes.stop("s", at(3)).unwrap();
        sandboxes.stop("s", at(4)).unwrap();
        assert_eq!(waiting.await.unwrap(), at(3));
        assert_eq!(sandboxes.phase("s").unwrap(), Phase::Stopped { since: Some(at(1)), at: at(3) });
        sandboxes.remove("s", at(5));
        sandboxes.remove("s", at(6));
        assert!(sandboxes.is_empty());
    }

    /// The end of the shim is the end of the sandbox, for those who wait too.
    #[tokio::test]
    async fn a_removed_sandbox_ends_the_wait() {
        let sandboxes = Arc::new(Sandboxes::default());
        sandboxes.create("s").unwrap();
        let waiting = tokio::spawn({
            let sandboxes = sandboxes.clone();
            async move { sandboxes.wait("s").await.unwrap() }
        });
        tokio::task::yield_now().await;
        sandboxes.remove("s", at(5));
        assert_eq!(waiting.await.unwrap(), at(5));
    }
}
