//! The log: one line per record in the FIFO `log` of the first bundle, which containerd copies to its own.
//!
//! Nothing that is logged may hold the shim up. The FIFO is opened for reading too, so that lines wait in it (64 KiB)
//! while containerd is replaced, and without blocking: what does not fit is dropped.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::OFlags;

/// `PIPE_BUF` (`pipe(7)`): up to here a line is written whole or not at all, and never mixed with another's.
const LINE: usize = 4096;

/// Lines of one shim.
struct Lines {
    to: File,
    /// Said in each line.
    about: String,
}

/// Logs to the FIFO `path`, which becomes standard error too, for what a crash says.
///
/// # Errors
/// When it is not there, or when something logs already.
pub fn start(path: &Path, debug: bool, namespace: &str, id: &str) -> io::Result<()> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let to = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path)?;
    rustix::stdio::dup2_stderr(&to)?;
    let about = format!("namespace={namespace:?} id={id:?}");
    log::set_boxed_logger(Box::new(Lines { to, about })).map_err(io::Error::other)?;
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    Ok(())
}

/// Logs to standard error, which containerd reads when an action has failed, and warns of otherwise.
pub fn start_action(debug: bool) {
    struct Stderr;
    impl Log for Stderr {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &Record<'_>) {
            let _ = writeln!(io::stderr(), "{}", record.args());
        }
        fn flush(&self) {}
    }
    if log::set_boxed_logger(Box::new(Stderr)).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Warn });
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(SystemTime::now(), record, &self.about);
            // Whatever happens to a line, the containers come first.
            let _ = (&self.to).write(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// As logrus writes it, in at most [`LINE`] bytes.
fn line(at: SystemTime, record: &Record<'_>, about: &str) -> String {
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    // Quoted as Rust does: no quote or line break of a message can end its field.
    let mut message = format!("{:?}", record.args().to_string());
    let head = format!("time=\"{}\" level={level} {about} msg=", rfc3339(at));
    let room = LINE.saturating_sub(head.len() + 1);
    if message.len() > room {
        let end = (0..room.saturating_sub(4)).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        // An escape that was cut in two must not escape the quote.
        message.truncate(message.trim_end_matches('\\').len());
        message.push_str("…\"");
    }
    head + &message + "\n"
}

/// UTC, to the millisecond.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = String::with_capacity(24);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since.subsec_millis()
    );
    text
}

/// The date of a day since 1970-01-01: years are counted from March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01, and of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lined(message: &str) -> String {
        let at = UNIX_EPOCH + Duration::from_millis(1_772_323_199_007);
        line(at, &Record::builder().level(Level::Warn).args(format_args!("{message}")).build(), "id=\"c1\"")
    }

    #[test]
    fn a_record_is_one_line() {
        let expected = "time=\"2026-02-28T23:59:59.007Z\" level=warning id=\"c1\" msg=\"a \\\"b\\\"\\nc\"\n";
        assert_eq!(lined("a \"b\"\nc"), expected);
    }

    #[test]
    fn a_long_record_is_cut_and_stays_quoted() {
        for message in
            ["x".repeat(9000), "\"".repeat(9000), "é".repeat(9000), format!("a{}", "\\".repeat(9000))]
        {
            let line = lined(&message);
            assert!(line.len() <= LINE, "{}", line.len());
            assert!(line.ends_with("…\"\n"), "{}", &line[line.len() - 20..]);
        }
    }

    #[test]
    fn dates_are_the_calendars() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    /// A FIFO that nobody reads takes what fits.
    #[test]
    fn a_full_log_does_not_hold_the_writer_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let to = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&path).unwrap();
        let lines = Lines { to, about: String::new() };
        log::set_max_level(LevelFilter::Info);
        for _ in 0..2000 {
            lines.log(
                &Record::builder().level(Level::Error).args(format_args!("{}", "x".repeat(100))).build(),
            );
        }
    }
}
