//! The command line of `build`.

use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, ValueHint};

use super::{CapsuleRef, KeyValue, ModeArg};

pub const EXAMPLES: &str = "\
Examples:
  capsulectl build ./zoneinfo                    # as ./zoneinfo/capsule.toml says
  capsulectl build ./zoneinfo --name tzdata --version 2026.1 --target /usr/share/zoneinfo
  capsulectl build ./tools --name debug-tools --version 1.0.0 --target / --mode union
  capsulectl build ./app --file app.toml --require 'cuda-runtime >=12.4, <13' --env APP=/opt/app
  zstd -dc tools.tar.zst | capsulectl build --tar - --name debug-tools --version 1.0.0 --target /
  capsulectl build ./model --name model --version 2 --base model@1     # stores what differs
  capsulectl build --image registry.example/debian:13 --image-namespace default --name debian --version 13
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) capsulectl build ./site --name site --version 1.4.2

The same tree gives the same digest, whoever builds it and when. Modification times become
SOURCE_DATE_EPOCH (1970-01-01 when unset), owners become root unless --keep-owner is given.
File capabilities and user.* attributes are kept. Links are never followed. Sockets are left out.

DIR/capsule.toml declares the version; options win over it. DIR/.capsuleignore, in the syntax of
.gitignore, says what to leave out. Neither is part of the tree. A tar is published as it is, with
its own times and owners, and so are the layers of an image; only --file declares something of them.

With --base the version has the layers of another and one layer over them, which holds what differs.
What it attaches is the same as without. Give the base's SOURCE_DATE_EPOCH, or every file differs.";

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// What is published.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The file that declares the version [default: DIR/capsule.toml, where there is one]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// The capsule
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// The version: it can be published once, with one content
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub version: Option<String>,
    /// Where attach puts it unless told otherwise: an absolute path
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// How attach mounts it unless told otherwise; see `attach`
    #[arg(long, value_enum, value_name = "ro|union", hide_possible_values = true)]
    pub mode: Option<ModeArg>,
    /// Another capsule that it needs, and the versions that do; may be given several times
    #[arg(long = "require", value_name = "NAME RANGE", value_parser = NonEmptyStringValueParser::new())]
    pub requires: Vec<String>,
    /// A variable for processes that use it; may be given several times
    #[arg(long = "env", value_name = "KEY=VALUE")]
    pub environment: Vec<KeyValue>,
    /// System calls to deny to processes that use it: a level, `baseline` or `restricted`
    #[arg(long = "seccomp", value_name = "LEVEL", value_parser = NonEmptyStringValueParser::new())]
    pub seccomp: Option<String>,
    /// One more system call to deny; may be given several times
    #[arg(long = "deny", value_name = "CALL", value_parser = NonEmptyStringValueParser::new())]
    pub deny: Vec<String>,
    /// An annotation of the image manifest; may be given several times
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<KeyValue>,
    /// A name that moves, as `stable`, to stand for it; see `tag`; may be given several times
    #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    pub tags: Vec<String>,
    /// Keep the files' user and group ids instead of giving all to root
    #[arg(long, conflicts_with_all = ["tar", "image"])]
    pub keep_owner: bool,
    /// Another version, whose layers this one has too: only what differs is stored
    #[arg(long, value_name = "NAME[@VERSION]", conflicts_with_all = ["tar", "image"])]
    pub base: Option<CapsuleRef>,
    /// The containerd namespace of the image [default: that of the capsules]
    #[arg(long, value_name = "NS", conflicts_with_all = ["dir", "tar"], value_parser = NonEmptyStringValueParser::new())]
    pub image_namespace: Option<String>,
    /// The modification time of all files, in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", default_value_t = 0,
          hide_default_value = true, value_parser = clap::value_parser!(u64).range(..=crate::archive::MAX_MTIME))]
    pub source_date_epoch: u64,
}

/// What is published: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// The directory whose content becomes the version
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// An uncompressed tar to publish as it is, instead of a directory; `-` for standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tar: Option<PathBuf>,
    /// An image of containerd whose layers to publish as they are, by its name there
    #[arg(long, value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
    pub image: Option<String>,
}

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// The content of this directory.
    Directory(&'a Path),
    /// This tar; `-` for standard input.
    Tar(&'a Path),
    /// This image of containerd.
    Image(&'a str),
}

impl SourceArgs {
    /// The one that was given; `None` only where clap did not see to it.
    pub fn given(&self) -> Option<Source<'_>> {
        let tar = self.tar.as_deref().map(Source::Tar);
        let image = self.image.as_deref().map(Source::Image);
        tar.or(image).or_else(|| self.dir.as_deref().map(Source::Directory))
    }
}

/// What clap cannot express: times of a tar and of an image are its own, so the option is refused with one. The environment
/// variable is not: scripts set it for all that they build.
pub fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(("build", build)) = matches.subcommand() else { return Ok(()) };
    let typed = build.value_source("source_date_epoch") == Some(ValueSource::CommandLine);
    for (source, why) in [
        ("tar", "a tar is published with the times it has"),
        ("image", "an image's layers are published with the times they have"),
    ] {
        if typed && build.contains_id(source) {
            let what = format!("--source-date-epoch cannot be used with --{source}: {why}");
            return Err(command.error(ErrorKind::ArgumentConflict, what));
        }
    }
    Ok(())
}
