//! The command lines of `sign`, `verify` and `keygen`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::CapsuleRef;

pub const SIGN_EXAMPLES: &str = "\
Examples:
  capsulectl keygen release                          # release.key and release.pub
  capsulectl sign tzdata@2026.1 --key release.key
  capsulectl push tzdata@2026.1 registry.example/team/tzdata    # with its signatures

The signature is kept beside the version, as cosign keeps it; the key stays here. The version's
name is signed too. A key of `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` will
do as well.";

pub const VERIFY_EXAMPLES: &str = "\
Examples:
  capsulectl verify tzdata@2026.1                    # by the keys of this node's policy
  capsulectl verify tzdata@2026.1 --key release.pub
  cosign verify --key release.pub --insecure-ignore-tlog registry.example/team/tzdata:2026.1";

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The version; the newest unless one is named
    #[arg(value_name = "NAME[@VERSION]")]
    pub capsule: CapsuleRef,
    /// The private key: ECDSA P-256, PEM, not encrypted
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: PathBuf,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The version; the newest unless one is named
    #[arg(value_name = "NAME[@VERSION]")]
    pub capsule: CapsuleRef,
    /// The public key that must have signed it, instead of those of the node's policy
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
}
