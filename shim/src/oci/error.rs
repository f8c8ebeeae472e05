//! Why a command of the OCI runtime failed, in the runtime's own words.

use std::{ffi::OsStr, io, path::PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// A subcommand that did not do its work.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The program cannot be executed.
    #[error("cannot run the OCI runtime {}: is it installed and in containerd's PATH?", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    /// It ran and failed.
    #[error("OCI runtime {subcommand} failed: {message}")]
    Failed {
        /// What it was to do.
        subcommand: String,
        /// What it said, in one line.
        message: String,
    },
    /// It was killed, and may have done its work or a part of it.
    #[error("OCI runtime {subcommand} was killed by signal {signal} before it was done{said}")]
    Killed {
        /// What it was to do.
        subcommand: String,
        /// By which signal.
        signal: u32,
        /// What it had said, in one line, with a separator.
        said: String,
    },
    /// Its output is not what it should be.
    #[error("cannot understand what the OCI runtime's {0} printed")]
    Output(&'static str, #[source] serde_json::Error),
    /// The reaper is gone.
    #[error("the reaper ended before the OCI runtime did")]
    Reaper,
}

impl RuntimeError {
    /// Whether the runtime says that there is no such container.
    pub fn is_missing(&self) -> bool {
        // The last is what crun says of a container that another command has deleted.
        self.says(&["does not exist", "no such file or directory: container"])
            || self.says(&["cannot open directory"]) && self.says(&["no such file or directory"])
    }

    /// Whether the runtime says that the process to signal has ended.
    pub fn is_finished(&self) -> bool {
        self.says(&["process already finished", "container not running", "no such process", "not running"])
    }

    /// Of a command that ended with `status` and said `message`.
    pub(super) fn of(subcommand: &OsStr, status: u32, message: Option<String>) -> Self {
        let subcommand = subcommand.to_string_lossy().into_owned();
        if let Some(signal @ 1..=64) = status.checked_sub(128) {
            let said = message.map(|message| format!(": {message}")).unwrap_or_default();
            return Self::Killed { subcommand, signal, said };
        }
        let message = message.unwrap_or_else(|| format!("exit status {status}, and no message"));
        Self::Failed { subcommand, message }
    }

    fn says(&self, words: &[&str]) -> bool {
        matches!(self, Self::Failed { message, .. } if words.iter().any(|w| message.to_lowercase().contains(w)))
    }
}

/// The last error in a runtime's log: JSON objects, one per line (runc) or over several (crun), or plain text, of which
/// the last line counts. With what was fatal before it: where runc's own child gives up, the last error says that it is
/// gone, and only the child itself has said why.
pub(super) fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        level: String,
        msg: String,
    }
    let entries = serde_json::Deserializer::from_str(log).into_iter::<Entry>().map_while(Result::ok);
    let mut errors: Vec<_> =
        entries.filter(|entry| matches!(entry.level.as_str(), "error" | "fatal")).collect();
    let last_line = || log.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(message_of);
    let mut said = errors.pop().map(|entry| entry.msg).or_else(last_line)?;
    for before in errors.into_iter().filter(|entry| entry.level == "fatal") {
        said.push_str(&format!(" ({})", before.msg));
    }
    Some(said.replace('\n', " "))
}

/// The message in a line that runc prints: `time="…" level=error msg="…"`, quoted as JSON is; any other line is one.
fn message_of(line: &str) -> String {
    let quoted = line.strip_prefix("time=").and_then(|line| line.split_once(" msg="));
    quoted.and_then(|(_, quoted)| serde_json::from_str(quoted).ok()).unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found_in_either_format() {
        for (log, message) in [
            ("", None),
            ("time=x level=error msg=\"no\"\nsecond\n", Some("second")),
            ("time=x level=error msg=\"write \\\"4000\\\": no\"\n", Some("write \"4000\": no")),
            ("time=x level=error msg=no\n", Some("time=x level=error msg=no")),
            ("{\"level\":\"error\",\"msg\":\"a\\nb\"}\n{\"level\":\"warning\",\"msg\":\"c\"}\n", Some("a b")),
            (
                "{\"level\":\"fatal\",\"msg\":\"nsexec: why\"}\n{\"level\":\"error\",\"msg\":\"init is gone\"}\n",
                Some("init is gone (nsexec: why)"),
            ),
            ("{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n", Some("b")),
            ("{\n  \"msg\": \"no\",\n  \"level\": \"error\"\n}\n", Some("no")),
        ] {
            assert_eq!(last_error(log).as_deref(), message);
        }
    }

    fn failed(message: &str) -> RuntimeError {
        RuntimeError::Failed { subcommand: "kill".into(), message: message.into() }
    }

    #[test]
    fn what_runtimes_say_is_understood() {
        assert!(failed("container does not exist").is_missing());
        assert!(failed("cannot open directory `/run/c/x`: No such file or directory").is_missing());
        assert!(!failed("cannot open directory `/run/c/x`: Permission denied").is_missing());
        assert!(failed("container not running").is_finished());
        assert!(failed("kill container: No such process").is_finished());
        assert!(!failed("permission denied").is_finished());
    }

    #[test]
    fn a_killed_command_says_so() {
        for (status, text) in [
            (137, "OCI runtime start was killed by signal 9 before it was done: half"),
            (1, "OCI runtime start failed: half"),
            (255, "OCI runtime start failed: half"),
        ] {
            let error = RuntimeError::of("start".as_ref(), status, Some("half".into()));
            assert_eq!(error.to_string(), text);
        }
    }
}
