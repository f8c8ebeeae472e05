//! What is asked of a runtime beyond a container's spec: the messages in which its options come.

use anyhow::{Context as _, Result};
use containerd_shim::api::Options;
use prost::Message as _;
use prost_types::Any;
use protobuf::Message as _;

/// How a task is made, beyond what its container says.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Runtime options, which containerd takes of runc's type alone here.
    pub options: Option<Any>,
    /// The shim's program in the place of the one that the runtime's name stands for, as CRI's `runtime_path`.
    pub program: String,
}

impl Asked {
    /// These options.
    pub fn with(options: &Options) -> Result<Self> {
        Ok(Self { options: Some(runc_options(options)?), ..Self::default() })
    }
}

/// `containerd.runc.v1.Options`, which containerd's clients send.
pub fn runc_options(options: &Options) -> Result<Any> {
    let value = options.write_to_bytes().context("encode runtime options")?;
    Ok(Any { type_url: "containerd.runc.v1.Options".to_owned(), value })
}

/// `runtimeoptions.v1.Options`, which CRI sends every runtime but containerd's own: TOML in a file or as it is.
pub fn toml_options(config_path: &str, config_body: &str) -> Any {
    let options = TomlOptions {
        type_url: "io.containerd.capsule.Options".to_owned(),
        config_path: config_path.to_owned(),
        config_body: config_body.as_bytes().to_vec(),
    };
    Any { type_url: "runtimeoptions.v1.Options".to_owned(), value: options.encode_to_vec() }
}

#[derive(Clone, PartialEq, prost::Message)]
struct TomlOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}
