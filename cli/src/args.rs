//! What a person types: the command line, parsed and checked as far as that needs no node.
//!
//! Pure. Names and versions are judged by capsuled alone, so that there is one rule and not two; here only
//! what the command line itself means is checked.

mod build;
mod certs;
mod devices;
mod diff;
mod events;
mod limits;
mod machine;
mod moves;
mod names;
mod prune;
#[cfg(test)]
mod reference;
mod shown;
mod sign;
mod tags;
#[cfg(test)]
mod tests;
mod transfer;
mod volumes;
mod written;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use serde::Deserialize;

pub use self::build::{BuildArgs, Source};
pub use self::certs::{CertsCommand, InitArgs, IssueArgs, ServerArgs};
pub use self::devices::{DetachArgs, DevicesArgs};
pub use self::diff::DiffArgs;
pub use self::events::EventsArgs;
pub use self::limits::LimitArgs;
pub use self::machine::{DoctorArgs, ProfileArgs, SetupArgs};
pub use self::moves::{RollbackArgs, UpgradeArgs};
pub use self::names::{CapsuleName, CapsuleRef, ContainerArg, KeyValue};
pub use self::prune::{PruneArgs, RemoveArgs};
pub use self::sign::{SignArgs, VerifyArgs};
pub use self::tags::{TagArgs, TagRef};
pub use self::transfer::{ImportArgs, LoginArgs, PullArgs, PushArgs, SaveArgs};
pub use self::volumes::{VolumeArgs, VolumesCommand};
pub use self::written::{CommitArgs, UppersCommand, WritableArgs};

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
    /// A client file: the node it names is asked, and not this machine [with --node: ~/.capsule/client.yml]
    #[arg(long, env = "CAPSULE_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = REMOTE)]
    pub config: Option<PathBuf>,
    /// The node of the client file that is asked [default: the file's `current`]
    #[arg(long, env = "CAPSULE_NODE", value_name = "NODE", help_heading = REMOTE)]
    pub node: Option<String>,
    /// The containerd namespace of the container, or of the image [default: wherever the container is found]
    #[arg(short, long, global = true, value_name = "NS", help_heading = GLOBAL)]
    pub namespace: Option<String>,
    /// How results are printed: tables and sentences for people, or one JSON document for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text, value_name = "text|json",
          hide_possible_values = true, help_heading = GLOBAL)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The command's name, as it was typed.
    #[arg(skip)]
    pub name: String,
}

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Heading of the options that stand before the command.
const REMOTE: &str = "Nodes elsewhere (before the command)";

const TOP_EXAMPLES: &str = "\
Examples:
  capsulectl build ./zoneinfo --name tzdata --version 2026.1 --target /usr/share/zoneinfo
  capsulectl attach web tzdata
  capsulectl upgrade web tzdata@2026.2
  capsulectl rollback web tzdata
  capsulectl detach web tzdata
  capsulectl --config client.yml --node node2 ps

CONTAINER is a container's id, its name (nerdctl's, Docker's), a prefix of the id that no other container shares, or one of them after
its containerd namespace: NAMESPACE/NAME; or, in Kubernetes, pod/NAMESPACE/POD/CONTAINER (without CONTAINER where the
pod has one).
Exit codes: 0 done, 1 refused or failed, 2 wrong usage.";

