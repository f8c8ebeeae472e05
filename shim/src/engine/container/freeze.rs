//! All processes of a container frozen and thawed, and what clients are told of them meanwhile.

use std::sync::atomic::Ordering::Relaxed;

use containerd_shim::protos::events::task::{TaskPaused, TaskResumed};

use super::Container;
use crate::engine::{
    EngineError, Process,
    state::{State, Status, Step},
};

impl Container {
    /// What clients are told of one of its processes.
    pub fn status(&self, process: &Process) -> Status {
        let init = self.init.state().status();
        let init = if self.pausing.load(Relaxed) { Status::Pausing } else { init };
        if process.exec_id().is_empty() { init } else { process.state().status().beside(init) }
    }

    /// Freezes all its processes.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn pause(&self) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Pause)?;
        self.pausing.store(true, Relaxed);
        let paused = self.runtime.pause(self.id.as_str()).await;
        let paused = self.settled(paused, "paused").await;
        if paused.is_ok() {
            self.init.advance(State::Paused { pid: state.pid() });
        }
        self.pausing.store(false, Relaxed);
        paused?;
        self.host.events.publish(TaskPaused { container_id: self.id.to_string(), ..Default::default() });
        Ok(())
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn resume(&self) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        let state = self.init.state();
        state.allow(Step::Resume)?;
        let resumed = self.runtime.resume(self.id.as_str()).await;
        self.settled(resumed, "running").await?;
        self.init.advance(State::Running { pid: state.pid() });
        self.host.events.publish(TaskResumed { container_id: self.id.to_string(), ..Default::default() });
        Ok(())
    }
}
