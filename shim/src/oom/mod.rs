//! Containers of which the kernel killed a process for want of memory.
//!
//! A watch holds one descriptor, which the shim's only thread waits for with all others: of version 2 the file
//! `memory.events`, whose changes poll(2) reports; of version 1 an eventfd that the kernel writes to. containerd's own
//! shim has an inotify instance for each container instead, and a node has few (`fs.inotify.max_user_instances`, 128).
//!
//! A report is of one kill, or of several at once, whatever the version; containerd's own shim reports as often as the
//! kernel of version 1 writes, which may be several times for one (see `legacy`).
//!
//! The kernel may report a change up to 10 ms late (`cgroup_file_notify`, Linux 5.2), and a process' end may be seen
//! before it. So whoever reports an end asks [`Watch::look`] first.

mod legacy;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use self::legacy::Legacy;
use crate::cgroup::Cgroup;

/// How long the kernel is given between saying that it will kill and doing it, in steps.
const SETTLES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(50)];

/// Why a container cannot be watched.
#[derive(Debug, Error)]
pub enum OomError {
    /// Its memory is not accounted for.
    #[error("the container is in no control group of the memory controller")]
    NoMemory,
    /// A file of the control group.
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// The eventfd.
    #[error("cannot make an event descriptor")]
    Eventfd(#[source] io::Error),
    /// The kernel does not take the eventfd.
    #[error("cannot write {}", .0.display())]
    Register(PathBuf, #[source] io::Error),
    /// tokio cannot wait for the descriptor.
    #[error("cannot wait for events of {}", .0.display())]
    Wait(PathBuf, #[source] io::Error),
}

/// Watches one container until it is dropped.
pub struct Watch {
    source: Arc<Source>,
    task: AbortHandle,
}

/// What a look at a control group comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    /// Nothing that was not reported.
    Nothing,
    /// The kernel has written, and may be about to kill.
    Unsettled,
    /// The caller reports.
    Report,
}

enum Source {
    Unified { events: AsyncFd<OwnedFd>, kills: AtomicU64 },
    Legacy(Legacy),
}

impl Watch {
    /// Begins to watch a container in which no process has run yet. `report` is called once for each time that processes
    /// were killed.
    ///
    /// # Errors
    /// [`OomError`]; then the container is not watched.
    pub fn start(cgroup: &Cgroup, report: impl Fn() + Send + 'static) -> Result<Self, OomError> {
        let directory = cgroup.directory("memory").ok_or(OomError::NoMemory)?;
        let source = Arc::new(match cgroup {
            Cgroup::Unified(_) => Source::unified(directory)?,
            Cgroup::Legacy(_) => Source::Legacy(Legacy::open(directory)?),
        });
        let waiting = source.clone();
        let task = tokio::spawn(async move {
            while waiting.changed().await.is_ok() {
                if waiting.settled_look().await {
                    report();
                }
            }
        });
        Ok(Self { source, task: task.abort_handle() })
    }

    /// Whether processes were killed that have not been reported, when the end of one was seen. The caller reports. After the `last`
    /// one there is nothing to be waited for.
    pub fn look(&self, last: bool) -> bool {
        self.source.look(last) == Outlook::Report
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    fn unified(directory: &Path) -> Result<Self, OomError> {
        let path = directory.join("memory.events");
        let events = File::open(&path).map_err(|e| OomError::Open(path.clone(), e))?;
        // A control group may have had another container.
        let kills = read_kills(&events).map_err(|e| OomError::Open(path.clone(), e))?;
        let events = wait_for(events.into(), Interest::PRIORITY).map_err(|e| OomError::Wait(path, e))?;
        Ok(Self::Unified { events, kills: kills.into() })
    }

    async fn changed(&self) -> io::Result<()> {
        match self {
            Self::Unified { events, .. } => events.ready(Interest::PRIORITY).await?.clear_ready(),
            Self::Legacy(legacy) => legacy.changed().await?,
        }
        Ok(())
    }

    /// Looks until the kernel has done what it said, or cannot be about to do it any more.
    async fn settled_look(&self) -> bool {
        for settle in SETTLES {
            match self.look(false) {
                Outlook::Unsettled => tokio::time::sleep(settle).await,
                decided => return decided == Outlook::Report,
            }
        }
        self.look(true) == Outlook::Report
    }

    fn look(&self, settled: bool) -> Outlook {
        match self {
            // A control group that is gone has no more of them.
            Self::Unified { events, kills } => match read_kills(events.get_ref()) {
                Ok(now) if now > kills.swap(now, Ordering::Relaxed) => Outlook::Report,
                _ => Outlook::Nothing,
            },
            Self::Legacy(legacy) => legacy.look(settled),
        }
    }
}

// `with_interest` is deprecated because a type of the caller's may name a descriptor that it does not own. `OwnedFd` owns
// its.
#[allow(deprecated)]
fn wait_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// How many processes of a control group, and of those below it, were killed.
fn read_kills(events: impl AsFd) -> io::Result<u64> {
    let mut text = [0; 512];
    let length = rustix::io::pread(events, &mut text, 0)?;
    Ok(parse_kills(&String::from_utf8_lossy(&text[..length])))
}

fn parse_kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted() {
        for (text, kills) in [
            ("low 0\nhigh 0\nmax 34\noom 5\noom_kill 6\noom_group_kill 7\n", 6),
            ("oom 5\n", 0),
            ("oom_kill x\n", 0),
            ("", 0),
        ] {
            assert_eq!(parse_kills(text), kills, "{text:?}");
        }
    }

    /// With a regular file, which cannot be waited for, in place of the kernel's.
    #[test]
    fn a_watch_says_why_it_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::Unified(dir.path().to_owned());
        let start = |cgroup: &Cgroup| Watch::start(cgroup, || {}).map(drop);
        assert!(matches!(start(&cgroup), Err(OomError::Open(..))));
        assert!(matches!(start(&Cgroup::Legacy(Vec::new())), Err(OomError::NoMemory)));
    }

    /// What waits for it is tested on real control groups. A pipe cannot be read at an offset, as a control group that is
    /// gone cannot be.
    #[tokio::test]
    async fn a_control_group_that_is_gone_has_no_more_kills() {
        let (reader, _writer) = io::pipe().unwrap();
        let events = wait_for(reader.into(), Interest::READABLE).unwrap();
        let source = Source::Unified { events, kills: 2.into() };
        assert_eq!(source.look(true), Outlook::Nothing);
    }
}
