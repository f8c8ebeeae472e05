//! Version 1: an eventfd that the kernel writes to, and `memory.oom_control`.
//!
//! Documentation/admin-guide/cgroup-v1/memory.rst, section 10. The eventfd says that an allocation found no memory, not
//! that a process was killed. It is written
//!
//! | when | and `oom_kill` of the same file (Linux 4.13) |
//! | --- | --- |
//! | a process is about to be killed | grows a moment later |
//! | one that is being killed, or another thread of it, asks for memory once more (Linux 6.18) | does not grow |
//! | a process of a control group below is about to be killed | does not grow here: each has its own |
//! | a limit of a control group above is met, as a pod's | grows in that of the process which is killed, and in no other |
//! | processes wait, for `oom_kill_disable` is 1 | does not grow |
//! | the control group is removed | is gone |
//!
//! So the count decides where it grows. Where it does not, what comes soon after a report belongs to that; and a count that
//! grows soon after a report without it belongs to that report. All containers below a limit that is met are told of, as by
//! containerd's own shim.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::{Interest, unix::AsyncFd};

use super::{OomError, Outlook, parse_kills, wait_for};

/// How long after a report the kernel may still write because of what was reported.
const SAME: Duration = Duration::from_millis(100);
/// How long after it was told of may a kill be counted: the kernel writes to its log first, which may be a slow line.
const LATE: Duration = Duration::from_secs(5);

pub(super) struct Legacy {
    eventfd: AsyncFd<OwnedFd>,
    control: PathBuf,
    seen: Mutex<Seen>,
}

impl Legacy {
    pub(super) fn open(directory: &Path) -> Result<Self, OomError> {
        let control = directory.join("memory.oom_control");
        let open = |e| OomError::Open(control.clone(), e);
        let file = File::open(&control).map_err(open)?;
        // A control group may have had another container.
        let kills = parse_kills(&fs::read_to_string(&control).map_err(open)?);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = eventfd(0, flags).map_err(|e| OomError::Eventfd(e.into()))?;
        let register = directory.join("cgroup.event_control");
        fs::write(&register, format!("{} {}", eventfd.as_raw_fd(), file.as_raw_fd()))
            .map_err(|e| OomError::Register(register, e))?;
        Self::of(eventfd, control.clone(), kills).map_err(|e| OomError::Wait(control, e))
    }

    fn of(eventfd: OwnedFd, control: PathBuf, kills: u64) -> io::Result<Self> {
        let eventfd = wait_for(eventfd, Interest::READABLE)?;
        Ok(Self { eventfd, control, seen: Mutex::new(Seen { kills, ..Seen::default() }) })
    }

    pub(super) async fn changed(&self) -> io::Result<()> {
        self.eventfd.ready(Interest::READABLE).await?.clear_ready();
        Ok(())
    }

    /// What there is to report, when the kernel may be about to kill (`settled` is no) or must have done it.
    pub(super) fn look(&self, settled: bool) -> Outlook {
        let mut count = [0; 8];
        let told = rustix::io::read(self.eventfd.get_ref(), &mut count).is_ok();
        let control = fs::read_to_string(&self.control);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(control) = control else {
            seen.told = false;
            return Outlook::Nothing;
        };
        seen.told |= told;
        seen.judge(parse_kills(&control), settled, Instant::now())
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// Those that were reported.
    kills: u64,
    /// The kernel has written, and nothing was decided yet.
    told: bool,
    /// When the last report was, or what belonged to it.
    reported: Option<Instant>,
    /// When there was a report whose kill is not counted yet, if it ever is.
    ahead: Option<Instant>,
}

impl Seen {
    fn judge(&mut self, kills: u64, settled: bool, now: Instant) -> Outlook {
        let grown = kills > self.kills;
        match (grown, self.told) {
            (false, false) => return Outlook::Nothing,
            (false, true) if !settled => return Outlook::Unsettled,
            _ => {}
        }
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now.duration_since(at) <= time);
        let was_told = grown && kills == self.kills + 1 && within(self.ahead, LATE);
        let same = within(self.reported.replace(now), SAME);
        (self.kills, self.told) = (kills.max(self.kills), false);
        let is_new = if grown { !was_told } else { !same };
        // What is told of once more is still not counted.
        self.ahead = if grown || is_new { is_new.then_some(now).filter(|_| !grown) } else { self.ahead };
        if is_new { Outlook::Report } else { Outlook::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_wrote_is_seen_once_and_not_of_a_group_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.oom_control");
        fs::write(&path, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        for (control, seen) in [(path, Outlook::Report), (dir.path().join("gone"), Outlook::Nothing)] {
            let eventfd = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
            let legacy = Legacy::of(eventfd, control, 2).unwrap();
            tokio::time::timeout(Duration::from_secs(10), legacy.changed()).await.unwrap().unwrap();
            assert_eq!((legacy.look(false), legacy.look(true)), (seen, Outlook::Nothing));
        }
    }

    /// Looks, one after the other: how long after the last, whether the kernel has written, the count, and whether the
    /// kernel must be through.
    #[test]
    fn a_kill_is_reported_once_however_often_the_kernel_writes() {
        use Outlook::{Nothing, Report, Unsettled};
        type Look = (u64, bool, u64, bool, Outlook);
        let cases: [(&str, &[Look]); 9] = [
            ("nothing", &[(0, false, 5, false, Nothing), (0, false, 5, true, Nothing)]),
            ("the count grows late", &[(0, true, 5, false, Unsettled), (1, false, 6, false, Report)]),
            (
                "an exit is seen first",
                &[(0, false, 6, true, Report), (0, true, 6, false, Unsettled), (60, false, 6, true, Nothing)],
            ),
            (
                "threads",
                &[(0, true, 6, false, Report), (90, true, 6, true, Nothing), (90, true, 6, true, Nothing)],
            ),
            ("two kills", &[(0, true, 6, false, Report), (1, true, 7, false, Report)]),
            (
                "counted very late",
                &[(0, true, 5, true, Report), (200, false, 6, true, Nothing), (1, true, 7, false, Report)],
            ),
            (
                "a group below, and later its own",
                &[(0, true, 5, true, Report), (6000, true, 6, false, Report)],
            ),
            (
                "told of twice, then counted late",
                &[(0, true, 5, true, Report), (50, true, 5, true, Nothing), (200, false, 6, true, Nothing)],
            ),
            ("groups below, or no killing", &[(0, true, 5, true, Report), (101, true, 5, true, Report)]),
        ];
        for (name, looks) in cases {
            let (mut seen, mut now) = (Seen { kills: 5, ..Seen::default() }, Instant::now());
            for (at, (later, told, kills, settled, expected)) in looks.iter().enumerate() {
                now += Duration::from_millis(*later);
                seen.told |= told;
                assert_eq!(seen.judge(*kills, *settled, now), *expected, "{name}, look {at}");
            }
        }
    }
}