impl Cli {
    /// Parses a command line, the program's name first.
    ///
    /// # Errors
    /// clap's, which prints itself and knows its exit code; help and version are errors too.
    pub fn parse_line(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(words)?;
        build::check(&mut command, &matches)?;
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok(Self { name, ..Self::from_arg_matches(&matches)? })
    }
}

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
    /// Publish a directory or a tar as one immutable version of a capsule
    #[command(after_help = build::EXAMPLES)]
    Build(Box<BuildArgs>),
    /// List capsule versions on this node
    #[command(after_help = shown::LS_EXAMPLES)]
    Ls {
        /// Only this capsule
        name: Option<String>,
    },
    /// Show one version: its image, layers, annotations and attachments
    #[command(after_help = shown::INSPECT_EXAMPLES)]
    Inspect {
        /// The capsule; its newest version unless one is named
        #[arg(value_name = "NAME[@VERSION]")]
        capsule: CapsuleRef,
    },
    /// Let names that move, as `stable`, stand for a version
    #[command(after_help = tags::EXAMPLES)]
    Tag(TagArgs),
    /// Take a tag away; the version stays
    #[command(after_help = shown::UNTAG_EXAMPLES)]
    Untag {
        /// The tag
        #[arg(value_name = "NAME@TAG")]
        tag: TagRef,
    },
    /// Fetch a version from a registry
    #[command(after_help = transfer::PULL_EXAMPLES)]
    Pull(PullArgs),
    /// Send a version to a registry
    #[command(after_help = transfer::PUSH_EXAMPLES)]
    Push(PushArgs),
    /// Write versions to an archive, for a machine without a registry
    #[command(after_help = transfer::SAVE_EXAMPLES)]
    Save(SaveArgs),
    /// Make the images of an archive versions: all of them or none
    #[command(after_help = transfer::LOAD_EXAMPLES)]
    Load {
        /// The archive; `-` for standard input
        #[arg(short, long, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Sign a version, so that nodes whose policy wants it use it
    #[command(after_help = sign::SIGN_EXAMPLES)]
    Sign(SignArgs),
    /// Check a version's signatures; exit code 1 when none is good
    #[command(after_help = sign::VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Make a pair of keys: PREFIX.key to sign with, PREFIX.pub for those who check
    Keygen {
        /// Where to write them
        #[arg(value_name = "PREFIX", value_hint = ValueHint::FilePath)]
        prefix: PathBuf,
    },
    /// Make an image of another containerd namespace a version: what `ctr` or `nerdctl` pulled
    #[command(after_help = transfer::IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Show what differs between the trees of two versions
    #[command(after_help = diff::EXAMPLES)]
    Diff(DiffArgs),
    /// Show which versions go together: of capsules, and of all that they require
    #[command(after_help = RESOLVE_EXAMPLES)]
    Resolve(ResolveArgs),
    /// Attach capsules and devices to a running container, with what they require: all of them or none
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Move a container to other versions of capsules, with no instant at which a path is missing
    #[command(after_help = moves::UPGRADE_EXAMPLES)]
    Upgrade(UpgradeArgs),
    /// Move a container back to the versions that the last upgrade left
    #[command(after_help = moves::ROLLBACK_EXAMPLES)]
    Rollback(RollbackArgs),
    /// Take a capsule, or devices, away from a container
    #[command(after_help = DETACH_EXAMPLES)]
    Detach(DetachArgs),
    /// Publish what a container has written to a capsule, while it runs
    #[command(after_help = written::COMMIT_EXAMPLES)]
    Commit(CommitArgs),
    /// List and remove what is kept under names
    #[command(after_help = written::UPPERS_EXAMPLES)]
    Uppers {
        /// What to do.
        #[command(subcommand)]
        command: Option<UppersCommand>,
    },
    /// Make, mount, upgrade and remove volumes: capsules and directories at paths of the node
    #[command(after_help = volumes::EXAMPLES)]
    Volumes {
        /// What to do.
        #[command(subcommand)]
        command: Option<VolumesCommand>,
    },
    /// List attachments, draining ones included
    #[command(after_help = shown::PS_EXAMPLES)]
    Ps {
        /// Only this container
        container: Option<ContainerArg>,
        /// Show each process that keeps a draining version alive on a line of its own
        #[arg(long)]
        users: bool,
    },
    /// List the devices that the node has by CDI
    #[command(after_help = devices::EXAMPLES)]
    Devices(DevicesArgs),
    /// Show how much attachments may add to limits, and what is used
    #[command(after_help = limits::BUDGET_EXAMPLES)]
    Budget,
    /// Show what the containers use that have something attached: memory, CPU, I/O and pressure
    #[command(after_help = limits::TOP_EXAMPLES)]
    Top {
        /// How often the screen is renewed, as 2s or 500ms
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
        every: Duration,
    },
    /// Print what capsuled counts, for Prometheus, or serve it over HTTP
    #[command(after_help = limits::METRICS_EXAMPLES)]
    Metrics {
        /// Serve /metrics, /healthz, /readyz and /livez on this address, to whoever reaches it, until this is stopped
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Remove versions that nobody needs
    #[command(after_help = prune::PRUNE_EXAMPLES)]
    Prune(PruneArgs),
    /// Remove versions, unless somebody needs them
    #[command(after_help = prune::RM_EXAMPLES)]
    Rm(RemoveArgs),
    /// Follow what happens to capsules and attachments
    #[command(after_help = events::EXAMPLES)]
    Events(EventsArgs),
    /// Check kernel, control groups, containerd, capsuled and runtimes, and say what to change
    #[command(after_help = machine::DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Write containerd's configuration so that capsules work, or take that back
    #[command(after_help = machine::SETUP_EXAMPLES)]
    Setup(SetupArgs),
    /// Show which services run on this machine and what they take, or choose others
    #[command(after_help = machine::PROFILE_EXAMPLES)]
    Profile(ProfileArgs),
    /// Make certificates for the remote API: an authority, servers' and clients'
    #[command(after_help = certs::EXAMPLES)]
    Certs {
        /// What to do.
        #[command(subcommand)]
        command: CertsCommand,
    },
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command, into a directory: for packages
    #[command(hide = true)]
    Man {
        /// The directory
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

const ATTACH_EXAMPLES: &str = "\
Examples:
  capsulectl attach web tzdata                               # newest version, default target
  capsulectl attach web tzdata@2026.1 --target /opt/zoneinfo
  capsulectl attach web debug-tools --mode union --target /
  capsulectl attach k8s.io/3f2a tzdata ca-bundle@2026.3      # both or none
  capsulectl attach pod/shop/web/app tzdata                  # a container of a Kubernetes pod
  capsulectl attach web app --dry-run                        # what would be attached with it
  capsulectl attach web --locked app.lock                    # what `resolve --lock` chose
  capsulectl attach web tools --writable                     # the container may write to it
  capsulectl attach web tools --persist notes --size 2GiB    # and has it again the next time
  capsulectl attach web tools --grant memory.max=512MiB      # with more memory while it is there
  capsulectl attach web --device nvidia.com/gpu=0            # a device, with its files
  capsulectl attach web cuda --device nvidia.com/gpu=0       # both or none";

const RESOLVE_EXAMPLES: &str = "\
Examples:
  capsulectl resolve app                              # the newest that go together
  capsulectl resolve app plugin@2 --container web     # what the container has counts
  capsulectl resolve app --lock app.lock              # for `attach --locked app.lock`";

const DETACH_EXAMPLES: &str = "\
Examples:
  capsulectl detach web tzdata            # refused while a process uses a file of it
  capsulectl detach web tzdata --lazy     # hidden now, `draining` until the last process is done
  capsulectl detach web tools --drop      # with all that was written to it
  capsulectl detach web tools --keep notes
  capsulectl detach web --device nvidia.com/gpu=0";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  capsulectl completion bash > /usr/share/bash-completion/completions/capsulectl
  capsulectl completion zsh > /usr/local/share/zsh/site-functions/_capsulectl";

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsules; the newest version of each unless one is named
    #[arg(value_name = "CAPSULE[@VERSION]", required_unless_present_any = ["locked", "devices"], conflicts_with = "locked")]
    pub capsules: Vec<CapsuleRef>,
    /// A device of the node by its CDI name, as `devices` lists it; may be given several times
    #[arg(long = "device", value_name = "VENDOR/CLASS=NAME", value_parser = NonEmptyStringValueParser::new(),
          conflicts_with = "dry_run")]
    pub devices: Vec<String>,
    /// Exactly the versions in a file that `resolve --lock` wrote
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["target", "mode", "writable", "persist", "size", "grants", "caps"])]
    pub locked: Option<PathBuf>,
    /// Show what would be attached, and attach nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The absolute path in the container, instead of the capsule's default; with one capsule only
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub target: Option<String>,
    /// ro: the capsule alone; union: over what the target holds [default: the capsule's, or ro]
    #[arg(long, value_enum, value_name = "ro|union", hide_possible_values = true)]
    pub mode: Option<ModeArg>,
    /// Whether it can be written to.
    #[command(flatten)]
    pub writable: WritableArgs,
    /// What it does to limits.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The capsules; the newest version that will do of each unless one is named
    #[arg(value_name = "CAPSULE[@VERSION]", required = true)]
    pub capsules: Vec<CapsuleRef>,
    /// What this container has counts
    #[arg(long, value_name = "CONTAINER")]
    pub container: Option<ContainerArg>,
    /// Write the versions to a file, for `attach --locked`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
    /// With --lock: show the plan, and write no lock file
    #[arg(long)]
    pub dry_run: bool,
}

/// How a capsule is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeArg {
    /// The capsule alone, at the target
    Ro,
    /// The capsule over what the target directory already holds
    Union,
}
