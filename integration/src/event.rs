//! What a scenario reports: one JSON object per line.
//!
//! Lives on both sides of the machine's wall. The inside writes events through [`Reporter`], the outside reads them
//! into a [`Report`].

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// One line of a scenario's output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A sentence for a person who watches.
    Say {
        /// The sentence.
        text: String,
    },
    /// Output of a program that a person who watches wants to see.
    Show {
        /// One line of it.
        line: String,
    },
    /// Something that was asserted.
    Step {
        /// What was asserted, unique in its scenario.
        name: String,
        /// Whether it held.
        ok: bool,
        /// What was seen, or why it did not hold.
        detail: String,
        /// How long it took, in microseconds.
        took_us: u64,
    },
    /// A result for programs: measurements, digests.
    Data {
        /// What it is.
        name: String,
        /// Its value.
        value: serde_json::Value,
    },
    /// The end of a log, sent when a step failed.
    Log {
        /// Which program's log.
        program: String,
        /// Its last lines.
        tail: String,
    },
    /// The scenario ran to its end; without this event it did not.
    Done {
        /// Every step held.
        ok: bool,
    },
}

/// Writes events from inside a machine and counts the steps that failed.
pub struct Reporter {
    out: Box<dyn Write + Send>,
    failed: u32,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Reporter {
    /// A reporter that writes to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, failed: 0 }
    }

    /// Writes one event. An outside that no longer listens is no reason to stop: it kills the machine anyway.
    pub fn send(&mut self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = self.out.write_all(&line).and_then(|()| self.out.flush());
        }
    }

    /// Says a sentence to the person who watches.
    pub fn say(&mut self, text: impl Into<String>) {
        self.send(&Event::Say { text: text.into() });
    }

    /// Shows lines of a program's output.
    pub fn show(&mut self, lines: &str) {
        for line in lines.lines() {
            self.send(&Event::Show { line: line.to_owned() });
        }
    }

    /// Hands a result to the outside.
    pub fn data(&mut self, name: &str, value: serde_json::Value) {
        self.send(&Event::Data { name: name.to_owned(), value });
    }

    /// Does and asserts one step; what the scenario does later does not depend on it.
    pub fn check(&mut self, name: &str, step: impl FnOnce() -> Result<String>) -> bool {
        let started = Instant::now();
        let outcome = step();
        self.record(name, &outcome, started.elapsed());
        outcome.is_ok()
    }

    /// Does and asserts one step that later steps depend on: its failure ends the scenario.
    pub fn must<T>(&mut self, name: &str, step: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        let started = Instant::now();
        let (value, outcome) = match step() {
            Ok((value, detail)) => (Some(value), Ok(detail)),
            Err(error) => (None, Err(error)),
        };
        self.record(name, &outcome, started.elapsed());
        value.with_context(|| format!("step failed: {name}"))
    }

    fn record(&mut self, name: &str, outcome: &Result<String>, took: Duration) {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        self.failed += u32::from(!ok);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.send(&Event::Step { name: name.to_owned(), ok, detail, took_us });
    }

    /// Whether every step so far held.
    pub fn all_ok(&self) -> bool {
        self.failed == 0
    }
}

/// All events of one scenario, as the outside received them.
#[derive(Debug, Default)]
pub struct Report {
    /// In the order they came.
    pub events: Vec<Event>,
}

impl Report {
    /// The value of a [`Event::Data`].
    pub fn data(&self, wanted: &str) -> Option<&serde_json::Value> {
        self.events.iter().find_map(|event| match event {
            Event::Data { name, value } if name == wanted => Some(value),
            _ => None,
        })
    }

    /// Fails unless the scenario ran to its end, asserted at least one step, and every step held. What failed is said after all logs:
    /// whoever shows a part shows the end.
    pub fn expect_ok(&self) -> Result<()> {
        let mut steps = 0_u32;
        let (mut logs, mut complaints) = (Vec::new(), Vec::new());
        for event in &self.events {
            match event {
                Event::Step { ok: true, .. } => steps += 1,
                Event::Step { name, detail, .. } => complaints.push(format!("FAILED {name}: {detail}")),
                Event::Log { program, tail } => logs.push(format!("--- {program}\n{tail}")),
                _ => {}
            }
        }
        if !matches!(self.events.last(), Some(Event::Done { ok: true })) {
            complaints.push("the scenario did not end well".to_owned());
        } else if steps == 0 {
            complaints.push("the scenario asserted nothing".to_owned());
        }
        if complaints.is_empty() { Ok(()) } else { bail!("{}", [logs, complaints].concat().join("\n")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(ok: bool) -> Event {
        Event::Step { name: "a".into(), ok, detail: String::new(), took_us: 1 }
    }

    #[test]
    fn a_report_is_good_only_when_it_is_whole() {
        let done = Event::Done { ok: true };
        for (events, good) in [
            (vec![step(true), done.clone()], true),
            (vec![step(true)], false),
            (vec![done.clone()], false),
            (vec![step(false), done.clone()], false),
            (vec![step(true), Event::Done { ok: false }], false),
            (vec![], false),
        ] {
            assert_eq!(Report { events: events.clone() }.expect_ok().is_ok(), good, "{events:?}");
        }
    }

    #[test]
    fn what_failed_is_said_after_the_logs() {
        let log = Event::Log { program: "capsuled".into(), tail: "its log".into() };
        let report = Report { events: vec![step(false), log, Event::Done { ok: false }] };
        let said = report.expect_ok().unwrap_err().to_string();
        assert_eq!(said, "--- capsuled\nits log\nFAILED a: \nthe scenario did not end well");
    }
}
