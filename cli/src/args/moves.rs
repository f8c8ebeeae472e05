//! The command lines of `upgrade` and `rollback`.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueHint};

use super::{CapsuleName, CapsuleRef, ContainerArg};

pub const UPGRADE_EXAMPLES: &str = "\
Examples:
  capsulectl upgrade web tzdata                  # to the newest version on this node
  capsulectl upgrade web tzdata@2026.2
  capsulectl upgrade web app lib                 # both or none, to the newest that go together
  capsulectl upgrade web app --dry-run           # what would be moved and attached
  capsulectl upgrade web app --wait-healthy '/app/check --quick' --health-timeout 1m

What the new versions require comes along: it is attached where the container lacks it, and moved where
another version is required. With --wait-healthy all of it stays only if the command succeeds in the
container; it is run again each second until it does or the time is over.";

pub const ROLLBACK_EXAMPLES: &str = "\
Examples:
  capsulectl rollback web tzdata
  capsulectl rollback web app lib     # both or none

What the version before requires goes back with it.";

/// Arguments of `upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsules; the newest version of each unless one is named
    #[arg(value_name = "CAPSULE[@VERSION]", required = true)]
    pub capsules: Vec<CapsuleRef>,
    /// Only the attachment at this path; with one capsule only
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// Keep the new versions only if this command, run in the container, exits with 0
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub wait_healthy: Option<CommandLine>,
    /// How long the command may take, all its runs together [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "wait_healthy")]
    pub health_timeout: Option<Duration>,
    /// Show what would be moved and attached, and change nothing
    #[arg(long, conflicts_with = "wait_healthy")]
    pub dry_run: bool,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsules
    #[arg(value_name = "CAPSULE", required = true)]
    pub capsules: Vec<CapsuleName>,
    /// Only the attachment at this path; with one capsule only
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
}

/// A command as a shell takes its words: quoted, and separated by blanks. No shell runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(pub Vec<String>);

impl std::str::FromStr for CommandLine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = shlex::split(text).ok_or("a quotation is not closed")?;
        match words.first() {
            Some(first) if !first.is_empty() => Ok(Self(words)),
            _ => Err("the command is empty"),
        }
    }
}
