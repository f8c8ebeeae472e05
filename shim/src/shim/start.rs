//! The action `start`: finds the server of the container's group, or starts it.

use std::{
    env,
    io::{self, IsTerminal, Read},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{
    ShimError,
    bootstrap::{self, Dialect, Environment, Start},
    confine,
    flags::Flags,
    peer::{self, TaskApi},
    socket::{self, Bound},
};
use crate::{
    bundle::{Bundle, BundleError},
    engine::chain,
    options::Options,
};

/// More than containerd writes: the same limit as its own shim's.
const INPUT: u64 = 10 << 20;
/// Where events go, as containerd's environment and the server's have it.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Finds or starts the server; the answer for containerd.
///
/// # Errors
/// [`ShimError`]; no server and no socket is left behind.
pub fn run(flags: &Flags) -> Result<Vec<u8>, ShimError> {
    let environment = Environment {
        ttrpc: env::var(TTRPC_ADDRESS).unwrap_or_default(),
        grpc: env::var("GRPC_ADDRESS").unwrap_or_default(),
    };
    let start = bootstrap::parse(&read_input()?, flags, environment)?;
    // A mistake is told here, before anything is made.
    let options = Options::from_any(start.options.as_ref())?;
    let bundle = super::here()?;
    let group = group(&bundle, &start.id)?;
    let directory = start.sockets.as_deref().unwrap_or(Path::new(socket::DIRECTORY));
    let path = socket::path(directory, &start.containerd, &start.namespace, &group);
    let address = socket::address(&path);
    // containerd 1.7 finds the shim by it when it is started anew, `delete` the socket.
    bundle.write_address(&address)?;
    let Some(listener) = socket::acquire(&path)? else {
        return Ok(bootstrap::answer(start.dialect, task_api(&start), &address)?);
    };
    let socket = Bound::new(path.clone());
    let server = spawn(&start, &options, &path, OwnedFd::from(listener).into());
    let mut server = server.inspect_err(|_| socket.remove())?;
    let answer = bootstrap::answer(start.dialect, task_api(&start), &address)?;
    // Later than this, a server that is killed before containerd has connected leaves its socket: containerd asks nobody to
    // clean up then.
    if let Ok(Some(status)) = server.try_wait() {
        socket.remove();
        return Err(ShimError::Died(status));
    }
    Ok(answer)
}

/// What is on standard input, which is a terminal when a person looks what this program does.
pub fn read_input() -> Result<Vec<u8>, ShimError> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(INPUT).read_to_end(&mut input).map_err(ShimError::Input)?;
    }
    Ok(input)
}

/// The group of a container. A sandbox that containerd makes without a container has no spec.
pub fn group(bundle: &Bundle, id: &str) -> Result<String, BundleError> {
    match bundle.read_spec() {
        Ok(spec) => Ok(spec.group(id).to_owned()),
        Err(BundleError::Read(_, e)) if e.kind() == io::ErrorKind::NotFound => Ok(id.to_owned()),
        Err(error) => Err(error),
    }
}

/// Starts the server with its socket as standard input, in a process group of its own: signals to containerd's do not
/// reach it.
fn spawn(start: &Start, options: &Options, path: &Path, listener: Stdio) -> Result<Child, ShimError> {
    if !options.shim_cgroup.is_empty() {
        confine::join_cgroup(&options.shim_cgroup)?;
    }
    confine::raise_oom_score()?;
    if env::var_os("SCHED_CORE").is_some_and(|asked| !asked.is_empty()) {
        confine::schedule_on_own_cores()?;
    }
    let program = env::current_exe().map_err(ShimError::Executable)?;
    let mut server = Command::new(program);
    // As containerd calls it: a link to a version of this program stays when the version goes, and the server notes it.
    if let Some(called) = env::args_os().next().filter(|called| Path::new(called).is_absolute()) {
        server.arg0(called);
    }
    server.args(["-namespace", &start.namespace, "-id", &start.id, "-address", &start.containerd]);
    server.arg("-socket").arg(path).args(start.debug.then_some("-debug"));
    server.env(TTRPC_ADDRESS, &start.ttrpc).process_group(0);
    server.stdin(listener).stdout(Stdio::null()).stderr(Stdio::null());
    // It outlives this process, and containerd's init reaps it.
    server.spawn().map_err(ShimError::Spawn)
}

/// The server is starting meanwhile.
fn task_api(start: &Start) -> TaskApi {
    if start.dialect == Dialect::Bootstrap {
        return TaskApi::V3;
    }
    peer::task_api(&start.containerd).unwrap_or_else(|error| {
        log::debug!("the answer is for version 2: {}", chain(&error));
        TaskApi::V2
    })
}
