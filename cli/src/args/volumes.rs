//! The command lines about volumes.

use bytesize::ByteSize;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

pub const EXAMPLES: &str = "\
Examples:
  capsulectl volumes                                      # what is mounted, and what was written
  capsulectl volumes mount tools /mnt/tools               # the capsule tools, read-only, at a path
  capsulectl volumes upgrade tools 2                      # another version, wherever it is mounted
  capsulectl volumes umount tools /mnt/tools
  capsulectl volumes create shop/data --directory --size 1GiB
  capsulectl volumes commit shop/tools --version 2-local  # what was written, as a version
  capsulectl volumes rm shop/data

A volume is a capsule, or a directory that is written to, at a path of the node; pods have them by
the CSI driver. What is written lies below /var/lib/capsule/volumes/STACK.";

/// What a volume is to be.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// Its id, [STACK/]NAME
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// The capsule, as NAME or NAME@VERSION; the volume's own name when neither this nor --directory is given
    #[arg(long, value_name = "CAPSULE", value_parser = NonEmptyStringValueParser::new())]
    pub capsule: Option<String>,
    /// No capsule: a directory that is written to
    #[arg(long, conflicts_with = "capsule")]
    pub directory: bool,
    /// Keep what is written to it over the capsule
    #[arg(long)]
    pub writable: bool,
    /// How much can be written, as 512MiB or 10GiB; so much is reserved on the node's disk
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Whom its root belongs to when it is made, as UID:GID
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    pub owner: Option<(u32, u32)>,
    /// The mode of its root when it is made, in octal
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub permissions: Option<u32>,
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let both = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    both.ok_or_else(|| "not UID:GID, both numbers".to_owned())
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|_| "not an octal number, as 0750".to_owned())
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumesCommand {
    /// List them; what `volumes` alone does
    Ls,
    /// Make what a volume is written to
    Create(VolumeArgs),
    /// Mount one at a path of the node; one that is written to was made before
    Mount {
        #[command(flatten)]
        volume: VolumeArgs,
        /// Where, absolute
        path: String,
        /// Write nothing through this mount
        #[arg(long)]
        read_only: bool,
    },
    /// Take one away from a path
    Umount {
        /// Its id
        id: String,
        /// Where, absolute
        path: String,
    },
    /// Put another version of its capsule into one, wherever it is mounted, in containers too
    Upgrade {
        /// Its id
        id: String,
        /// The version, or a tag
        version: String,
    },
    /// Publish what was written to one as a version of its capsule
    Commit {
        /// Its id
        id: String,
        /// The version to publish
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        version: String,
        /// A name that moves, as `stable`, for the new version; may be repeated
        #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
        tags: Vec<String>,
    },
    /// Say how full one is, and what is wrong with it
    Stat {
        /// Its id
        id: String,
        /// Where it should be mounted
        path: Option<String>,
    },
    /// Remove one, with all that was written
    Rm {
        /// Its id
        id: String,
    },
}
