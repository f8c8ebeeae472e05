//! The actions that neither start nor serve: `delete`, `-info` and `-v`.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use containerd_shim::{
    DeleteResponse,
    protos::{
        api::ShutdownRequest,
        shim_async::TaskClient,
        types::introspection::{RuntimeInfo, RuntimeVersion},
    },
};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use tokio::runtime;
use ttrpc::context;

use super::{
    NAME, ShimError,
    flags::Flags,
    socket,
    start::{self, read_input},
};
use crate::{
    bundle::Bundle,
    connection,
    engine::{Id, chain, clean_up},
    events::timestamp,
    oci,
    options::Options,
    reaper::Reaper,
    registration,
};

/// 128 and the number of the signal that a container ends by when its shim is gone.
const KILLED: u32 = 137;
/// How containerd names the type of the OCI runtime specification's features, whose value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// A server that does not answer for so long is not dead for that.
const ANSWER: Duration = Duration::from_millis(500);

/// Name and version, as containerd's own shim prints them.
pub fn version() -> String {
    let program = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{name}:\n  Version:  {}\n\n", env!("CARGO_PKG_VERSION"))
}

/// What the runtime can do, which containerd asks before it gives it work (user namespaces, for one). Options may be on
/// standard input.
///
/// # Errors
/// [`ShimError`].
pub fn info() -> Result<Vec<u8>, ShimError> {
    let input = read_input()?;
    let options = match input.as_slice() {
        [] => None,
        bytes => Some(Any::parse_from_bytes(bytes).map_err(ShimError::InfoOptions)?),
    };
    let features = oci::features(&Options::from_any(options.as_ref())?)?;
    let features = features.map(|value| Any { type_url: FEATURES.into(), value, ..Default::default() });
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(version),
        options: options.into(),
        features: features.into(),
        ..Default::default()
    };
    info.write_to_bytes().map_err(ShimError::Encode)
}

/// Takes away what a server that is gone has left of a container. Its processes are killed.
///
/// # Errors
/// [`ShimError`] when it is not clear what to take away; what cannot be is logged.
pub fn delete(flags: &Flags) -> Result<Vec<u8>, ShimError> {
    let id = Id::parse(&flags.id).map_err(ShimError::Id)?;
    let bundle = if flags.bundle.is_empty() { beside(&id)? } else { Bundle::new(&flags.bundle)? };
    // Processes of the container become children of this one when they are killed, and go with it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| ShimError::Subreaper(e.into()))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(ShimError::Runtime)?;
    let pid = runtime.block_on(async {
        remove_dead_sockets(&bundle, flags, &id).await;
        registration::unregister(Path::new(registration::RUN), &flags.namespace, id.as_str())?;
        let reaper = Reaper::start(None).map_err(ShimError::Signals)?;
        let pid = clean_up(&bundle, &id, &flags.namespace, reaper).await;
        Ok::<_, ShimError>(pid.inspect_err(|error| log::warn!("{}", chain(error))).unwrap_or_default())
    })?;
    let response = DeleteResponse {
        pid: pid.cast_unsigned(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    response.write_to_bytes().map_err(ShimError::Encode)
}

/// containerd runs actions in a bundle; bundles are named after their containers.
fn beside(id: &Id) -> Result<Bundle, ShimError> {
    let here = env::current_dir().map_err(ShimError::Here)?;
    let bundle = here.parent().unwrap_or(&here).join(id.as_str());
    Ok(Bundle::new(&bundle.display().to_string())?)
}

/// Both sockets of a server go with it. Other containers of the group may have the same server, and it be alive.
async fn remove_dead_sockets(bundle: &Bundle, flags: &Flags, id: &Id) {
    // Members of a pod that containerd 2.x added by itself have none: the first one's is enough.
    let Ok(address) = bundle.read_address() else { return };
    if is_asked_to_end(&address).await {
        return;
    }
    // By its group, not by the container's registration: a container that is being made has none yet.
    let group = start::group(bundle, id.as_str()).unwrap_or_else(|_| id.to_string());
    let hotplug = registration::hotplug_socket(&flags.address, &flags.namespace, &group);
    for path in [socket::parse_address(&address).to_owned(), hotplug] {
        let _ = std::fs::remove_file(path);
    }
}

/// Asks the server to end, which it does if it has no container: one that was started for a containerd that was killed before
/// it could ask for a container would stay for ever. Whether it answers: one on its way out may still accept a connection,
/// and resets it.
async fn is_asked_to_end(address: &str) -> bool {
    let Ok(client) = connection::connect(address).await else { return false };
    let nanoseconds = i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX);
    let context = context::Context { timeout_nano: nanoseconds, ..Default::default() };
    let answer = TaskClient::new(client).shutdown(context, &ShutdownRequest::default()).await;
    // An error with a status is an answer.
    !matches!(
        answer,
        Err(ttrpc::Error::RemoteClosed
            | ttrpc::Error::LocalClosed
            | ttrpc::Error::Socket(_)
            | ttrpc::Error::Eof)
    )
}
