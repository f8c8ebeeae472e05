//! Who is measured when, and what came of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::subject::Subject;

/// Subjects in a new order each time, so that none always follows the same other.
#[derive(Debug)]
pub struct Order(u64);

impl Order {
    /// Another in each run.
    pub fn seeded() -> Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock")?;
        Ok(Self(now.as_micros() as u64 | 1))
    }

    fn next(&mut self) -> u64 {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// All, in a new order.
    pub fn shuffled<T: Copy>(&mut self, subjects: &[T]) -> Vec<T> {
        let mut keyed: Vec<_> = subjects.iter().map(|subject| (self.next(), *subject)).collect();
        keyed.sort_by_key(|(key, _)| *key);
        keyed.into_iter().map(|(_, subject)| subject).collect()
    }
}

/// All samples of a cell.
#[derive(Debug)]
struct Row {
    subject: String,
    operation: &'static str,
    clients: usize,
    latencies: Vec<Duration>,
    /// Calls in a second, of each round.
    rates: Vec<f64>,
}

/// Rows in the order in which they were first measured.
#[derive(Debug, Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Adds a sample: the time of each call, and from the first call to the end of all.
    pub fn add(
        &mut self,
        subject: &Subject,
        operation: &'static str,
        clients: usize,
        latencies: &[Duration],
        elapsed: Duration,
    ) {
        let subject = subject.name();
        let known = self
            .0
            .iter()
            .position(|row| row.subject == subject && row.operation == operation && row.clients == clients);
        let at = known.unwrap_or_else(|| {
            self.0.push(Row { subject, operation, clients, latencies: Vec::new(), rates: Vec::new() });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.latencies.extend_from_slice(latencies);
        row.rates.push(latencies.len() as f64 / elapsed.as_secs_f64());
    }

    /// As the outside takes them, the subjects in this order.
    pub fn report(mut self, subjects: &[Subject]) -> Value {
        let place = |row: &Row| subjects.iter().position(|subject| subject.name() == row.subject);
        self.0.sort_by_key(place);
        let rows = self.0.iter_mut().map(|row| {
            row.latencies.sort_unstable();
            row.rates.sort_by(f64::total_cmp);
            let micros = |percent: usize| {
                let at = (row.latencies.len() * percent).div_ceil(100).saturating_sub(1);
                row.latencies.get(at).map(Duration::as_nanos).unwrap_or_default() as f64 / 1000.0
            };
            json!({
                "subject": row.subject, "operation": row.operation, "clients": row.clients,
                "calls": row.latencies.len(), "rounds": row.rates.len(),
                "per_second": row.rates[row.rates.len() / 2],
                "slowest_per_second": row.rates.first(), "fastest_per_second": row.rates.last(),
                "p50_us": micros(50), "p99_us": micros(99),
            })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Snapshotter;
    use super::*;

    const EVERY: [Snapshotter; 3] = [Snapshotter::Overlayfs, Snapshotter::Capsule, Snapshotter::Soci];

    #[test]
    fn every_order_has_every_subject_once() {
        let subjects = Subject::of(&EVERY);
        let mut order = Order(1);
        let orders: Vec<Vec<String>> =
            (0..20).map(|_| order.shuffled(&subjects).iter().map(Subject::name).collect()).collect();
        for one in &orders {
            assert!(subjects.iter().all(|subject| one.contains(&subject.name())), "{one:?}");
            assert_eq!(one.len(), subjects.len());
        }
        assert!(orders.iter().any(|one| one != &orders[0]));
    }

    #[test]
    fn a_row_has_the_median_of_the_rounds() {
        let subject = Subject { snapshotter: Snapshotter::Overlayfs, behind: true };
        let mut rows = Rows::default();
        for millis in [100, 300, 200] {
            rows.add(&subject, "Stat", 1, &[Duration::from_millis(millis)], Duration::from_millis(millis));
        }
        let report = rows.report(&[subject]);
        assert_eq!(report[0]["per_second"], 5.0);
        assert_eq!(report[0]["p50_us"], 200_000.0);
        assert_eq!(report[0]["calls"], 3);
    }
}
