//! The command line of `devices`.

use clap::Args;

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
