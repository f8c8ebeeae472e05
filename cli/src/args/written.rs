//! The command lines about what is written to attachments.

use bytesize::ByteSize;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::{CapsuleName, ContainerArg};

pub const COMMIT_EXAMPLES: &str = "\
Examples:
  capsulectl attach web tools --writable
  capsulectl commit web tools --version 1.1-local          # while the container goes on
  capsulectl commit --upper notes --version 2 --tag stable # what was kept under a name

The new version has the layers of the one below, and one more with what was written. Files that
change while they are read are read again; pause the container where they never stand still.";

pub const UPPERS_EXAMPLES: &str = "\
Examples:
  capsulectl uppers                # what is kept under a name, and who has it
  capsulectl uppers rm notes";

/// Whether, and how, an attachment can be written to.
#[derive(Debug, Args)]
pub struct WritableArgs {
    /// Let the container write; what it writes goes with the attachment unless `detach --keep` is told otherwise. With one capsule only
    #[arg(long)]
    pub writable: bool,
    /// Let the container write, and keep what it writes under this name: it outlives the container, and the next attachment that names it has it again. With one capsule only
    #[arg(long, value_name = "NAME", conflicts_with = "writable", value_parser = NonEmptyStringValueParser::new())]
    pub persist: Option<String>,
    /// How much can be written, as 512MiB or 10GiB; so much is reserved on the node's disk
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
}

/// What becomes of what was written.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct FateArgs {
    /// Remove what was written to it
    #[arg(long)]
    pub drop: bool,
    /// Keep what was written to it under this name, for `attach --persist` and `commit --upper`
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub keep: Option<String>,
}

/// Arguments of `commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// The container
    #[arg(required_unless_present = "upper", conflicts_with = "upper", requires = "capsule")]
    pub container: Option<ContainerArg>,
    /// The capsule that is written to
    pub capsule: Option<CapsuleName>,
    /// Only the attachment at this path
    #[arg(long, value_name = "PATH", conflicts_with = "upper", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// What is kept under this name, instead of what a container writes to
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub upper: Option<String>,
    /// The version to publish
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub version: String,
    /// A name that moves, as `stable`, for the new version; may be repeated
    #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    pub tags: Vec<String>,
}

/// What to do with what is kept under names.
#[derive(Debug, Subcommand)]
pub enum UppersCommand {
    /// List them; what `uppers` alone does
    Ls,
    /// Remove one, with all that was written
    Rm {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}
