//! Containers of which the kernel killed a process for want of memory.
//!
//! A watch holds one descriptor, which the shim's only thread waits for with all others: of version 2 the file
//! `memory.events`, whose changes poll(2) reports; of version 1 an eventfd that the kernel writes to. containerd's own
//! shim has an inotify instance for each container instead, and a node has few (`fs.inotify.max_user_instances`, 128).
//!
//! The kernel may report a change up to 10 ms late (`cgroup_file_notify`, Linux 5.2), and a process' end may be seen
//! before it. So whoever reports an end asks [`Watch::look`] first.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use crate::cgroup::Cgroup;

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

enum Source {
    Unified { events: AsyncFd<OwnedFd>, kills: AtomicU64 },
    Legacy { eventfd: AsyncFd<OwnedFd>, control: PathBuf },
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
            Cgroup::Legacy(_) => Source::legacy(directory)?,
        });
        let waiting = source.clone();
        let task = tokio::spawn(async move {
            while waiting.changed().await.is_ok() {
                if waiting.look() {
                    report();
                }
            }
        });
        Ok(Self { source, task: task.abort_handle() })
    }

    /// Whether processes were killed that have not been reported. The caller reports.
    pub fn look(&self) -> bool {
        self.source.look()
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

    /// Documentation/admin-guide/cgroup-v1/memory.rst, section 10.
    fn legacy(directory: &Path) -> Result<Self, OomError> {
        let control = directory.join("memory.oom_control");
        let file = File::open(&control).map_err(|e| OomError::Open(control.clone(), e))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = eventfd(0, flags).map_err(|e| OomError::Eventfd(e.into()))?;
        let register = directory.join("cgroup.event_control");
        fs::write(&register, format!("{} {}", eventfd.as_raw_fd(), file.as_raw_fd()))
            .map_err(|e| OomError::Register(register, e))?;
        let eventfd = wait_for(eventfd, Interest::READABLE);
        Ok(Self::Legacy { eventfd: eventfd.map_err(|e| OomError::Wait(control.clone(), e))?, control })
    }

    async fn changed(&self) -> io::Result<()> {
        match self {
            Self::Unified { events, .. } => events.ready(Interest::PRIORITY).await?.clear_ready(),
            Self::Legacy { eventfd, .. } => eventfd.ready(Interest::READABLE).await?.clear_ready(),
        }
        Ok(())
    }

    fn look(&self) -> bool {
        match self {
            // A control group that is gone has no more of them.
            Self::Unified { events, kills } => match read_kills(events.get_ref()) {
                Ok(now) => now > kills.swap(now, Ordering::Relaxed),
                Err(_) => false,
            },
            Self::Legacy { eventfd, control } => {
                let mut count = [0; 8];
                // The kernel also writes when the control group is removed.
                rustix::io::read(eventfd.get_ref(), &mut count).is_ok() && control.exists()
            }
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
    use std::time::Duration;

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

    /// A source whose file a test writes: what waits for it is tested on real control groups.
    #[tokio::test]
    async fn each_kill_is_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.events");
        fs::write(&path, "oom_kill 2\n").unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let events = wait_for(reader.into(), Interest::READABLE).unwrap();
        let source = Source::Unified { events, kills: 2.into() };
        // A pipe cannot be read at an offset, as a control group that is gone cannot be.
        assert!(!source.look());

        let (control, gone) = (path, dir.path().join("gone"));
        for (control, seen) in [(control, true), (gone, false)] {
            let eventfd = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
            let eventfd = wait_for(eventfd, Interest::READABLE).unwrap();
            let source = Source::Legacy { eventfd, control };
            tokio::time::timeout(Duration::from_secs(10), source.changed()).await.unwrap().unwrap();
            assert_eq!((source.look(), source.look()), (seen, false));
        }
    }
}
