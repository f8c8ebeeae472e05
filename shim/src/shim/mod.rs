//! The shim's process as containerd starts it.
//!
//! Rooms: `flags` (the command line) and `bootstrap` (what `start` is told and answers), both pure ← `peer` (which
//! containerd asks), `socket`, `confine` (cgroup and the like) ← `start`, `actions` (`delete`, `-info`, `-v`) and `server`.
//! `logging` is for the last two, `open_files` (a limit) for the server. The process is our own and not containerd-shim's: see ADR 0010.

mod actions;
mod bootstrap;
mod confine;
mod flags;
mod logging;
mod open_files;
mod peer;
mod server;
mod socket;
mod start;

use std::{
    env,
    io::{self, Write},
    process::{ExitCode, ExitStatus},
};

use flags::{Action, Flags, FlagsError};
use thiserror::Error;

use crate::{
    bundle::{Bundle, BundleError},
    engine::{EngineError, chain},
    oci::RuntimeError,
    options::OptionsError,
    registration::RegistrationError,
};

/// The runtime's name, as containerd's clients write it.
pub const NAME: &str = "io.containerd.capsule.v1";

/// Why the process cannot do what it was started for.
#[derive(Debug, Error)]
pub enum ShimError {
    /// See [`FlagsError`].
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// See [`bootstrap::BootstrapError`].
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::BootstrapError),
    /// See [`OptionsError`].
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// See [`BundleError`].
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// See [`socket::SocketError`].
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// See [`confine::ConfineError`].
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// See [`RuntimeError`].
    #[error(transparent)]
    OciRuntime(#[from] RuntimeError),
    /// See [`RegistrationError`].
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The container's id.
    #[error(transparent)]
    Id(EngineError),
    /// Standard input.
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    /// Standard output.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
    /// The options of `-info`.
    #[error("standard input holds no runtime options")]
    InfoOptions(#[source] protobuf::Error),
    /// A message.
    #[error("cannot encode the answer")]
    Encode(#[source] protobuf::Error),
    /// The working directory.
    #[error("cannot find the working directory")]
    Here(#[source] io::Error),
    /// This program.
    #[error("cannot find this program")]
    Executable(#[source] io::Error),
    /// The server.
    #[error("cannot start the server")]
    Spawn(#[source] io::Error),
    /// The server, as soon as it was started.
    #[error("the server has ended at once: {0}")]
    Died(ExitStatus),
    /// The server was not started by `start`.
    #[error("standard input is no listening socket: this is for the action `start`, which containerd calls")]
    NoListener,
    /// Its socket.
    #[error("cannot use the listening socket")]
    Listener(#[source] io::Error),
    /// The processes of its containers would be reparented elsewhere.
    #[error("cannot become the reaper of descendants")]
    Subreaper(#[source] io::Error),
    /// The log.
    #[error("cannot log to the bundle's FIFO `log`")]
    Log(#[source] io::Error),
    /// Nowhere to send events.
    #[error("TTRPC_ADDRESS is not set")]
    NoEvents,
    /// The event loop.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// Signals.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    /// Serving.
    #[error("cannot serve the Task API")]
    Serve(#[source] ttrpc::Error),
}

/// Does what the command line says.
pub fn run() -> ExitCode {
    let flags = match flags::parse(env::args_os().skip(1)) {
        Ok(flags) => flags,
        Err(error) => return fail(&error.into(), 2),
    };
    if flags.action != Action::Serve {
        logging::start_action(flags.debug);
    }
    match act(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn act(flags: &Flags) -> Result<(), ShimError> {
    let answer = match flags.action {
        Action::Serve => return server::run(flags),
        Action::Start => start::run(flags)?,
        Action::Delete => actions::delete(flags)?,
        Action::Info => actions::info()?,
        Action::Version => actions::version().into_bytes(),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer).and_then(|()| stdout.flush()).map_err(ShimError::Output)
}

/// containerd shows what is printed.
fn fail(error: &ShimError, code: u8) -> ExitCode {
    let _ = write!(io::stderr(), "{NAME}: {}", chain(error));
    ExitCode::from(code)
}

/// The bundle that containerd runs this process in.
fn here() -> Result<Bundle, ShimError> {
    let here = env::current_dir().map_err(ShimError::Here)?;
    Ok(Bundle::new(&here.display().to_string())?)
}
