//! The command lines of `certs`, which makes the certificates of the remote API.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use capsule_certificates::{Host, Role};
use clap::{Args, Subcommand, ValueHint};

use crate::remote::Address;

pub const EXAMPLES: &str = "\
Examples:
  capsulectl certs init --host node1.example --host 10.0.0.5
  capsulectl certs issue ci --role operator --to node1=10.0.0.5:7443 --file ci.yml
  capsulectl --config ci.yml ps
  capsulectl certs show ci.yml
  capsulectl certs server --host node1.example --host 10.0.0.5     # a new certificate, before the old one ends

Who has ca.key can make certificates of any role: keep it where nobody reaches it. The node needs server.pem, server.key
and ca.pem.";

/// Where capsule-remote looks for the files.
const FOLDER: &str = "/etc/capsule/remote";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make an authority, and a certificate for this node's server: ca.pem, ca.key, server.pem and server.key
    Init(InitArgs),
    /// Make a new certificate for a server, in the place of the old one or for another node
    Server(ServerArgs),
    /// Make a certificate for a client, and write it to a client file, or add it to one
    Issue(IssueArgs),
    /// Show whom the certificates in a file are for, and until when
    Show {
        /// A client file, or certificates in PEM
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// Arguments of `certs init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder for the files; it is made
    #[arg(long, value_name = "DIR", default_value = FOLDER, value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// A DNS name or an address that clients reach the server by; may be given several times
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub hosts: Vec<Host>,
    /// How long the server's certificate counts
    #[arg(long, value_name = "TIME", default_value = "365days", value_parser = time)]
    pub valid: Duration,
    /// How long the authority counts
    #[arg(long, value_name = "TIME", default_value = "3650days", value_parser = time)]
    pub ca_valid: Duration,
}

/// Arguments of `certs server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The folder with ca.pem and ca.key
    #[arg(long, value_name = "DIR", default_value = FOLDER, value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// A DNS name or an address that clients reach the server by; may be given several times
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub hosts: Vec<Host>,
    /// How long it counts
    #[arg(long, value_name = "TIME", default_value = "365days", value_parser = time)]
    pub valid: Duration,
    /// The folder for server.pem and server.key [default: that of the authority]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,
}

/// Arguments of `certs issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Who it is for, as the audit log will call them: letters, digits, '.', '_', '-' and '@'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// viewer looks, operator also attaches and detaches, admin also publishes and removes
    #[arg(long, value_name = "admin|operator|viewer")]
    pub role: Role,
    /// A node that it is for: what to call it, and where its server is; may be given several times
    #[arg(long = "to", value_name = "NODE=HOST:PORT", required = true)]
    pub nodes: Vec<NamedAddress>,
    /// The client file; nodes that it has already stay
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// How long it counts
    #[arg(long, value_name = "TIME", default_value = "90days", value_parser = time)]
    pub valid: Duration,
    /// The folder with ca.pem and ca.key
    #[arg(long, value_name = "DIR", default_value = FOLDER, value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// `NODE=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAddress {
    /// What the node is called; not empty.
    pub name: String,
    /// Where it is.
    pub address: Address,
}

impl FromStr for NamedAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write NODE=HOST:PORT, as node1=node1.example:7443";
        let (name, address) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(WRONG)?;
        Ok(Self { name: name.to_owned(), address: address.parse()? })
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() && time < Duration::from_secs(100 * 366 * 24 * 3600) => Ok(time),
        Ok(_) => Err("it must be more than nothing, and less than a hundred years".to_owned()),
        Err(error) => Err(format!("{error}: write a time as 90days or 12h")),
    }
}
