//! The command lines of `devices`, and of `detach`, which takes devices away as well.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::written::FateArgs;
use super::{CapsuleName, ContainerArg};

pub const EXAMPLES: &str = "\
Examples:
  capsulectl devices
  capsulectl devices nvidia.com/gpu            # of one vendor's class
  capsulectl devices nvidia.com/gpu=0 -o json  # one, with all that is known of it

Devices come from the CDI specs of /etc/cdi and /var/run/cdi ([devices] in capsuled's configuration).
What is wrong with a spec is said below the table, and takes no other away.";

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Only this device, or those of this vendor and class
    #[arg(value_name = "VENDOR/CLASS[=NAME]")]
    pub only: Option<String>,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The container
    pub container: ContainerArg,
    /// The capsule
    #[arg(required_unless_present = "devices", conflicts_with = "devices")]
    pub capsule: Option<CapsuleName>,
    /// Only the attachment at this path
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "devices")]
    pub target: Option<String>,
    /// A device that was attached by itself; may be given several times: all of them go, or none
    #[arg(long = "device", value_name = "VENDOR/CLASS=NAME", value_parser = NonEmptyStringValueParser::new(),
          conflicts_with_all = ["keep", "drop"])]
    pub devices: Vec<String>,
    /// Do not wait for processes that use it: hide it now, release it when the last one is done
    #[arg(long)]
    pub lazy: bool,
    /// What becomes of what was written.
    #[command(flatten)]
    pub fate: FateArgs,
}
