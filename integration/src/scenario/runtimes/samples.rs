//! What was measured, and what came of it.

use std::time::Duration;

use serde_json::{Value, json};

use super::subject::Subject;

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Of time; less is better.
    Milliseconds,
    /// Of memory; less is better.
    Mebibytes,
    /// More is better.
    MebibytesPerSecond,
    /// More is better.
    LinesPerSecond,
    /// Less is better.
    Count,
}

impl Unit {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::LinesPerSecond => "lines/s",
            Self::Count => "",
        }
    }
}

/// All values of one figure of one subject.
#[derive(Debug)]
struct Row {
    figure: &'static str,
    unit: Unit,
    subject: &'static str,
    values: Vec<f64>,
}

/// Rows in the order in which they were first measured.
#[derive(Debug, Default)]
pub struct Samples(Vec<Row>);

impl Samples {
    /// Adds a value.
    pub fn add(&mut self, subject: &Subject, figure: &'static str, unit: Unit, value: f64) {
        let known = self.0.iter_mut().find(|row| row.figure == figure && row.subject == subject.name);
        match known {
            Some(row) => row.values.push(value),
            None => self.0.push(Row { figure, unit, subject: subject.name, values: vec![value] }),
        }
    }

    /// Adds a time.
    pub fn time(&mut self, subject: &Subject, figure: &'static str, took: Duration) {
        self.add(subject, figure, Unit::Milliseconds, took.as_secs_f64() * 1e3);
    }

    /// As the outside takes them.
    pub fn report(mut self) -> Value {
        let rows = self.0.iter_mut().map(|row| {
            row.values.sort_by(f64::total_cmp);
            let at = |percent: usize| row.values[(row.values.len() * percent).div_ceil(100).max(1) - 1];
            let mean = row.values.iter().sum::<f64>() / row.values.len() as f64;
            json!({
                "figure": row.figure, "unit": row.unit.name(), "subject": row.subject,
                "count": row.values.len(), "p50": at(50), "p99": at(99), "mean": mean,
                "least": row.values.first(), "most": row.values.last(),
            })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::{GO, SHIM};
    use super::*;

    #[test]
    fn percentiles_are_of_a_subjects_own_values() {
        let mut samples = Samples::default();
        for millis in (1..=100).rev() {
            samples.time(&GO, "start", Duration::from_millis(millis));
        }
        samples.time(&SHIM, "start", Duration::from_millis(7));
        let report = samples.report();
        assert_eq!((&report[0]["p50"], &report[0]["p99"]), (&json!(50.0), &json!(99.0)));
        assert_eq!((&report[1]["p50"], &report[1]["count"]), (&json!(7.0), &json!(1)));
    }
}
