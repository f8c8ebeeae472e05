//! Transactions: each call is done as a whole or undone, one at a time for a container, side by side for several.
//!
//! Every function here blocks: the service runs them off its runtime's thread. Intent is in the journal before the first
//! mount changes; what is done is undone in reverse order.

mod attach;
mod build;
mod detach;
mod devices;
mod hooks;
mod limits;
mod list;
mod recover;
mod replace;
#[cfg(test)]
mod tests;
mod writable;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

pub use attach::Wanted;
pub use devices::Given;
pub use limits::Limited;
use overlayfs_utils::{NamespaceError, PinError, SuperBlock, User, find_users};

use super::{
    TaskLookupError, Tasks,
    error::EngineError,
    journal::{Draining, Record},
    kernel::Kernel,
    model::AttachmentId,
    notices::Notices,
    scene::{Kept, Pins, Scene},
    steps::step,
};
use crate::{limits::LimitError, reaper::Reaper};

/// Draining contents that may be kept before they are looked through: a bound on the journal, not on upgrades.
const MANY_DRAINING: usize = 32;

/// An attachment, and whether the container still has it as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The container.
    pub container: String,
    /// What the journal says.
    pub record: Record,
    /// Every mount is on top at its place.
    pub mounted: bool,
}

/// Content that is in use, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// The container.
    pub container: String,
    /// What the journal says.
    pub draining: Draining,
    /// Its users: never empty.
    pub users: Vec<User>,
}

/// What came of a detach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detached {
    /// It is gone.
    pub detached: bool,
    /// Who uses it.
    pub users: Vec<User>,
}

/// Does what the service asks.
pub struct Engine {
    tasks: Arc<dyn Tasks>,
    kernel: Kernel,
    containers: Mutex<HashMap<String, Arc<Mutex<Kept>>>>,
    reaper: Option<Arc<Reaper>>,
    notices: Notices,
}

impl Engine {
    /// An engine for the containers of `tasks`.
    #[must_use]
    pub fn new(tasks: Arc<dyn Tasks>, kernel: Kernel) -> Self {
        Self { tasks, kernel, containers: Mutex::default(), reaper: None, notices: Notices::default() }
    }

    /// In a process in which `reaper` waits for children.
    #[must_use]
    pub fn with_reaper(self, reaper: Arc<Reaper>) -> Self {
        Self { reaper: Some(reaper), ..self }
    }

    /// What was noticed, and is to be published.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// Runs `call` on a container while no other call is at work in it.
    fn with_scene<T>(
        &self,
        container: &str,
        call: impl FnOnce(&mut Scene) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let own = self.own(container);
        let mut kept = own.lock().unwrap_or_else(PoisonError::into_inner);
        // A container that has ended, or cannot be looked at, drops its pins here.
        let held = std::mem::take(&mut *kept);
        let live = self.tasks.live(container)?;
        let ended = |error| as_not_running(container, error);
        let opened = step("look", || {
            let mut scene = Scene::open(&live, self.kernel.clone(), held)?;
            let recovered = recover::recover(&mut scene);
            Ok((scene, recovered))
        });
        let (mut scene, recovered) = opened.map_err(ended)?;
        let done = recovered.and_then(|()| call(&mut scene));
        *kept = scene.kept;
        done.map_err(ended)
    }

    /// What this engine keeps for a container, in the lock that calls take in turn.
    fn own(&self, container: &str) -> Arc<Mutex<Kept>> {
        let mut containers: MutexGuard<'_, _> =
            self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if !containers.contains_key(container) {
            let served = self.tasks.ids();
            containers.retain(|id, own| served.contains(id) || Arc::strong_count(own) > 1);
        }
        Arc::clone(containers.entry(container.to_owned()).or_default())
    }
}

/// An init process that ends while a call is at work: the kernel says so before the reaper does.
fn as_not_running(container: &str, error: EngineError) -> EngineError {
    match error {
        EngineError::Pin(PinError::Ended(_))
        | EngineError::Namespace(NamespaceError::Enter(rustix::io::Errno::SRCH))
        | EngineError::Limits(LimitError::Gone) => {
            TaskLookupError::NotRunning { id: container.to_owned(), state: "stopped".to_owned() }.into()
        }
        other => other,
    }
}

/// The users of each of `blocks`, other than this process.
fn users_of(scene: &Scene, blocks: &[SuperBlock]) -> Result<Vec<Vec<User>>, EngineError> {
    let namespace = scene.task.mount_namespace()?;
    let found = step("users", || find_users(blocks, Some(namespace)));
    let mut users = found.map_err(EngineError::Users)?;
    let own = std::process::id();
    users.iter_mut().for_each(|list| list.retain(|user| u32::try_from(user.pid) != Ok(own)));
    Ok(users)
}

/// Takes draining contents that nobody uses any more out of the journal; returns the users of the others, in order.
fn prune_draining(scene: &mut Scene) -> Result<Vec<Vec<User>>, EngineError> {
    if scene.journal.draining.is_empty() {
        return Ok(Vec::new());
    }
    let counts: Vec<usize> = scene.journal.draining.iter().map(|d| d.blocks.len()).collect();
    let blocks: Vec<SuperBlock> =
        scene.journal.draining.iter().flat_map(|d| d.blocks.iter().copied()).collect();
    let mut lists = users_of(scene, &blocks)?.into_iter();
    let users: Vec<Vec<User>> =
        counts.into_iter().map(|n| lists.by_ref().take(n).flatten().collect()).collect();
    let before = scene.journal.draining.len();
    let mut used = users.iter().map(|list| !list.is_empty());
    scene.journal.draining.retain(|_| used.next().unwrap_or(true));
    if scene.journal.draining.len() != before {
        let draining = &scene.journal.draining;
        scene.kept.pins.retain(|(block, _)| draining.iter().any(|d| d.blocks.contains(block)));
        scene.write_journal()?;
    }
    Ok(users.into_iter().filter(|list| !list.is_empty()).collect())
}

/// Notes that the mounts of `record` are out of reach from now on.
fn add_draining(scene: &mut Scene, record: &Record, pins: Pins) {
    scene.kept.pins.extend(pins);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    scene.journal.draining.push(Draining {
        id: record.spec.id.clone(),
        content: record.spec.content.clone(),
        target: record.spec.target.clone(),
        blocks: record.mounts.iter().map(|m| m.block).collect(),
        since: i64::try_from(since).unwrap_or(i64::MAX),
    });
}

fn find_record(scene: &Scene, id: &AttachmentId) -> Result<Record, EngineError> {
    scene.journal.find(id).cloned().ok_or_else(|| EngineError::NoAttachment(id.clone()))
}
