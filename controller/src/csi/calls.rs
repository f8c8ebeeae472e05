//! How calls are made: each to its end, counted and logged once, and of one volume one at a time.
//!
//! A call goes on when its caller has gone: what capsuled does is then finished and known, and the caller, who asks again, finds it. Calls
//! of one volume wait for each other, for the kubelet publishes one volume for several pods at once, and backs off where it is told
//! `ABORTED`; that is told to who has waited for [`PATIENCE`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};
use tonic::{Response, Status};

use crate::meters::Meters;

/// How long a call waits for another of the same volume.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is being done with a volume. Nobody else's call does anything with it while this is held.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] OwnedMutexGuard<()>); // held, and never looked at

/// The volumes that are worked on.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    locks: Arc<Mutex<HashMap<String, Weak<Lock<()>>>>>,
}

impl Turns {
    /// Waits until nobody works on it.
    ///
    /// # Errors
    /// `ABORTED` when that takes too long.
    pub async fn of(&self, id: &str) -> Result<Turn, Status> {
        match tokio::time::timeout(PATIENCE, self.lock(id).lock_owned()).await {
            Ok(turn) => Ok(Turn(turn)),
            Err(_) => Err(Status::aborted(format!("another call for {id} is under way: try again"))),
        }
    }

    fn lock(&self, id: &str) -> Arc<Lock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Whether a call changes something, when it succeeds: those are logged for everybody, the others (the kubelet asks for the statistics of
/// each volume once a minute) for whoever debugs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only asks.
    Asks,
    /// It changes something.
    Changes,
}

/// Makes a call to its end, and counts and logs it. `about` is the volume or what else it is about; no secret.
pub async fn call<T: Send + 'static>(
    meters: &Meters,
    kind: Kind,
    method: &'static str,
    about: String,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let meters = meters.clone();
    let made = tokio::spawn(async move {
        let began = Instant::now();
        let result = work.await;
        let took = began.elapsed();
        let code = result.as_ref().map_or_else(|status| format!("{:?}", status.code()), |_| "OK".to_owned());
        let (volume, milliseconds) = (about.as_str(), took.as_millis());
        match &result {
            Ok(_) if kind == Kind::Changes => tracing::info!(method, volume, code, milliseconds, "call"),
            Ok(_) => tracing::debug!(method, volume, code, milliseconds, "call"),
            Err(status) => {
                tracing::warn!(method, volume, code, milliseconds, error = status.message(), "call");
            }
        }
        meters.called(method, code, took);
        result
    });
    match made.await {
        Ok(result) => result.map(Response::new),
        Err(error) => Err(Status::internal(format!("{method} was broken off: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_of_one_volume_wait_for_each_other() {
        let turns = Turns::default();
        let first = turns.of("a").await.unwrap();
        turns.of("b").await.unwrap();
        let next = tokio::spawn({
            let turns = turns.clone();
            async move { turns.of("a").await.map(drop) }
        });
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!next.is_finished());
        drop(first);
        next.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told() {
        let turns = Turns::default();
        let _first = turns.of("a").await.unwrap();
        let status = turns.of("a").await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.message().contains("another call for a"), "{status}");
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_is_done() {
        let turns = Turns::default();
        for id in 0..100 {
            turns.of(&id.to_string()).await.unwrap();
        }
        assert!(turns.locks.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn a_call_is_finished_though_its_caller_has_gone() {
        let (meters, done) = (Meters::new("csi"), Arc::new(AtomicU32::new(0)));
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let counted = Arc::clone(&done);
        let work = async move {
            let _ = begin.send(());
            let _ = gone.await;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let caller = tokio::spawn({
            let meters = meters.clone();
            async move { call(&meters, Kind::Changes, "CreateVolume", "a".to_owned(), work).await.map(drop) }
        });
        begun.await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        while done.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        while !meters.text().unwrap().contains("calls_total{method=\"CreateVolume\",code=\"OK\"} 1") {
            tokio::task::yield_now().await;
        }
    }
}
