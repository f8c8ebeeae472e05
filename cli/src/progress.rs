//! How far a transfer is: a bar on a terminal that can draw one, lines elsewhere, nothing for programs. All of it on standard error.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use capsule_proto::capsule::v1;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Output;
use crate::text::{escape_control, size};

/// Where progress is shown.
pub enum Progress {
    Bar(ProgressBar, BTreeMap<String, (u64, u64)>),
    /// With the last event of each blob.
    Lines(BTreeMap<String, String>),
    Nowhere,
}

impl Progress {
    pub fn new(output: Output) -> Self {
        let target = ProgressDrawTarget::stderr();
        match output {
            Output::Json => Self::Nowhere,
            // What is no terminal, or one that can draw nothing (TERM is not set, or `dumb`), is hidden.
            Output::Text if !target.is_hidden() => {
                let bar = ProgressBar::with_draw_target(None, target);
                let style =
                    ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.enable_steady_tick(Duration::from_millis(200));
                Self::Bar(bar, BTreeMap::new())
            }
            Output::Text => Self::Lines(BTreeMap::new()),
        }
    }

    pub fn show(&mut self, told: v1::Progress) {
        let v1::Progress { event, name, done, total } = told;
        match self {
            Self::Nowhere => {}
            Self::Bar(bar, blobs) => {
                bar.set_message(escape_control(&event));
                if total > 0 {
                    blobs.insert(name, (done.min(total), total));
                    let sum = |of: fn(&(u64, u64)) -> u64| blobs.values().map(of).sum::<u64>();
                    bar.set_length(sum(|(_, total)| *total));
                    bar.set_position(sum(|(done, _)| *done));
                }
            }
            Self::Lines(events) => {
                if let Some(line) = line(events, &event, &name, total) {
                    // A line lost is no failure.
                    let _ = writeln!(io::stderr(), "{}", escape_control(&line));
                }
            }
        }
    }

    /// Takes the bar away: what is printed next is the result.
    pub fn end(self) {
        if let Self::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

/// A line where the event is news.
fn line(events: &mut BTreeMap<String, String>, event: &str, name: &str, total: u64) -> Option<String> {
    if event == "waiting" || events.get(name).is_some_and(|last| last == event) {
        return None;
    }
    events.insert(name.to_owned(), event.to_owned());
    Some(match (name.is_empty(), total) {
        (true, _) => event.to_owned(),
        (false, 0) => format!("{event} {name}"),
        (false, _) => format!("{event} {name} ({})", size(total)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_change() {
        let mut events = BTreeMap::new();
        let mut lines = Vec::new();
        for (event, name, total) in [
            ("Resolving", "", 0),
            ("waiting", "layer-sha256:aa", 2048),
            ("downloading", "layer-sha256:aa", 2048),
            ("downloading", "layer-sha256:aa", 2048),
            ("complete", "layer-sha256:aa", 2048),
            ("unpacking", "a@1", 0),
        ] {
            lines.extend(line(&mut events, event, name, total));
        }
        let want = [
            "Resolving",
            "downloading layer-sha256:aa (2.0 KiB)",
            "complete layer-sha256:aa (2.0 KiB)",
            "unpacking a@1",
        ];
        assert_eq!(lines, want);
    }
}
