//! Events as a person wants to read them.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::event::Event;

/// Tells events on standard output as they come.
#[derive(Debug)]
pub struct Narrator {
    started: Instant,
    colour: bool,
    steps: u32,
    failed: u32,
}

impl Default for Narrator {
    fn default() -> Self {
        Self::new()
    }
}

impl Narrator {
    /// Time is told from now on.
    pub fn new() -> Self {
        Self { started: Instant::now(), colour: std::io::stdout().is_terminal(), steps: 0, failed: 0 }
    }

    /// Tells one event.
    pub fn tell(&mut self, event: &Event) {
        match event {
            Event::Say { text } => {
                let at = self.started.elapsed().as_secs_f64();
                Self::line(&format!("\n{} {text}", self.paint("1", &format!("[{at:5.1} s]"))));
            }
            Event::Show { line } => Self::line(&format!("    {}", self.paint("2", line))),
            Event::Step { name, ok, detail, took_us } => {
                self.steps += 1;
                self.failed += u32::from(!ok);
                let mark = if *ok { self.paint("32", "ok    ") } else { self.paint("31", "FAILED") };
                let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
                Self::line(&format!("  {mark} {name}{detail}  ({})", human(Duration::from_micros(*took_us))));
            }
            Event::Data { .. } | Event::Done { .. } => {}
            Event::Log { program, tail } => {
                Self::line(&format!("--- the end of {program}'s log"));
                Self::line(tail);
            }
        }
    }

    /// Tells the outcome.
    pub fn end(&self) {
        let took = human(self.started.elapsed());
        let outcome = match self.failed {
            0 => format!("{} steps, all held, in {took}", self.steps),
            failed => format!("{failed} of {} steps FAILED, in {took}", self.steps),
        };
        Self::line(&format!("\n{outcome}"));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A person who stopped reading is no reason to stop.
    fn line(text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// A duration with the unit that suits it.
pub fn human(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (micros, text) in [(7, "7 µs"), (1_250, "1.2 ms"), (2_340_000, "2.3 s")] {
            assert_eq!(human(Duration::from_micros(micros)), text);
        }
    }
}
