//! The command lines of `doctor`, `setup` and `profile`, which look at the machine itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use crate::host::containerd::DEFAULT_CONFIG;
use crate::host::{DEFAULT_SETTINGS, Release};
use crate::profile::Profile;

pub const DOCTOR_EXAMPLES: &str = "\
Examples:
  capsulectl doctor
  capsulectl doctor -o json        # for programs: the same, with a name for each check

A line for each check: ok, warning, error, or skipped where it needs root. Exit code 1 when one is an error.";

pub const SETUP_EXAMPLES: &str = "\
Examples:
  capsulectl setup --dry-run       # what would be changed, as `diff -u` shows it
  capsulectl setup                 # the same, asks, and writes
  capsulectl setup --yes           # without asking
  capsulectl setup --undo          # takes it back, and nothing else

containerd reads its configuration when it starts: restart it then.";

pub const PROFILE_EXAMPLES: &str = "\
Examples:
  capsulectl profile               # which services run, and what they take
  capsulectl profile minimal       # capsuled ends when nobody uses it, and the next call starts it
  capsulectl profile full          # metrics and health over HTTP, too

Changes idle_stop in capsuled's configuration and nothing else in it, and enables or disables capsule-metrics.service.";

/// Arguments of `profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// What this machine is to have [default: it is shown]
    pub profile: Option<Profile>,
    /// capsuled's configuration
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SETTINGS, value_hint = ValueHint::FilePath)]
    pub capsuled_config: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// capsuled's configuration
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SETTINGS, value_hint = ValueHint::FilePath)]
    pub capsuled_config: PathBuf,
}

/// Arguments of `setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// containerd's configuration
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Take back what setup has added; what was changed since stays
    #[arg(long, conflicts_with_all = ["cri", "systemd_cgroup", "containerd_version"])]
    pub undo: bool,
    /// Show what would be changed, and write nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Write without asking
    #[arg(short, long)]
    pub yes: bool,
    /// Whether Kubernetes gets a runtime handler; auto: unless containerd's CRI plugin is disabled
    #[arg(long, value_enum, value_name = "auto|true|false", hide_possible_values = true, default_value_t = Choice::Auto,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cri: Choice,
    /// SystemdCgroup of that handler; auto: as the kubelet has it, or whether systemd runs the machine
    #[arg(long, value_enum, value_name = "auto|true|false", hide_possible_values = true, default_value_t = Choice::Auto)]
    pub systemd_cgroup: Choice,
    /// containerd's version, as 1.7 or 2.1 [default: that of the program `containerd`, or of the one that runs]
    #[arg(long, value_name = "VERSION")]
    pub containerd_version: Option<Release>,
}

/// A decision, or that one is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// As the machine has it
    Auto,
    /// Yes
    True,
    /// No
    False,
}

impl Choice {
    /// The decision, if one was made.
    pub fn made(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::True => Some(true),
            Self::False => Some(false),
        }
    }
}
