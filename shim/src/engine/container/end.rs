//! The end of processes and of the container: exits reported in order, and nothing left on the host.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use containerd_shim::protos::events::task::{TaskDelete, TaskExit};
use protobuf::MessageField;
use tokio::time::timeout;

use super::{Container, KILL, orphans};
use crate::{
    bundle::{Bundle, BundleError, read_pid_file},
    cgroup::leftover,
    engine::{
        EngineError, Id, Process, chain,
        process::NEVER_STARTED,
        state::{Exit, State, Step},
    },
    events::{no_time, timestamp},
    io::remove_dead_consoles,
    oci::Runtime,
    reaper::{Exited, Reaper},
    registration, rootfs,
};

/// How long an init's exit waits for the exits of the container's other processes, all of which have been killed.
const LAST_EXECS: Duration = Duration::from_secs(10);
/// How long a container that was never started takes to end once it is deleted.
const END: Duration = Duration::from_secs(10);

impl Container {
    /// Waits for a process' exit and reports it.
    pub fn supervise(self: &Arc<Self>, process: Arc<Process>, exited: Exited) {
        let this = self.clone();
        tokio::spawn(async move {
            // The reaper lives as long as the shim.
            let Ok(exit) = exited.await else { return };
            let is_init = process.exec_id().is_empty();
            // At the same time: slow readers of several processes keep nobody longer than one.
            let execs = async {
                if is_init {
                    this.end_execs().await;
                }
            };
            let output = async {
                if let Some(io) = process.io() {
                    io.drained().await;
                }
            };
            tokio::join!(execs, output);
            // A start under way is reported first.
            let _step = process.step().await;
            process.end(exit);
            this.report_oom(is_init);
            this.publish_exit(&process, exit);
            if !is_init {
                this.leave();
            }
        });
    }

    /// Ends what outlives the init, and lets every exec's exit be reported before the init's.
    async fn end_execs(&self) {
        self.gate.send_modify(|gate| gate.open = false);
        if self.spec.shares_pid_namespace()
            && let Err(error) = self.runtime.kill(self.id.as_str(), KILL, true).await
            && !error.is_finished()
            && !error.is_missing()
        {
            log::warn!("kill what is left of container {}: {}", self.id, chain(&error));
        }
        let mut gate = self.gate.subscribe();
        if timeout(LAST_EXECS, gate.wait_for(|gate| gate.running == 0)).await.is_err() {
            log::warn!("container {}: processes outlive its init", self.id);
        }
    }

    /// Counts an exec in, unless the init has ended.
    pub(super) fn enter(&self) -> Result<(), EngineError> {
        let entered = self.gate.send_if_modified(|gate| {
            gate.running += usize::from(gate.open);
            gate.open
        });
        if entered { Ok(()) } else { Err(EngineError::InitGone(self.id.to_string())) }
    }

    pub(super) fn leave(&self) {
        self.gate.send_modify(|gate| gate.running -= 1);
    }

    fn publish_exit(&self, process: &Process, exit: Exit) {
        let id = if process.exec_id().is_empty() { self.id.as_str() } else { process.exec_id() };
        self.host.events.publish(TaskExit {
            container_id: self.id.to_string(),
            id: id.to_owned(),
            pid: process.state().pid().cast_unsigned(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    /// Forgets an exec that has ended or was never started. Returns the state that it was in.
    ///
    /// # Errors
    /// [`EngineError::Refused`] while it runs.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<State, EngineError> {
        let process = self.process(exec_id)?;
        let _step = process.step().await;
        let state = process.state();
        state.allow(Step::Delete)?;
        // Whoever waits for an exec that never started must not wait for ever.
        process.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
        process.release_io();
        self.execs().remove(exec_id);
        Ok(state)
    }

    /// Takes away all that the container has on the host. Returns the state that its init was in: one that was never started
    /// has no exit for who deletes it, as with containerd's own shim, although it is killed for that.
    ///
    /// # Errors
    /// [`EngineError::Refused`] while it runs; other errors leave what could not be taken away, and the call can be
    /// repeated.
    pub async fn delete(&self) -> Result<State, EngineError> {
        let state = {
            let _step = self.init.step().await;
            let state = self.init.state();
            state.allow(Step::Delete)?;
            if *self.deleted() {
                return Err(EngineError::NoContainer(self.id.to_string()));
            }
            // A container that was never started is a live process: only force ends it with every runtime.
            self.runtime.delete(self.id.as_str(), state.exit().is_none()).await?;
            if state == State::Added {
                // Never restored: there is no process whose exit would come.
                self.init.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
            }
            state
        };
        timeout(END, self.init.wait()).await.map_err(|_| EngineError::Undead(self.id.to_string()))?;
        let _step = self.init.step().await;
        if let Err(error) =
            registration::unregister(Path::new(registration::RUN), &self.host.namespace, self.id.as_str())
        {
            log::warn!("container {}: {}", self.id, chain(&error));
        }
        rootfs::unmount_all(&self.bundle.rootfs()).await?;
        if std::mem::replace(&mut *self.deleted(), true) {
            return Err(EngineError::NoContainer(self.id.to_string()));
        }
        self.bundle.forget_options();
        self.init.release_io();
        for (_, exec) in self.execs().drain() {
            exec.process.end(Exit { at: SystemTime::now(), ..NEVER_STARTED });
            exec.process.release_io();
        }
        Ok(state)
    }

    /// Says that it is gone, and that its init was in this state.
    pub fn publish_deleted(&self, state: State) {
        let exit = state.exit();
        self.host.events.publish(TaskDelete {
            container_id: self.id.to_string(),
            pid: state.pid().cast_unsigned(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: MessageField::some(exit.map_or_else(no_time, |exit| timestamp(exit.at))),
            ..Default::default()
        });
    }
}

/// Takes away the root of a container that nobody will ask about again.
pub(super) async fn unmount(bundle: &Bundle, id: &Id) {
    if let Err(error) = rootfs::unmount_all(&bundle.rootfs()).await {
        log::warn!("remove container {id}: {}", chain(&error));
    }
}

/// Cleans up after a shim that was killed: the `delete` action's part.
///
/// # Errors
/// What could not be read of the bundle; what could not be removed is logged.
pub async fn clean_up(
    bundle: &Bundle,
    id: &Id,
    namespace: &str,
    reaper: Arc<Reaper>,
) -> Result<i32, BundleError> {
    let kept = bundle.read_options()?;
    if kept.is_some() {
        orphans::kill(bundle.path(), id.as_str()).await;
    }
    let half_made = kept.is_some();
    let runtime = Runtime::new(&kept.unwrap_or_default(), namespace, bundle.path(), reaper);
    // containerd asks for this at the end of every shim, nearly all of which have left nothing.
    if runtime.may_have(id.as_str())
        && let Err(error) = runtime.delete(id.as_str(), true).await
    {
        log::warn!("remove container {id}: {}", chain(&error));
    }
    if half_made && let Ok(spec) = bundle.read_spec() {
        leftover::remove(spec.cgroups_path()).await;
    }
    unmount(bundle, id).await;
    remove_dead_consoles();
    read_pid_file(&bundle.init_pid_file())
}
