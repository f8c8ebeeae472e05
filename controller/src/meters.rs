//! What the parts count, as OpenMetrics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Write {
    kind: String,
    result: &'static str,
}

/// The meters: cheap to clone, shared.
#[derive(Clone)]
pub struct Meters {
    registry: Arc<Registry>,
    passes: Family<Outcome, Counter>,
    seconds: Histogram,
    calls: Family<Call, Counter>,
    writes: Family<Write, Counter>,
    leading: Gauge,
    /// When it was last said to be alive, in milliseconds since `began`.
    seen: Arc<AtomicU64>,
    ready: Arc<AtomicBool>,
    began: Instant,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

fn result(is_good: bool) -> &'static str {
    if is_good { "ok" } else { "error" }
}

impl Meters {
    /// Of the part of this name: `controller`, `agent` or `csi`.
    #[must_use]
    pub fn new(part: &str) -> Self {
        let mut registry = Registry::with_prefix(format!("capsule_{part}"));
        let (passes, writes, leading) = (Family::default(), Family::default(), Gauge::default());
        let (calls, seconds) = (Family::default(), Histogram::new(exponential_buckets(0.001, 2.0, 16)));
        if part == "csi" {
            registry.register("calls", "Calls of the storage driver that have ended", calls.clone());
            registry.register("call_duration_seconds", "How long they took", seconds.clone());
        } else {
            registry.register("passes", "Looks at all that is wanted and is so", passes.clone());
            registry.register("pass_duration_seconds", "How long they took", seconds.clone());
            registry.register("writes", "Objects written to the API server", writes.clone());
        }
        if part == "controller" {
            registry.register("leading", "1 while this one holds the lease", leading.clone());
        }
        let (seen, ready, began) = (Arc::default(), Arc::default(), Instant::now());
        Self { registry: Arc::new(registry), passes, seconds, calls, writes, leading, seen, ready, began }
    }

    /// Counts a pass.
    pub fn passed(&self, took: Duration, is_good: bool) {
        self.passes.get_or_create(&Outcome { result: result(is_good) }).inc();
        self.seconds.observe(took.as_secs_f64());
        self.turned();
    }

    /// Counts a call of the storage driver that has ended with a status of this name.
    pub fn called(&self, method: &'static str, code: String, took: Duration) {
        self.calls.get_or_create(&Call { method, code }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Counts an object written.
    pub fn wrote(&self, kind: &str, is_good: bool) {
        self.writes.get_or_create(&Write { kind: kind.to_owned(), result: result(is_good) }).inc();
    }

    /// Says whether this one leads.
    pub fn leads(&self, leads: bool) {
        self.leading.set(i64::from(leads));
    }

    /// Says whether what it needs answers.
    pub fn set_ready(&self, is_ready: bool) {
        self.ready.store(is_ready, Ordering::Relaxed);
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The program has got round once more.
    pub fn turned(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.seen.store(now, Ordering::Relaxed);
    }

    /// How long ago it last did.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        let seen = Duration::from_millis(self.seen.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(seen)
    }

    /// All of it, as OpenMetrics 1.0.
    ///
    /// # Errors
    /// None that a `String` has.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PAGE: &str = include_str!("../../docs/cluster.md");

    /// Metrics with their types, as scrapes have them.
    fn told(part: &str) -> BTreeMap<String, String> {
        let meters = Meters::new(part);
        // One that has labels is told once there is one of it.
        meters.passed(Duration::ZERO, true);
        meters.wrote("Capsule", true);
        let text = meters.text().unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let suffix = |kind| if kind == "counter" { "_total" } else { "" };
        types.map(|(name, kind)| (format!("{name}{}", suffix(kind)), kind.to_owned())).collect()
    }

    /// Those of the page's table, each of which may be of both.
    fn documented() -> BTreeMap<String, String> {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `capsule_"));
        let rows = rows.filter_map(|row| {
            let mut cells = row.split(" | ");
            Some((cells.next()?, cells.next()?))
        });
        rows.flat_map(|(names, kind)| {
            let names = names.trim_end_matches('`').split("`, `");
            let whole = |name: &str| format!("capsule_{}", name.trim_start_matches("capsule_"));
            names.map(move |name| (whole(name), kind.to_owned()))
        })
        .collect()
    }

    #[test]
    fn what_is_counted_is_on_its_page() {
        let mut told_by_both = told("controller");
        told_by_both.extend(told("agent"));
        assert_eq!(told_by_both, documented(), "controller/src/meters.rs, and docs/cluster.md");
        assert!(told_by_both.len() > 6, "{told_by_both:?}");
    }
}
