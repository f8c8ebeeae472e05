//! The command line of `events`.

use clap::Args;

use super::{CapsuleName, ContainerArg};

pub const EXAMPLES: &str = "\
Examples:
  capsulectl events                          # what happens from now on
  capsulectl events --all --no-follow        # all that is kept, the newest 10,000
  capsulectl events --after 1795912345678    # what happened after that one
  capsulectl events --container web -o json  # one JSON object a line

Each event has a number, which grows over restarts of capsuled and of the node. A watch goes on by itself when
capsuled is restarted; one that is taken up again with --after misses nothing, or is told that it does.";

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Begin with the event after this number
    #[arg(long, value_name = "NUMBER", conflicts_with = "all")]
    pub after: Option<u64>,
    /// Begin with the oldest event that is kept
    #[arg(long)]
    pub all: bool,
    /// End when what has happened by now is printed
    #[arg(long)]
    pub no_follow: bool,
    /// Only of this container: its whole id, or its name while it is there
    #[arg(long, value_name = "CONTAINER")]
    pub container: Option<ContainerArg>,
    /// Only of this capsule
    #[arg(long, value_name = "CAPSULE")]
    pub capsule: Option<CapsuleName>,
}
