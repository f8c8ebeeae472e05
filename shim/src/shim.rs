//! The shim's process as containerd starts it: the actions `start` and `delete`, the server, and its end.

use std::{
    env,
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim::{
    Config, DeleteResponse, Error, ExitSignal, Flags, Result, Shim, StartOpts,
    asynchronous::spawn,
    protos::types::introspection::{RuntimeInfo, RuntimeVersion},
    publisher::RemotePublisher,
    socket_address,
    util::convert_to_any,
};
use protobuf::{MessageField, well_known_types::any::Any};
use tokio::sync::OnceCell;

use crate::{
    bundle::{Bundle, Spec},
    cgroup::Hierarchies,
    engine::{Engine, Host, Id, chain, clean_up},
    events::{Publisher, timestamp},
    io::Copies,
    oci,
    options::Options,
    reaper::Reaper,
    registration,
    service::Service,
};

/// 128 and the number of the signal that a container ends by when its shim is gone.
const KILLED: u32 = 137;

/// How containerd names the type of the OCI runtime specification's features, whose value is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// One run of the program.
pub struct CapsuleShim {
    id: String,
    namespace: String,
    containerd: String,
    bundle: String,
    socket: String,
    exit: Arc<ExitSignal>,
    engine: OnceCell<Arc<Engine>>,
}

#[async_trait]
impl Shim for CapsuleShim {
    type T = Service;

    async fn new(_runtime_id: &str, flags: &Flags, _config: &mut Config) -> Self {
        Self {
            id: flags.id.clone(),
            namespace: flags.namespace.clone(),
            containerd: flags.address.clone(),
            bundle: flags.bundle.clone(),
            socket: flags.socket.clone(),
            exit: Arc::default(),
            engine: OnceCell::new(),
        }
    }

    /// What the runtime can do, which containerd asks before it gives it work (user namespaces, for one).
    fn runtime_info(runtime_id: &str, options: Option<&Any>) -> Result<RuntimeInfo> {
        let parsed = Options::from_any(options).map_err(other)?;
        let features = oci::features(&parsed).map_err(other)?;
        let features = features.map(|value| Any { type_url: FEATURES.into(), value, ..Default::default() });
        let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
        Ok(RuntimeInfo {
            name: runtime_id.to_owned(),
            version: MessageField::some(version),
            options: options.cloned().into(),
            features: features.into(),
            ..Default::default()
        })
    }

    /// Starts the server process, or finds the one that the container's group has.
    async fn start_shim(&mut self, opts: StartOpts) -> Result<String> {
        start(opts).await.map_err(|error| {
            // containerd shows what is printed; the library would print the error's source code.
            eprintln!("{}", chain(&error));
            std::process::exit(1)
        })
    }

    /// Cleans up after a shim that was killed. The working directory is the bundle, or the flag names it.
    async fn delete_shim(&mut self) -> Result<DeleteResponse> {
        let id = Id::parse(&self.id).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        let bundle = Bundle::new(&self.bundle_path()?.display().to_string()).map_err(other)?;
        let run = Path::new(registration::RUN);
        if let Some(socket) = registration::address(run, &self.namespace, id.as_str()) {
            remove_if_dead(&socket);
        }
        // Nobody else takes the task socket of a shim away that was killed.
        let group = bundle.read_spec().map(|spec| spec.group(&self.id).to_owned());
        let group = group.unwrap_or_else(|_| self.id.clone());
        let address = socket_address(&self.containerd, &self.namespace, &group);
        remove_if_dead(Path::new(address.trim_start_matches("unix://")));
        registration::unregister(run, &self.namespace, id.as_str()).map_err(other)?;
        let reaper = Reaper::start().map_err(other)?;
        let pid = clean_up(&bundle, &id, &self.namespace, reaper).await;
        let pid = pid.inspect_err(|error| log::warn!("{}", chain(error))).unwrap_or_default();
        Ok(DeleteResponse {
            pid: pid.cast_unsigned(),
            exit_status: KILLED,
            exited_at: MessageField::some(timestamp(SystemTime::now())),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
        if let Some(engine) = self.engine.get() {
            engine.finish().await;
        }
        // The library removes the socket only by a file of the first bundle, which is gone by now.
        let _ = std::fs::remove_file(self.socket.trim_start_matches("unix://"));
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> Service {
        let group =
            read_spec().map(|spec| spec.group(&self.id).to_owned()).unwrap_or_else(|_| self.id.clone());
        // Of the library's publisher only the address is used; see `events`.
        let events = Publisher::start(publisher.address, &self.namespace);
        let reaper = match Reaper::start() {
            Ok(reaper) => reaper,
            Err(error) => {
                log::error!("install the handler of SIGCHLD: {error}");
                std::process::exit(1);
            }
        };
        let host = Host {
            namespace: self.namespace.clone(),
            reaper,
            events,
            copies: Copies::default(),
            cgroups: Hierarchies::default(),
            hotplug: registration::hotplug_socket(&self.containerd, &self.namespace, &group),
        };
        let engine = Arc::new(Engine::new(host, self.exit.clone()));
        // Called once per process.
        let _ = self.engine.set(engine.clone());
        Service(engine)
    }
}

impl CapsuleShim {
    fn bundle_path(&self) -> Result<PathBuf> {
        if !self.bundle.is_empty() {
            return Ok(PathBuf::from(&self.bundle));
        }
        let here = env::current_dir().map_err(other)?;
        // containerd runs the action in the bundle, which is named after the container.
        Ok(here.parent().unwrap_or(&here).join(&self.id))
    }
}

async fn start(mut opts: StartOpts) -> Result<String> {
    let spec = read_spec()?;
    let group = spec.group(&opts.id).to_owned();
    let address = opts.socket_address(&group);
    if is_served(&address) {
        return Ok(address);
    }
    normalize_options(&mut opts)?;
    spawn(opts, &group, Vec::new()).await
}

fn read_spec() -> Result<Spec> {
    let here = env::current_dir().map_err(other)?;
    let bundle = Bundle::new(&here.display().to_string()).map_err(other)?;
    bundle.read_spec().map_err(other)
}

/// The library reads the shim's cgroup from runc's message only: whatever was sent becomes one.
fn normalize_options(opts: &mut StartOpts) -> Result<()> {
    for any in &mut opts.extensions {
        if any.type_url.ends_with("runtimeoptions.v1.Options") {
            let options = Options::from_any(Some(any)).map_err(other)?;
            *any = convert_to_any(Box::new(options.to_runc()))?;
        }
    }
    Ok(())
}

fn is_served(address: &str) -> bool {
    UnixStream::connect(address.trim_start_matches("unix://")).is_ok()
}

/// Another container's shim may be the same process, and alive: it keeps a connection. One that is on its way out
/// may still accept it, and resets it.
fn remove_if_dead(socket: &Path) {
    let alive = UnixStream::connect(socket).is_ok_and(|mut stream| {
        let waiting = stream.set_read_timeout(Some(DYING)).and_then(|()| stream.read(&mut [0]));
        waiting.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    });
    if !alive {
        let _ = std::fs::remove_file(socket);
    }
}

/// How long a killed process may take to close its sockets.
const DYING: Duration = Duration::from_millis(200);

fn other(error: impl std::error::Error) -> Error {
    Error::Other(chain(&error))
}
