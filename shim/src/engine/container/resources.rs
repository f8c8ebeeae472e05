//! A container's control groups: what it uses, what it may use, and that it used too much.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use containerd_shim::protos::protobuf::well_known_types::any::Any;

use super::Container;
use crate::{
    bundle::write_private,
    cgroup::{Cgroup, controllers},
    engine::{EngineError, chain, state::Step},
    hotplug::{self, Given},
    oci::{Runtime, RuntimeError},
    oom,
    seccomp::{self, Denied, RecordError},
    stats,
};

impl Container {
    /// Finds the control groups by the init and watches them. The container runs without, as it does with containerd's own
    /// shim.
    pub(super) fn find_cgroup(&self, init: i32) {
        if self.cgroup.get().is_some() {
            return;
        }
        match self.host.cgroups.of(init) {
            Ok(cgroup) => {
                if let Cgroup::Unified(path) = &cgroup {
                    for (what, error) in controllers::hand_on(path) {
                        log::debug!("container {}: hand on {what}: {error}", self.id);
                    }
                }
                self.watch_memory(&cgroup);
                // Only this step sets it.
                let _ = self.cgroup.set(cgroup);
            }
            Err(error) => log::warn!("container {}: no metrics: {}", self.id, chain(&error)),
        }
    }

    /// Its control group, where the hierarchy is unified.
    pub fn unified_cgroup(&self) -> Option<&Path> {
        match self.cgroup.get() {
            Some(Cgroup::Unified(path)) => Some(path),
            Some(Cgroup::Legacy(_)) | None => None,
        }
    }

    fn watch_memory(&self, cgroup: &Cgroup) {
        let (events, id) = (self.host.events.clone(), self.id.to_string());
        let report = move || events.publish_oom(&id);
        match oom::Watch::start(cgroup, report) {
            Ok(watch) => *self.oom.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch),
            // As on a node whose kernel has no memory controller.
            Err(oom::OomError::NoMemory) => {}
            Err(error) => {
                log::warn!("container {}: no events of memory: {}", self.id, chain(&error));
            }
        }
    }

    /// Reports that the kernel killed processes of it, if that has not been: to be called before an end is reported. After
    /// the `last`, nothing more is.
    pub(super) fn report_oom(&self, last: bool) {
        let mut watch = self.oom.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.as_ref().is_some_and(|watch| watch.look(last)) {
            self.host.events.publish_oom(self.id.as_str());
        }
        if last {
            *watch = None;
        }
    }

    /// What it uses, also when it has ended and is not deleted.
    ///
    /// # Errors
    /// [`EngineError::NoCgroup`], or a control group that cannot be read.
    pub fn metrics(&self) -> Result<Any, EngineError> {
        let cgroup = self.cgroup.get().ok_or_else(|| EngineError::NoCgroup(self.id.to_string()))?;
        Ok(stats::collect(cgroup)?)
    }

    /// Changes its resources to `resources`, the JSON of OCI's `LinuxResources`, and leaves what was `given` to it meanwhile.
    ///
    /// # Errors
    /// [`EngineError`]; what the runtime refused it says, and by its contract has not changed.
    pub async fn update(&self, resources: &[u8], given: Option<&Given>) -> Result<(), EngineError> {
        let parsed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(resources);
        parsed.map_err(|e| EngineError::Resources(self.id.to_string(), e))?;
        let _step = self.init.step().await;
        self.init.state().allow(Step::Update)?;
        let updates = self.updates();
        match given {
            Some(given) => given.update(self.id.as_str(), resources, updates).await?,
            None => updates.tell(resources).await?,
        }
        Ok(())
    }

    /// What changes its resources.
    pub fn updates(&self) -> Arc<Updates> {
        let bundle = self.bundle.path().to_owned();
        Arc::new(Updates { id: self.id.to_string(), bundle, runtime: self.runtime.clone() })
    }
}

/// A container's runtime, told to change resources.
pub struct Updates {
    id: String,
    bundle: PathBuf,
    runtime: Runtime,
}

impl Updates {
    async fn tell(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        let file = self.bundle.join("capsule-resources.json");
        write_private(&file, resources)
            .map_err(|e| RuntimeError::Spawn(file.clone(), io::Error::other(e)))?;
        let updated = self.runtime.update(&self.id, &file).await;
        let _ = fs::remove_file(file);
        updated
    }
}

impl fmt::Debug for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the runtime of {}", self.id)
    }
}

impl hotplug::Runtime for Updates {
    fn update(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        // Of the blocking threads that hot-plug works on, which are tokio's.
        tokio::runtime::Handle::current().block_on(self.tell(resources))
    }

    fn check_denials(&self, denied: &Denied) -> Result<(), RecordError> {
        seccomp::check(&self.runtime.record(&self.id), denied)
    }
}
