//! What `start` is told and what it answers. Pure.
//!
//! | containerd | tells | takes as an answer |
//! | --- | --- | --- |
//! | 1.7 | flags, environment, options as an `Any` on standard input | an address: Task API version 2 |
//! | 2.0 to 2.2 | the same | `{"version":3,"address":…,"protocol":"ttrpc"}`, or an address: version 2 |
//! | 2.3 and newer | `BootstrapParams` on standard input, and the flags | `BootstrapResult` |
//!
//! Sources: `runtime/v2/shim.go` (1.7), `core/runtime/v2/shim.go` (2.x), `pkg/shim/compat.go` (2.3).

use std::path::PathBuf;

use containerd_shim::protos::{
    bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel},
    protobuf::{self, Enum as _, Message, well_known_types::any::Any},
};
use serde::Serialize;
use thiserror::Error;

use super::{flags::Flags, peer::TaskApi};
use crate::options;

/// What the API is served over.
const PROTOCOL: &str = "ttrpc";

/// What `start` has to know.
#[derive(Debug, PartialEq)]
pub struct Start {
    /// The container.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub containerd: String,
    /// containerd's ttrpc socket, which takes events.
    pub ttrpc: String,
    /// Whether to log more.
    pub debug: bool,
    /// Where sockets go, when containerd says so.
    pub sockets: Option<PathBuf>,
    /// The runtime options, not decoded.
    pub options: Option<Any>,
    /// How to answer.
    pub dialect: Dialect,
}

/// How containerd asked, and so how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// With `BootstrapParams`.
    Bootstrap,
    /// With flags.
    Flags,
}

/// What containerd's environment says, when it asks with flags.
#[derive(Debug, Default)]
pub struct Environment {
    /// `TTRPC_ADDRESS`.
    pub ttrpc: String,
    /// `GRPC_ADDRESS`.
    pub grpc: String,
}

/// A `start` that cannot be understood.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The message is for somebody else.
    #[error(
        "standard input is for container {asked:?} of namespace {namespace:?}, the command line for another"
    )]
    Mismatch {
        /// The container that it names.
        asked: String,
        /// The namespace that it names.
        namespace: String,
    },
    /// Neither of the two messages.
    #[error("standard input holds neither BootstrapParams nor runtime options")]
    Input(#[source] protobuf::Error),
    /// Nowhere to send events.
    #[error("containerd gave no ttrpc address: it is in TTRPC_ADDRESS, or in BootstrapParams")]
    NoTtrpc,
    /// The answer.
    #[error("cannot encode the answer")]
    Encode(#[source] protobuf::Error),
    /// The answer, as JSON.
    #[error("cannot encode the answer")]
    Json(#[source] serde_json::Error),
}

/// Reads what containerd said, in either dialect.
///
/// # Errors
/// [`BootstrapError`].
pub fn parse(input: &[u8], flags: &Flags, environment: Environment) -> Result<Start, BootstrapError> {
    let start = match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if params.instance_id == flags.id && params.namespace == flags.namespace => {
            from_params(params, flags)
        }
        // Options decode as `BootstrapParams` too, their type as the container and their value as the namespace.
        _ => from_flags(parse_options(input)?, flags, environment),
    };
    if start.ttrpc.is_empty() { Err(BootstrapError::NoTtrpc) } else { Ok(start) }
}

fn parse_options(input: &[u8]) -> Result<Option<Any>, BootstrapError> {
    if input.is_empty() {
        return Ok(None);
    }
    let any = Any::parse_from_bytes(input).map_err(BootstrapError::Input)?;
    if any.special_fields.unknown_fields().iter().next().is_some() {
        let namespace = String::from_utf8_lossy(&any.value).into_owned();
        return Err(BootstrapError::Mismatch { asked: any.type_url, namespace });
    }
    Ok(Some(any))
}

fn from_params(params: BootstrapParams, flags: &Flags) -> Start {
    let debug = params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG.value();
    // There may be extensions that are not for this shim.
    let mut extensions = params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
    Start {
        id: params.instance_id,
        namespace: params.namespace,
        containerd: params.containerd_grpc_address,
        ttrpc: params.containerd_ttrpc_address,
        debug: debug || flags.debug,
        sockets: params.socket_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
        options: extensions.find(options::is_known),
        dialect: Dialect::Bootstrap,
    }
}

fn from_flags(options: Option<Any>, flags: &Flags, environment: Environment) -> Start {
    let containerd = if flags.address.is_empty() { environment.grpc } else { flags.address.clone() };
    Start {
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        containerd,
        ttrpc: environment.ttrpc,
        debug: flags.debug,
        sockets: None,
        options,
        dialect: Dialect::Flags,
    }
}

#[derive(Serialize)]
struct Params<'a> {
    version: i32,
    address: &'a str,
    protocol: &'a str,
}

