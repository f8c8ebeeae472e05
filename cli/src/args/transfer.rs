//! The command lines of `pull`, `push`, `save`, `load` and `import`.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueHint};

use super::CapsuleRef;

pub const PULL_EXAMPLES: &str = "\
Examples:
  capsulectl pull registry.example/team/tzdata:2026.1
  capsulectl pull registry.example/team/tzdata:stable          # what `stable` is there, and the tag
  capsulectl pull registry.example/vendor/image:7 --as tools@7
  echo \"$PASSWORD\" | capsulectl pull registry.example/team/tzdata:2026.1 --user ci

containerd fetches it, as /etc/containerd/certs.d says. What the image is the annotations of its
manifest say, or else its reference. A version that is here with another digest is refused.";

pub const PUSH_EXAMPLES: &str = "\
Examples:
  capsulectl push tzdata@2026.1 registry.example/team/tzdata     # to the tag 2026.1
  capsulectl push tzdata@stable registry.example/team/tzdata:stable";

pub const SAVE_EXAMPLES: &str = "\
Examples:
  capsulectl save tzdata@2026.1 ca-bundle -f capsules.tar
  capsulectl save tzdata | ssh other capsulectl load

The archive is an OCI image layout in a tar; `ctr image import` reads it too.";

pub const LOAD_EXAMPLES: &str = "\
Examples:
  capsulectl load -f capsules.tar
  docker save team/tool:1 | capsulectl load

All images in the archive become versions, or none.";

pub const IMPORT_EXAMPLES: &str = "\
Examples:
  nerdctl pull registry.example/vendor/tools:7
  capsulectl import registry.example/vendor/tools:7 --namespace default
  capsulectl attach web tools@7 --target /opt/tools";

/// Who asks a registry.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Your name at the registry; the password is $CAPSULE_PASSWORD, or the first line of standard input [default: what
    /// ~/.docker/config.json has for the registry]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub user: Option<String>,
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image
    #[arg(value_name = "HOST/REPOSITORY[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// What it is to be here, whatever it says itself
    #[arg(long = "as", value_name = "NAME[@VERSION]")]
    pub naming: Option<CapsuleRef>,
    /// Who asks.
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Arguments of `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The version; the newest unless one is named
    #[arg(value_name = "NAME[@VERSION]")]
    pub capsule: CapsuleRef,
    /// Where it goes; the version is the tag unless one is named
    #[arg(value_name = "HOST/REPOSITORY[:TAG]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// Who asks.
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Arguments of `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The versions; the newest of each unless one is named
    #[arg(value_name = "NAME[@VERSION]", required = true)]
    pub capsules: Vec<CapsuleRef>,
    /// The archive; `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The image, as `ctr -n NS images ls` shows it; --namespace says in which namespace
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    pub image: String,
    /// What it is to be, whatever it says itself
    #[arg(long = "as", value_name = "NAME[@VERSION]")]
    pub naming: Option<CapsuleRef>,
}
