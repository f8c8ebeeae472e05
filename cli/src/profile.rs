//! Which of the services run on a machine: profiles that make sense, as names for what the configuration and systemd say. Pure.
//!
//! | profile | capsuled | capsule-metrics.service |
//! | --- | --- | --- |
//! | minimal | while somebody uses it (`idle_stop`) | off |
//! | standard | always | off |
//! | full | always | on |

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use toml_edit::{DocumentMut, Formatted, Item, Value};

use crate::setup::SetupError;

/// How long nobody has used a minimal capsuled before it ends, unless the configuration says.
const IDLE: &str = "10m";
const NEVER: &str = "0s";
const KEY: &str = "idle_stop";

/// A choice of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// capsuled, while somebody uses it
    Minimal,
    /// capsuled
    Standard,
    /// capsuled, and the server of metrics and health
    Full,
}

/// Why the services are not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nothing there that starts and ends services.
    #[error("systemd does not run this machine: set idle_stop in {} and run `capsulectl metrics` yourself", .0.display())]
    NoSystemd(PathBuf),
    /// It cannot be had with what is installed. Nothing has changed.
    #[error("there is no {0} on this machine: install it from configs/ first (docs/setup.md)")]
    NoUnit(&'static str),
    /// The configuration cannot be read.
    #[error("{} is no TOML: {message}; correct it first", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The parser's words.
        message: String,
    },
    /// capsuled would refuse the configuration.
    #[error("{profile} does not go with the rest of {}, which stays as it is: {message}", file.display())]
    Refused {
        /// The profile.
        profile: &'static str,
        /// The file.
        file: PathBuf,
        /// capsuled's words.
        message: String,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] SetupError),
    /// A program did not do it.
    #[error("`{command}`: {reason}")]
    Program {
        /// Its command line.
        command: String,
        /// Why.
        reason: String,
    },
}

impl Profile {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Standard => "standard",
            Self::Full => "full",
        }
    }

    /// What a machine has; none for what is none of them.
    pub fn of(ends_when_idle: bool, has_metrics: bool) -> Option<Self> {
        match (ends_when_idle, has_metrics) {
            (true, false) => Some(Self::Minimal),
            (false, false) => Some(Self::Standard),
            (false, true) => Some(Self::Full),
            (true, true) => None,
        }
    }

    /// Whether capsule-metrics.service is on.
    pub fn has_metrics(self) -> bool {
        self == Self::Full
    }

    /// The configuration with it: nothing else is changed. None where it says so already.
    pub fn written(self, config: &DocumentMut) -> Option<String> {
        let time = match (self, ends_when_idle(config)) {
            (Self::Minimal, false) => IDLE,
            (Self::Standard | Self::Full, true) => NEVER,
            _ => return None,
        };
        let mut after = config.clone();
        let mut value = Value::String(Formatted::new(time.to_owned()));
        match after.get_mut(KEY).and_then(Item::as_value_mut) {
            Some(present) => {
                *value.decor_mut() = present.decor().clone();
                *present = value;
            }
            None => after[KEY] = Item::Value(value),
        }
        Some(after.to_string())
    }
}

/// Whether a configuration lets capsuled end. What is no time is a mistake, which capsuled tells.
pub fn ends_when_idle(config: &DocumentMut) -> bool {
    let time = config.get(KEY).and_then(Item::as_str).unwrap_or(NEVER);
    humantime::parse_duration(time).is_ok_and(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../configs/config.toml");

    fn document(text: &str) -> DocumentMut {
        text.parse().unwrap()
    }

    #[test]
    fn one_line_of_the_configuration_changes_and_back() {
        let minimal = Profile::Minimal.written(&document(SHIPPED)).unwrap();
        assert_eq!(minimal, SHIPPED.replacen("idle_stop = \"0s\"", "idle_stop = \"10m\"", 1));
        assert_ne!(minimal, SHIPPED);
        for profile in [Profile::Standard, Profile::Full] {
            assert_eq!(profile.written(&document(&minimal)).unwrap(), SHIPPED);
            assert_eq!(profile.written(&document(SHIPPED)), None);
        }
        assert_eq!(Profile::Minimal.written(&document(&minimal)), None);
    }

    #[test]
    fn what_a_person_has_written_stays() {
        for (before, after) in [
            ("", "idle_stop = \"10m\"\n"),
            ("# mine\n[log]\nlevel = 'debug'\n", "idle_stop = \"10m\"\n# mine\n[log]\nlevel = 'debug'\n"),
            ("idle_stop = '0s'   # never\nroot = '/c'\n", "idle_stop = \"10m\"   # never\nroot = '/c'\n"),
        ] {
            let written = Profile::Minimal.written(&document(before)).unwrap();
            assert_eq!(written, after);
            assert!(ends_when_idle(&document(&written)));
        }
        // Its own time, and what is no time.
        assert_eq!(Profile::Minimal.written(&document("idle_stop = '3h'")), None);
        assert_eq!(Profile::Standard.written(&document("idle_stop = 'soon'")), None);
    }

    #[test]
    fn each_profile_is_what_it_makes() {
        for profile in Profile::value_variants() {
            let text = profile.written(&document(SHIPPED)).unwrap_or_else(|| SHIPPED.to_owned());
            assert_eq!(Profile::of(ends_when_idle(&document(&text)), profile.has_metrics()), Some(*profile));
        }
        assert_eq!(Profile::of(true, true), None);
    }
}
