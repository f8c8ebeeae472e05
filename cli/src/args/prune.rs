//! The command lines of `prune` and `rm`.

use std::time::Duration;

use clap::Args;

use super::{CapsuleName, CapsuleRef};

pub const PRUNE_EXAMPLES: &str = "\
Examples:
  capsulectl prune --dry-run                             # what nobody needs, but the newest of each
  capsulectl prune --keep-last 3 --keep-tagged
  capsulectl prune tzdata --keep-last 0 --older-than 30d

What is attached, draining, waiting for a container's next task, to be gone back to by a rollback, leased or
pinned in containerd, or required by such a version always stays.";

pub const RM_EXAMPLES: &str = "\
Examples:
  capsulectl rm tzdata@2024.1
  capsulectl rm tzdata@2024.1 tzdata@2024.2

Refused while somebody needs the version: the message says who. Its tags go with it.";

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only these capsules
    #[arg(value_name = "CAPSULE")]
    pub capsules: Vec<CapsuleName>,
    /// Keep so many of the newest versions of each capsule [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub keep_last: Option<u32>,
    /// Keep versions that a tag stands for
    #[arg(long)]
    pub keep_tagged: bool,
    /// Remove only versions that were published here longer ago than this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The versions
    #[arg(value_name = "NAME@VERSION", required = true)]
    pub capsules: Vec<CapsuleRef>,
}
