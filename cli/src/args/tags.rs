//! The command lines of `tag` and `untag`.

use std::str::FromStr;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::CapsuleRef;

pub const EXAMPLES: &str = "\
Examples:
  capsulectl tag tzdata@2026.1 stable                 # moves it, if it stands for another version
  capsulectl tag app@2.3.0-rc.1 dev-main-3f2a91c next
  capsulectl upgrade web tzdata@stable
  capsulectl untag tzdata@stable

A tag can be written wherever a version can. `latest` is the newest version where no tag is called
so. What is attached stays the version it is when a tag moves.";

/// Arguments of `tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// The version; the newest unless one is named
    #[arg(value_name = "NAME[@VERSION]")]
    pub capsule: CapsuleRef,
    /// The names that are to stand for it
    #[arg(value_name = "TAG", required = true, value_parser = NonEmptyStringValueParser::new())]
    pub tags: Vec<String>,
}

/// `NAME@TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRef {
    /// Name of the capsule; not empty.
    pub name: String,
    /// Not empty.
    pub tag: String,
}

impl FromStr for TagRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse()? {
            CapsuleRef { name, version: Some(tag) } => Ok(Self { name, tag }),
            CapsuleRef { .. } => Err("no tag is named: write NAME@TAG"),
        }
    }
}
