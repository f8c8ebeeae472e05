//! What a person types: the command line, parsed and checked as far as that needs no node.
//!
//! Pure. Names and versions are judged by capsuled alone, so that there is one rule and not two; here only
//! what the command line itself means is checked.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

/// Where capsuled listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/capsule/capsuled.sock";

/// Publish capsules, and attach, upgrade, roll back and detach them in live containers.
#[derive(Debug, Parser)]
#[command(name = "capsulectl", version, max_term_width = 100, after_help = TOP_EXAMPLES)]
pub struct Cli {
    /// capsuled's socket
    #[arg(long, global = true, env = "CAPSULE_ADDRESS", default_value = DEFAULT_ADDRESS,
          value_name = "SOCKET", value_hint = ValueHint::FilePath, help_heading = GLOBAL)]
    pub address: PathBuf,
    /// The containerd namespace of the container [default: wherever the id is found]
    #[arg(short, long, global = true, value_name = "NS", help_heading = GLOBAL)]
    pub namespace: Option<String>,
    /// How results are printed: tables and sentences for people, or one JSON document for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text, value_name = "text|json",
          hide_possible_values = true, help_heading = GLOBAL)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

const TOP_EXAMPLES: &str = "\
Examples:
  capsulectl build ./zoneinfo --name tzdata --version 2026.1 --target /usr/share/zoneinfo
  capsulectl attach web tzdata
  capsulectl upgrade web tzdata@2026.2
  capsulectl rollback web tzdata
  capsulectl detach web tzdata

CONTAINER is a container's id, a prefix of it that no other container shares, or NAMESPACE/ID.
Exit codes: 0 done, 1 refused or failed, 2 wrong usage.";

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and sentences, for people.
    Text,
    /// One JSON document, for programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish a directory as one immutable version of a capsule
    #[command(after_help = BUILD_EXAMPLES)]
    Build(BuildArgs),
    /// List capsule versions on this node
    Ls {
        /// Only this capsule
        name: Option<String>,
    },
    /// Show one version: its image, layers, annotations and attachments
    Inspect {
        /// The capsule; its newest version unless one is named
        #[arg(value_name = "NAME[@VERSION]")]
        capsule: CapsuleRef,
    },
    /// Attach capsules to a running container: all of them or none
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Move a container to another version of a capsule, with no instant at which a path is missing
    #[command(after_help = UPGRADE_EXAMPLES)]
    Upgrade {
        /// The container
        container: ContainerArg,
        /// The capsule; its newest version unless one is named
        #[arg(value_name = "CAPSULE[@VERSION]")]
        capsule: CapsuleRef,
        /// Only the attachment at this path
        #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
        target: Option<String>,
    },
    /// Move a container back to the version that the last upgrade left
    Rollback(AttachmentArgs),
    /// Take a capsule away from a container
    #[command(after_help = DETACH_EXAMPLES)]
    Detach {
        /// Which attachment.
        #[command(flatten)]
        attachment: AttachmentArgs,
        /// Do not wait for processes that use it: hide it now, release it when the last one is done
        #[arg(long)]
        lazy: bool,
    },
    /// List attachments, draining ones included
    Ps {
        /// Only this container
        container: Option<ContainerArg>,
        /// Show each process that keeps a draining version alive on a line of its own
        #[arg(long)]
        users: bool,
    },
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const BUILD_EXAMPLES: &str = "\
Examples:
  capsulectl build ./zoneinfo --name tzdata --version 2026.1 --target /usr/share/zoneinfo
  capsulectl build ./tools --name debug-tools --version 1.0.0 --target / --mode union
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) capsulectl build ./site --name site --version 1.4.2

The same tree gives the same digest, whoever builds it and when. Modification times become
SOURCE_DATE_EPOCH (1970-01-01 when unset), owners become root unless --keep-owner is given.
File capabilities and user.* attributes are kept. Links are never followed. Sockets are left out.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  capsulectl attach web tzdata                               # newest version, default target
  capsulectl attach web tzdata@2026.1 --target /opt/zoneinfo
  capsulectl attach web debug-tools --mode union --target /
  capsulectl attach k8s.io/3f2a tzdata ca-bundle@2026.3      # both or none";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  capsulectl upgrade web tzdata           # to the newest version on this node
  capsulectl upgrade web tzdata@2026.2";

const DETACH_EXAMPLES: &str = "\
Examples:
  capsulectl detach web tzdata            # refused while a process uses a file of it
  capsulectl detach web tzdata --lazy     # hidden now, `draining` until the last process is done";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  capsulectl completion bash > /usr/share/bash-completion/completions/capsulectl
  capsulectl completion zsh > /usr/local/share/zsh/site-functions/_capsulectl";

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The directory whose content becomes the version
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// The capsule
    #[arg(long)]
    pub name: String,
    /// The version: it can be published once, with one content
    #[arg(long)]
    pub version: String,
    /// Where attach puts it unless told otherwise: an absolute path
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// How attach mounts it unless told otherwise; see `attach`
    #[arg(long, value_enum, value_name = "ro|union", hide_possible_values = true)]
    pub mode: Option<ModeArg>,
    /// An annotation of the image manifest; may be given several times
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<KeyValue>,
    /// Keep the files' user and group ids instead of giving all to root
    #[arg(long)]
    pub keep_owner: bool,
    /// The modification time of all files, in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", default_value_t = 0,
          hide_default_value = true, value_parser = clap::value_parser!(u64).range(..=crate::archive::MAX_MTIME))]
    pub source_date_epoch: u64,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsules; the newest version of each unless one is named
    #[arg(value_name = "CAPSULE[@VERSION]", required = true)]
    pub capsules: Vec<CapsuleRef>,
    /// The absolute path in the container, instead of the capsule's default; with one capsule only
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// ro: the capsule alone; union: over what the target holds [default: the capsule's, or ro]
    #[arg(long, value_enum, value_name = "ro|union", hide_possible_values = true)]
    pub mode: Option<ModeArg>,
}

