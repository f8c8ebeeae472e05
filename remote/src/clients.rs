//! How much each client may do: calls, as a bucket that fills with time, and connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What fills with time, up to a limit, and is taken from.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(limits: Limits, now: Instant) -> Self {
        Self { level: f64::from(limits.burst), at: now }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&mut self, limits: Limits, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(limits.per_second);
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + since * rate).min(f64::from(limits.burst));
        self.at = now;
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.level) / rate))
    }

    fn is_full(&self, limits: Limits, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.level + since * f64::from(limits.per_second) >= f64::from(limits.burst)
    }
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of both at least 1.
    pub per_second: u16,
    /// What it holds.
    pub burst: u16,
}

#[derive(Debug)]
struct Client {
    calls: Bucket,
    connections: usize,
}

/// All clients that have a connection or have made calls lately, by their names.
#[derive(Clone, Debug)]
pub struct Clients {
    limits: Limits,
    /// Most connections of one client.
    connections: usize,
    known: Arc<Mutex<HashMap<String, Client>>>,
}

/// One connection of a client; it is counted until this is dropped.
#[derive(Debug)]
pub struct Held {
    clients: Clients,
    name: String,
}

impl Clients {
    /// None yet. Each may have so many connections.
    pub fn new(limits: Limits, connections: usize) -> Self {
        Self { limits, connections, known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner) // numbers alone: there is nothing half done
    }

    /// Counts a connection of the client `name`: `None` when it has as many as it may have.
    pub fn connect(&self, name: &str, now: Instant) -> Option<Held> {
        let mut known = self.known();
        // Who is forgotten would have a full bucket: it makes no difference.
        known.retain(|_, client| client.connections > 0 || !client.calls.is_full(self.limits, now));
        let fresh = || Client { calls: Bucket::full(self.limits, now), connections: 0 };
        let client = known.entry(name.to_owned()).or_insert_with(fresh);
        if client.connections >= self.connections {
            return None;
        }
        client.connections += 1;
        Some(Held { clients: self.clone(), name: name.to_owned() })
    }
}

impl Held {
    /// How many calls the client may make.
    pub fn limits(&self) -> Limits {
        self.clients.limits
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long it takes until the client may make one.
    pub fn call(&self, now: Instant) -> Result<(), Duration> {
        let limits = self.clients.limits;
        self.clients.known().get_mut(&self.name).map_or(Ok(()), |client| client.calls.take(limits, now))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(client) = self.clients.known().get_mut(&self.name) {
            client.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { per_second: 10, burst: 3 };

    #[test]
    fn calls_are_as_many_as_time_allows() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let clients = Clients::new(LIMITS, 2);
        let one = clients.connect("one", start).unwrap();
        for _ in 0..3 {
            one.call(start).unwrap();
        }
        let wait = one.call(start).unwrap_err();
        assert!(wait > Duration::from_millis(99) && wait <= Duration::from_millis(100), "{wait:?}");
        // Another connection of the same client does not help, another client is not held up.
        assert!(clients.connect("one", start).unwrap().call(start).is_err());
        clients.connect("two", start).unwrap().call(start).unwrap();
        one.call(at(101)).unwrap();
        assert!(one.call(at(101)).is_err());
        // What was not used is kept up to the burst.
        for _ in 0..3 {
            one.call(at(10_000)).unwrap();
        }
        assert!(one.call(at(10_000)).is_err());
        // A clock that goes back gives nothing.
        assert!(one.call(at(5_000)).is_err());
    }

    #[test]
    fn connections_are_counted_and_who_is_idle_is_forgotten() {
        let start = Instant::now();
        let clients = Clients::new(LIMITS, 2);
        let held: Vec<_> = (0..2).map(|_| clients.connect("one", start).unwrap()).collect();
        assert!(clients.connect("one", start).is_none());
        held[0].call(start).unwrap();
        drop(held);
        // It has made a call: it is remembered until that makes no difference.
        let _two = clients.connect("two", start).unwrap();
        assert_eq!(clients.known().len(), 2);
        let _three = clients.connect("three", start + Duration::from_secs(1)).unwrap();
        assert_eq!(clients.known().len(), 2);
        assert!(clients.connect("one", start).is_some());
    }
}
