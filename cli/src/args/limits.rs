//! The command lines about limits of containers.

use clap::Args;

use super::KeyValue;

pub const BUDGET_EXAMPLES: &str = "\
Examples:
  capsulectl budget                # what is used, of which budget, and by what
  capsulectl budget -o json

Budgets are in capsuled's configuration: [budgets.node], [budgets.namespace], [budgets.pod], [budgets.container].
What would exceed one is refused by attach and upgrade.";

pub const TOP_EXAMPLES: &str = "\
Examples:
  capsulectl top                   # a screen that follows them; q ends it
  capsulectl top -o json           # two looks, a second apart
  capsulectl top | cat             # the same as a table

PRESSURE is for how much of the last ten seconds some process waited for CPUs, memory and I/O, in percent.
Containers on control groups of version 1 are listed without figures.";

pub const METRICS_EXAMPLES: &str = "\
Examples:
  capsulectl metrics                            # once, for a textfile collector
  capsulectl metrics --listen 127.0.0.1:9470    # for Prometheus to scrape

capsuled itself listens on no network. Names and labels: docs/metrics.md.";

/// What an attachment does to limits of its container.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Add to a limit of the container while the capsule is attached, as memory.max=512MiB, cpu.max=0.5cpus or pids.max=64; may be given several times. With one capsule only
    #[arg(long = "grant", value_name = "LIMIT=AMOUNT")]
    pub grants: Vec<KeyValue>,
    /// Keep a limit of the container at most at this while the capsule is attached, as 'io.max=store rbps=10M'; may be given several times. With one capsule only
    #[arg(long = "cap", value_name = "LIMIT=AMOUNT")]
    pub caps: Vec<KeyValue>,
}