/// Which attachment of a container.
#[derive(Debug, Args)]
pub struct AttachmentArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsule
    pub capsule: CapsuleName,
    /// Only the attachment at this path
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
}

/// How a capsule is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// The capsule alone, at the target
    Ro,
    /// The capsule over what the target directory already holds
    Union,
}

/// `NAME[@VERSION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapsuleRef {
    /// Name of the capsule; not empty.
    pub name: String,
    /// Version; `None` for the newest.
    pub version: Option<String>,
}

impl FromStr for CapsuleRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("the capsule's name is empty: write NAME or NAME@VERSION");
        }
        if version.is_some_and(str::is_empty) {
            return Err("the version after `@` is empty: write NAME@VERSION, or NAME for the newest");
        }
        if version.is_some_and(|v| v.contains('@')) {
            return Err("more than one `@`: write NAME@VERSION");
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

/// A capsule's name where a version has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapsuleName(pub String);

impl FromStr for CapsuleName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let capsule: CapsuleRef = text.parse()?;
        match capsule.version {
            None => Ok(Self(capsule.name)),
            Some(_) => Err("a version has no place here: name the capsule alone"),
        }
    }
}

/// `ID`, a unique prefix of it, or `NAMESPACE/ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerArg {
    /// Id or prefix; not empty.
    pub id: String,
    /// containerd namespace, where the argument names one.
    pub namespace: Option<String>,
}

impl FromStr for ContainerArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, id) = match text.split_once('/') {
            Some((namespace, id)) => (Some(namespace), id),
            None => (None, text),
        };
        if id.is_empty() || id.contains('/') || namespace.is_some_and(str::is_empty) {
            return Err("write the container's id, a unique prefix of it, or NAMESPACE/ID");
        }
        Ok(Self { id: id.to_owned(), namespace: namespace.map(str::to_owned) })
    }
}

/// `KEY=VALUE`; the value may be empty and may hold `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Not empty.
    pub key: String,
    /// May be empty.
    pub value: String,
}

impl FromStr for KeyValue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("write KEY=VALUE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn capsule_refs() {
        let full = |name: &str, version: Option<&str>| {
            Some(CapsuleRef { name: name.into(), version: version.map(Into::into) })
        };
        for (text, want) in [
            ("tzdata", full("tzdata", None)),
            ("tzdata@2026.1", full("tzdata", Some("2026.1"))),
            ("tzdata@", None),
            ("@1", None),
            ("", None),
            ("a@1@2", None),
        ] {
            assert_eq!(text.parse::<CapsuleRef>().ok(), want, "{text:?}");
        }
    }

    #[test]
    fn a_version_has_no_place_in_a_name() {
        assert_eq!("tzdata".parse(), Ok(CapsuleName("tzdata".into())));
        assert!("tzdata@1".parse::<CapsuleName>().is_err());
    }

    #[test]
    fn containers() {
        let full = |id: &str, namespace: Option<&str>| {
            Some(ContainerArg { id: id.into(), namespace: namespace.map(Into::into) })
        };
        for (text, want) in [
            ("web", full("web", None)),
            ("k8s.io/3f2a", full("3f2a", Some("k8s.io"))),
            ("", None),
            ("/web", None),
            ("k8s.io/", None),
            ("a/b/c", None),
        ] {
            assert_eq!(text.parse::<ContainerArg>().ok(), want, "{text:?}");
        }
    }

    #[test]
    fn key_values() {
        let full = |key: &str, value: &str| Some(KeyValue { key: key.into(), value: value.into() });
        for (text, want) in [
            ("a=b", full("a", "b")),
            ("a=", full("a", "")),
            ("a=b=c", full("a", "b=c")),
            ("=b", None),
            ("a", None),
        ] {
            assert_eq!(text.parse::<KeyValue>().ok(), want, "{text:?}");
        }
    }

    #[test]
    fn command_lines() {
        for (line, ok) in [
            ("build d --name n --version 1", true),
            ("build d --name n --version 1 --annotation a=b --annotation c=d --mode union --target /", true),
            ("build d --name n --version 1 --source-date-epoch 1700000000", true),
            ("build d --name n --version 1 --source-date-epoch -1", false),
            ("build d --name n --version 1 --source-date-epoch 8589934592", false),
            ("build d --name n", false),
            ("build d --version 1", false),
            ("build --name n --version 1", false),
            ("ls", true),
            ("ls tzdata --output json", true),
            ("--output json ls", true),
            ("ls --output yaml", false),
            ("inspect tzdata@1", true),
            ("inspect", false),
            ("attach c a@1 b", true),
            ("attach c", false),
            ("attach c a --mode rw", false),
            ("upgrade c a", true),
            ("upgrade c a@2 --target /x", true),
            ("rollback c a", true),
            ("rollback c a@2", false),
            ("detach c a --lazy --target /x", true),
            ("detach c a@1", false),
            // An unset variable of a script is not "wherever it is".
            ("detach c a --target=", false),
            ("attach c a --target=", false),
            ("ps", true),
            ("ps ns/c --users", true),
            ("ps -n ns c", true),
            ("completion bash", true),
            ("completion vi", false),
            ("", false),
        ] {
            let words = ["capsulectl"].into_iter().chain(line.split_whitespace());
            assert_eq!(Cli::try_parse_from(words).is_ok(), ok, "{line:?}");
        }
    }
}
