//! A container's processes written down, and one that begins with processes that were.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Container, KILL,
    launch::{Launch, Launched},
};
use crate::{
    engine::{
        EngineError, chain,
        state::{State, Step},
    },
    hotplug,
    oci::Images,
    options::CheckpointOptions,
};

/// What a container is restored from, when it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The directory of the images.
    pub image: PathBuf,
    /// That of an earlier checkpoint, if they are a difference.
    pub parent: Option<PathBuf>,
}

impl Container {
    /// Writes its processes to the directory `image`. It goes on, unless it is to end with that.
    ///
    /// # Errors
    /// [`EngineError::HasCapsules`]: criu knows no mount that came from outside; other [`EngineError`]s. Then it goes on, and
    /// criu's log is `criu-dump.log` in the bundle.
    pub async fn checkpoint(&self, image: &Path, options: &CheckpointOptions) -> Result<(), EngineError> {
        let _step = self.init.step().await;
        self.init.state().allow(Step::Checkpoint)?;
        let attached = hotplug::attached(self.bundle.path())?;
        if !attached.is_empty() {
            let (container, attached) = (self.id.to_string(), attached.join(", "));
            return Err(EngineError::HasCapsules { container, attached });
        }
        let own = self.bundle.work().join("criu-work");
        let work = options.work_path.as_ref().unwrap_or(&own);
        let done = self.runtime.checkpoint(self.id.as_str(), image, work, options).await;
        let log = self.bundle.path().join("criu-dump.log");
        if done.is_err()
            && let Err(error) = fs::copy(work.join("dump.log"), &log)
        {
            log::warn!("keep criu's log as {}: {error}", log.display());
        }
        if options.work_path.is_none() {
            // Not there if the runtime did not come so far.
            let _ = fs::remove_dir_all(&own);
        }
        done.map_err(|source| EngineError::Checkpoint { log, source })
    }

    /// Makes the processes that were written down; they go on where they were. Attachments are made after that: for these
    /// processes, which were there before, it is no later than for any that is attached to while it runs.
    pub(super) async fn restore(self: &Arc<Self>, checkpoint: &Checkpoint) -> Result<i32, EngineError> {
        let own = self.bundle.work();
        let work = self.criu_work.as_ref().unwrap_or(&own);
        let images = Images { path: &checkpoint.image, parent: checkpoint.parent.as_deref(), work };
        let (pid_file, log) = (self.bundle.init_pid_file(), self.bundle.init_log());
        let Launched { pid, io, claim } =
            self.launch(&self.init, Launch::Restore(&images), &pid_file, &log).await?;
        self.find_cgroup(pid);
        self.init.attach(io, claim.pidfd);
        self.init.advance(State::Running { pid });
        self.supervise(self.init.clone(), claim.exited);
        let ready = async {
            self.init.open_stdin()?;
            self.attach_first().await
        };
        if let Err(error) = ready.await {
            if let Err(undo) = self.runtime.kill(self.id.as_str(), KILL, true).await {
                log::warn!("undo the restoring of container {}: {}", self.id, chain(&undo));
            }
            return Err(error);
        }
        Ok(pid)
    }
}
