//! Whether whoever asked for a step still waits for its answer: a client may hang up, or its deadline pass.
//!
//! A step goes on all the same. But a command of the OCI runtime that hangs must not hold a container for ever: it is
//! given a moment more and killed (see `oci`), as containerd's own shim kills it at once.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
    time::sleep,
};

/// How long a command may take that nobody waits for, such as one that clears up: no client's deadline ends it.
const ALONE: Duration = Duration::from_secs(30);

tokio::task_local! {
    /// Its sender is dropped when the caller has left.
    static CALLER: Option<watch::Receiver<()>>;
}

/// Runs `step` to its end on a task of its own. When the future that this returns is dropped, the step's caller has left.
///
/// # Errors
/// When the step panics.
pub async fn to_end<T: Send + 'static>(
    step: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    let (_waits, caller) = watch::channel(());
    let task: JoinHandle<T> = tokio::spawn(CALLER.scope(Some(caller), step));
    task.await
}

/// A part of a step that nobody asked for, so that nobody can leave it: clearing up.
pub async fn nobodys<F: Future>(part: F) -> F::Output {
    CALLER.scope(None, part).await
}

/// A part of the present step that runs on another thread: its caller is the same.
pub fn on_thread<T>(part: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let caller = CALLER.try_with(Clone::clone);
    move || match caller {
        Ok(caller) => CALLER.sync_scope(caller, part),
        Err(_) => part(),
    }
}

/// Returns when the caller of the present step has left. In a step of the shim's own somebody has waited for long enough
/// after [`ALONE`].
pub async fn left() {
    let Ok(Some(mut caller)) = CALLER.try_with(Clone::clone) else { return sleep(ALONE).await };
    // Nothing is ever sent: it ends with its sender.
    while caller.changed().await.is_ok() {}
}

/// Whether the caller of the present step has left; not in a step of the shim's own.
pub fn has_left() -> bool {
    // Nothing is ever sent: an error says that the sender is gone.
    CALLER
        .try_with(|caller| caller.as_ref().is_some_and(|caller| caller.has_changed().is_err()))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_step_learns_that_its_caller_left_and_goes_on() {
        let (say, said) = oneshot::channel();
        let step = to_end(async {
            assert!(!has_left());
            left().await;
            assert!(has_left());
            // What clears up is not left again.
            say.send(timeout(MOMENT, nobodys(left())).await.is_err()).unwrap();
        });
        assert!(timeout(MOMENT, step).await.is_err());
        assert!(said.await.unwrap());
    }

    #[tokio::test]
    async fn a_thread_learns_it_too() {
        let (say, said) = oneshot::channel();
        let step = to_end(async {
            let waits = on_thread(|| tokio::runtime::Handle::current().block_on(left()));
            tokio::task::spawn_blocking(waits).await.unwrap();
            say.send(()).unwrap();
        });
        assert!(timeout(MOMENT, step).await.is_err());
        timeout(Duration::from_secs(10), said).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_leaves_while_the_step_is_waited_for() {
        let stays = to_end(async { timeout(MOMENT, left()).await.is_err() });
        assert!(stays.await.unwrap());
        assert!(timeout(MOMENT, left()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asked_for_has_a_limit_too() {
        let began = tokio::time::Instant::now();
        left().await;
        nobodys(left()).await;
        assert_eq!(began.elapsed(), 2 * ALONE);
    }
}