/// The answer to `start`: where the API is served.
///
/// # Errors
/// None in practice.
pub fn answer(dialect: Dialect, api: TaskApi, address: &str) -> Result<Vec<u8>, BootstrapError> {
    match (dialect, api) {
        (Dialect::Bootstrap, _) => {
            let result = BootstrapResult {
                version: TaskApi::V3.number(),
                address: address.to_owned(),
                protocol: PROTOCOL.to_owned(),
                ..Default::default()
            };
            result.write_to_bytes().map_err(BootstrapError::Encode)
        }
        (Dialect::Flags, TaskApi::V3) => {
            let params = Params { version: TaskApi::V3.number(), address, protocol: PROTOCOL };
            serde_json::to_vec(&params).map_err(BootstrapError::Json)
        }
        (Dialect::Flags, TaskApi::V2) => Ok(address.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim::protos::{bootstrap_api::Extension, protobuf::EnumOrUnknown};

    use super::*;
    use crate::options::Options;

    fn flags() -> Flags {
        Flags { id: "c1".into(), namespace: "ns".into(), address: "/c.sock".into(), ..Flags::default() }
    }

    fn environment() -> Environment {
        Environment { ttrpc: "/c.sock.ttrpc".into(), grpc: "/env.sock".into() }
    }

    fn options() -> Any {
        let options = Options { binary_name: "crun".into(), ..Default::default() }.to_runc();
        let value = options.write_to_bytes().unwrap();
        Any { type_url: "containerd.runc.v1.Options".into(), value, ..Default::default() }
    }

    fn params() -> BootstrapParams {
        let other = Any { type_url: "some.other.Extension".into(), ..Default::default() };
        let extension = |any| Extension { value: Some(any).into(), ..Default::default() };
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "ns".into(),
            log_level: EnumOrUnknown::new(LogLevel::LOG_LEVEL_DEBUG),
            containerd_ttrpc_address: "/p.ttrpc".into(),
            containerd_grpc_address: "/p.sock".into(),
            socket_dir: Some("/run/s".into()),
            extensions: vec![extension(other), extension(options())],
            ..Default::default()
        }
    }

    #[test]
    fn flags_and_options_are_one_dialect() {
        let start = parse(&options().write_to_bytes().unwrap(), &flags(), environment()).unwrap();
        let expected = Start {
            id: "c1".into(),
            namespace: "ns".into(),
            containerd: "/c.sock".into(),
            ttrpc: "/c.sock.ttrpc".into(),
            debug: false,
            sockets: None,
            options: Some(options()),
            dialect: Dialect::Flags,
        };
        assert_eq!(start, expected);
        let bare = parse(b"", &Flags { address: String::new(), ..flags() }, environment()).unwrap();
        assert_eq!((bare.containerd.as_str(), bare.options), ("/env.sock", None));
    }

    #[test]
    fn bootstrap_parameters_are_the_other() {
        let start = parse(&params().write_to_bytes().unwrap(), &flags(), Environment::default()).unwrap();
        let expected = Start {
            id: "c1".into(),
            namespace: "ns".into(),
            containerd: "/p.sock".into(),
            ttrpc: "/p.ttrpc".into(),
            debug: true,
            sockets: Some("/run/s".into()),
            options: Some(options()),
            dialect: Dialect::Bootstrap,
        };
        assert_eq!(start, expected);
    }

    #[test]
    fn parameters_for_another_shim_are_refused() {
        let other = BootstrapParams { instance_id: "c2".into(), ..params() };
        let error = parse(&other.write_to_bytes().unwrap(), &flags(), environment()).unwrap_err();
        assert!(matches!(&error, BootstrapError::Mismatch { asked, .. } if asked == "c2"), "{error}");
        assert!(matches!(parse(&[0xff, 0xff], &flags(), environment()), Err(BootstrapError::Input(_))));
        let nowhere = parse(b"", &flags(), Environment::default());
        assert!(matches!(nowhere, Err(BootstrapError::NoTtrpc)));
    }

    #[test]
    fn each_containerd_gets_the_answer_that_it_takes() {
        let text = |dialect, api| String::from_utf8(answer(dialect, api, "unix:///s").unwrap()).unwrap();
        assert_eq!(text(Dialect::Flags, TaskApi::V2), "unix:///s");
        let json = r#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#;
        assert_eq!(text(Dialect::Flags, TaskApi::V3), json);
        let bytes = answer(Dialect::Bootstrap, TaskApi::V3, "unix:///s").unwrap();
        let result = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///s", "ttrpc")
        );
    }
}
