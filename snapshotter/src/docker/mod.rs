//! Docker's Engine API, as far as capsuled needs it: what Docker calls its containers. Only this room speaks to dockerd.
//!
//! containerd has no such names, and `docker rename` tells it nothing, so dockerd is asked when a name is wanted. What it said last
//! counts where it does not answer: a dockerd that hangs or is away renames nothing.

mod api;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

pub use self::api::ApiError;

/// How long answers are waited for.
#[derive(Debug, Clone, Copy)]
struct Times {
    little: Duration,
    much: Duration,
    /// How long one that has not answered in time is left alone by those who can do without its answer.
    rest: Duration,
}

const TIMES: Times =
    Times { little: Duration::from_secs(1), much: Duration::from_secs(5), rest: Duration::from_secs(10) };

/// Why the names of a dockerd's containers are not known.
#[derive(Debug, Clone, thiserror::Error)]
#[error("dockerd does not say on {socket} what its containers are called: {reason}")]
pub struct Unanswered {
    /// Where it was asked.
    socket: PathBuf,
    reason: Arc<str>,
}

/// What Docker calls containers, by their ids.
pub type Names = HashMap<String, String>;

/// The dockerds of this node: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct Docker {
    daemons: Arc<[Daemon]>,
}

#[derive(Debug)]
struct Daemon {
    socket: PathBuf,
    times: Times,
    /// Whose turn it is: one question at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    /// When the question was asked that `names` answer.
    asked: Option<Instant>,
    /// Why there was no answer to the last question.
    failed: Option<Unanswered>,
    /// When it was found not to answer in time.
    hung: Option<Instant>,
}

/// How long to wait for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// What was said last will do: a second, and not at all soon after it did not answer in time.
    Little,
    /// There is nothing without it.
    Much,
}

impl Docker {
    /// Those that listen on these sockets. Nobody is asked yet, and none need be there.
    pub fn new(sockets: &[PathBuf]) -> Self {
        Self::with(sockets, TIMES)
    }

    fn with(sockets: &[PathBuf], times: Times) -> Self {
        let daemon = |socket: &PathBuf| Daemon {
            socket: socket.clone(),
            times,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        };
        Self { daemons: sockets.iter().map(daemon).collect() }
    }

    /// One that has said this, and is away.
    #[cfg(test)]
    pub fn knowing(names: impl Iterator<Item = (String, String)>) -> Self {
        let docker = Self::new(&["/nowhere/docker.sock".into()]);
        docker.daemons[0].lock().names = names.collect();
        docker
    }

    /// Has each say what its containers are called now. Those that do not answer in time, and why.
    pub async fn ask(&self, patience: Patience) -> Vec<Unanswered> {
        let asked = futures::future::join_all(self.daemons.iter().map(|daemon| daemon.ask(patience))).await;
        asked.into_iter().filter_map(Result::err).collect()
    }

    /// What Docker called a container when it last said so.
    pub fn name(&self, id: &str) -> Option<String> {
        self.daemons.iter().find_map(|daemon| daemon.lock().names.get(id).cloned())
    }
}

impl Daemon {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, patience: Patience) -> Result<(), Unanswered> {
        if let Some(failed) = self.rests().filter(|_| patience == Patience::Little) {
            return Err(failed);
        }
        let called = Instant::now();
        let time = match patience {
            Patience::Little => self.times.little,
            Patience::Much => self.times.much,
        };
        let answer = timeout(time, async {
            let _turn = self.turn.lock().await;
            // Somebody's question that was asked meanwhile is as good.
            if self.lock().asked.is_some_and(|asked| asked >= called) {
                return Ok(());
            }
            let asked = Instant::now();
            api::names(&self.socket).await.map(|names| self.answered(asked, names))
        });
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error.to_string(), None)),
            Err(_) => Err(self.failed(&format!("no answer within {time:?}"), Some(Instant::now()))),
        }
    }

    /// Why it does not answer, if it did not in time a moment ago.
    fn rests(&self) -> Option<Unanswered> {
        let state = self.lock();
        state.hung.filter(|hung| hung.elapsed() < self.times.rest).and(state.failed.clone())
    }

    fn answered(&self, asked: Instant, names: Names) {
        let mut state = self.lock();
        if state.failed.is_some() {
            tracing::info!(socket = %self.socket.display(), "dockerd says what its containers are called");
        }
        *state = State { names, asked: Some(asked), failed: None, hung: None };
    }

    /// Keeps the names that it said before. It is told once until it answers.
    fn failed(&self, reason: &str, hung: Option<Instant>) -> Unanswered {
        let unanswered = Unanswered { socket: self.socket.clone(), reason: reason.into() };
        let mut state = self.lock();
        if state.failed.replace(unanswered.clone()).is_none() {
            tracing::warn!("{unanswered}: they are found by their ids, and by what they were called before");
        }
        state.hung = hung;
        unanswered
    }
}
