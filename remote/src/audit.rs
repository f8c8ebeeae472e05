//! What was called, by whom, and what became of it: one line for each call, in the log, under the target `audit`.
//!
//! What changes something, and what goes on until somebody ends it, has a line when it begins, too: a process that is killed
//! writes no more.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use capsule_certificates::Client;
use tonic::Code;

use crate::clients::{Bucket, Limits};

/// The target of the lines, which are written whatever the level of the log.
pub const TARGET: &str = "audit";

/// Whom a connection is from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What their certificate says.
    pub client: Client,
    /// Where they are.
    pub address: SocketAddr,
}

impl Peer {
    /// A connection that was let in.
    pub fn connected(&self) {
        let Client { name, role, serial, .. } = &self.client;
        tracing::info!(
            target: TARGET, client = name.as_str(), role = role.name(), peer = %self.address,
            serial = serial.as_str(), "connected"
        );
    }

    /// And its end.
    pub fn disconnected(&self) {
        let Client { name, role, .. } = &self.client;
        tracing::info!(
            target: TARGET, client = name.as_str(), role = role.name(), peer = %self.address, "disconnected"
        );
    }
}

/// A call that has not ended. Dropped before it has, it was cancelled.
#[derive(Debug)]
pub struct Entry {
    peer: Arc<Peer>,
    method: String,
    object: String,
    began: Instant,
    ended: bool,
}

impl Entry {
    /// A call that has come.
    pub fn new(peer: Arc<Peer>, method: &str) -> Self {
        // What nobody serves is the caller's to choose.
        let method = method.trim_start_matches('/').chars().take(128).collect();
        Self { peer, method, object: String::new(), began: Instant::now(), ended: false }
    }

    /// What it is about.
    pub fn about(&mut self, object: String) {
        self.object = object;
    }

    /// Writes that it begins.
    pub fn begun(&self) {
        self.line("begun", "");
    }

    /// Writes how it has ended.
    pub fn ended(mut self, code: Code) {
        self.end(code, "");
    }

    /// Writes that it was refused here, and why.
    pub fn refused(mut self, code: Code, reason: &str) {
        self.end(code, reason);
    }

    fn end(&mut self, code: Code, reason: &str) {
        self.ended = true;
        let outcome = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
        self.line(&outcome, reason);
    }

    fn line(&self, outcome: &str, reason: &str) {
        let Client { name, role, .. } = &self.peer.client;
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            target: TARGET, client = name.as_str(), role = role.name(), peer = %self.peer.address,
            method = self.method.as_str(), object = self.object.as_str(), outcome, reason, milliseconds, "call"
        );
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Code::Cancelled, "");
        }
    }
}

/// Lines of those who were not let in: as many as somebody may read, and how many there were besides.
#[derive(Debug)]
pub struct Refusals(Mutex<(Bucket, u64)>);

/// Of strangers, all together.
const LINES: Limits = Limits { per_second: 1, burst: 50 };

impl Default for Refusals {
    fn default() -> Self {
        Self(Mutex::new((Bucket::full(LINES, Instant::now()), 0)))
    }
}

impl Refusals {
    /// Writes that a connection was refused, and why.
    pub fn write(&self, peer: SocketAddr, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, unwritten) = &mut *state;
        let written: Result<(), Duration> = bucket.take(LINES, Instant::now());
        if written.is_err() {
            *unwritten += 1;
            return;
        }
        let before = std::mem::take(unwritten);
        tracing::warn!(target: TARGET, %peer, reason, unwritten_before = before, "refused");
    }
}
