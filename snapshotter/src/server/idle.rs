//! Whether anybody uses the daemon: calls under way, and when the last one ended. A daemon that is started by its socket can
//! end when nobody does.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What is under way, and since when nothing is: cheap to clone.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    under_way: usize,
    /// When the last call ended.
    last: Instant,
}

/// A call that is under way until this is dropped.
#[derive(Debug)]
pub struct Call(Activity);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { under_way: 0, last: Instant::now() })))
    }
}

impl Activity {
    /// A call begins.
    pub fn begin(&self) -> Call {
        self.lock().under_way += 1;
        Call(self.clone())
    }

    /// Waits until there was no call for so long, and `in_use` says no. Something that is in use is looked at again after as
    /// long a time. Zero waits for ever.
    pub async fn idle(&self, time: Duration, in_use: impl Fn() -> bool) {
        if time.is_zero() {
            std::future::pending::<()>().await;
        }
        let mut since = Instant::now();
        loop {
            if let Some(last) = self.since() {
                since = since.max(last);
                if since.elapsed() >= time && !in_use() {
                    return;
                }
            }
            if since.elapsed() >= time {
                since = Instant::now();
            }
            tokio::time::sleep_until(since + time).await;
        }
    }

    /// Since when no call is under way, if none is.
    fn since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.under_way == 0).then_some(state.last)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.under_way -= 1;
        state.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const TIME: Duration = Duration::from_secs(600);

    async fn is_idle(activity: &Activity, in_use: bool, within: Duration) -> bool {
        timeout(within, activity.idle(TIME, || in_use)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_calls_for_so_long() {
        let activity = Activity::default();
        assert!(!is_idle(&activity, false, TIME - Duration::from_secs(1)).await);
        assert!(is_idle(&activity, false, TIME + Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_counts_until_it_has_ended_and_the_time_begins_then() {
        let activity = Activity::default();
        let call = activity.begin();
        assert!(!is_idle(&activity, false, TIME * 3).await);
        let waiting = activity.idle(TIME, || false);
        tokio::pin!(waiting);
        assert!(timeout(TIME / 2, &mut waiting).await.is_err());
        drop(call);
        assert!(timeout(TIME - Duration::from_secs(1), &mut waiting).await.is_err());
        assert!(timeout(TIME, &mut waiting).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_use_keeps_it_and_zero_keeps_it_for_ever() {
        let activity = Activity::default();
        assert!(!is_idle(&activity, true, TIME * 10).await);
        advance(TIME).await;
        assert!(timeout(TIME * 10, activity.idle(Duration::ZERO, || false)).await.is_err());
    }
}
