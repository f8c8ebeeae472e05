//! Control groups: what a task uses and may use, that it used too much, and that nothing of it is left.
//!
//! In a VM, where a case takes ten times as long, are those of what differs between the versions and what needs systemd. The
//! others hold there too: `TEST_CASES` runs them where their `needs` allow it.
//!
//! | room | what its cases assert |
//! | --- | --- |
//! | [`group`] | nothing: the control groups of a task, as a test finds them |
//! | [`message`] | nothing: fields of a message whose type is not known |
//! | [`stats`] | every field of the metrics, against the kernel's file |
//! | [`devices`] | the same of huge pages and RDMA devices |
//! | [`oom`] | one event for each time that the kernel killed, before the exit |
//! | [`update`] | limits are changed, or refused and not changed |
//! | [`drivers`] | systemd's and the file system's driver, of runc and crun |
//! | [`processes`] | no process is left of a container that shares the PID namespace |

pub mod devices;
pub mod drivers;
pub mod group;
pub mod message;
pub mod oom;
pub mod processes;
pub mod stats;
pub mod update;

use anyhow::Result;

use super::task::Task;
use crate::scenario::ctr::ctr;

/// Removes the container of a task that has been deleted.
fn forget(task: Task<'_>) -> Result<()> {
    ctr(&["container", "rm", &task.id])?.success("ctr container rm")?;
    std::mem::forget(task);
    Ok(())
}
