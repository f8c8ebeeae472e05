//! The command line of `diff`.

use clap::Args;

use super::CapsuleRef;

pub const EXAMPLES: &str = "\
Examples:
  capsulectl diff tzdata@2026.1 tzdata@2026.2
  capsulectl diff app@1 app-debug@1                   # of two capsules
  capsulectl diff tzdata@2026.1 tzdata -o json | jq '.changes[].path'

A path is added (A), removed (D) or modified (M, with what of it: content, mode, owner, mtime, link,
device, attributes, kind). The exit code is 0 whether the versions differ or not.";

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The one version; the newest of the capsule unless one is named
    #[arg(value_name = "NAME[@VERSION]")]
    pub from: CapsuleRef,
    /// The other
    #[arg(value_name = "NAME[@VERSION]")]
    pub to: CapsuleRef,
}
