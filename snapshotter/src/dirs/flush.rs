//! Making what was written to the snapshots durable, for many callers at once.
//!
//! `syncfs` writes out a whole file system, so one call serves everybody who had written before it began. Syncing the
//! files of a snapshot one by one was tried: from a few files on it took longer, also beside a program that fills the
//! disk, since each file waits for the disk in its turn (`docs/adr/0009`).

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

/// A file system to be flushed, and the flushes of it.
#[derive(Debug)]
pub(super) struct Flushes {
    /// Open from the beginning: syncfs(2) tells a descriptor of the errors since it was opened (Linux ≥ 5.8).
    directory: File,
    state: Mutex<State>,
    ended: Condvar,
}

/// Flushes are numbered from 1.
#[derive(Debug, Default)]
struct State {
    running: bool,
    /// The last that began.
    begun: u64,
    /// The last that ended.
    done: u64,
    /// The last that failed, and why.
    failed: Option<(u64, Errno)>,
}

impl State {
    fn outcome(&self, number: u64) -> rustix::io::Result<()> {
        match self.failed {
            Some((failed, errno)) if failed >= number => Err(errno),
            Some(_) | None => Ok(()),
        }
    }
}

impl Flushes {
    /// Flushes of the file system that holds `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { directory: File::open(path)?, state: Mutex::default(), ended: Condvar::new() })
    }

    /// Returns when a flush has ended that began after the call. Its error is everybody's who waited for it.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(self.flush_by(|| rustix::fs::syncfs(&self.directory))?)
    }

    fn flush_by(&self, flush: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let mut state = self.lock();
        // One that runs already may have passed what the caller wrote.
        let number = state.begun + 1;
        while state.running {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            if state.done >= number {
                return state.outcome(number);
            }
        }
        state.running = true;
        state.begun = number;
        drop(state);
        let flushed = flush();
        let mut state = self.lock();
        state.running = false;
        state.done = number;
        if let Err(errno) = flushed {
            state.failed = Some((number, errno));
        }
        self.ended.notify_all();
        flushed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between two statements that change it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicU64, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    fn flushes() -> Flushes {
        Flushes::open(Path::new("/")).unwrap()
    }

    #[test]
    fn who_comes_during_a_flush_waits_for_the_next_which_serves_all_of_them() {
        let (flushes, runs) = (flushes(), AtomicU64::new(0));
        let (began, has_begun) = mpsc::channel();
        let (go, may_end) = mpsc::channel::<()>();
        let late = Barrier::new(9);
        thread::scope(|scope| {
            let flushes = &flushes;
            let first = scope.spawn(move || {
                flushes.flush_by(|| {
                    began.send(()).unwrap();
                    may_end.recv().unwrap();
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let waiting: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        late.wait();
                        flushes.flush_by(|| {
                            runs.fetch_add(1, Ordering::SeqCst);
                            thread::sleep(std::time::Duration::from_millis(50));
                            Err(Errno::IO)
                        })
                    })
                })
                .collect();
            late.wait();
            thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(runs.load(Ordering::SeqCst), 0, "nobody may use the flush that ran already");
            go.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Ok(()));
            for thread in waiting {
                assert_eq!(thread.join().unwrap(), Err(Errno::IO));
            }
        });
        // Two, unless the machine keeps somebody from arriving in time.
        assert!(runs.load(Ordering::SeqCst) < 8, "one serves all who had arrived");
        assert_eq!(flushes.flush_by(|| Ok(())), Ok(()));
    }

    #[test]
    fn nobody_returns_before_a_flush_that_began_after_it_came() {
        let (flushes, written, flushed) = (flushes(), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let flush = || {
                            let seen = written.load(Ordering::SeqCst);
                            thread::yield_now();
                            flushed.fetch_max(seen, Ordering::SeqCst);
                            Ok(())
                        };
                        flushes.flush_by(flush).unwrap();
                        assert!(flushed.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
    }
}
