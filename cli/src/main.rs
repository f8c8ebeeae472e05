//! capsulectl: publish capsules, and attach, upgrade, roll back and detach them in live containers.
//!
//! The rooms, in the direction of flow: `args` (what was typed) and `declaration` (what a tree's `capsule.toml`
//! says) → `request` (the wire, pure) → `client` and `archive` (effects) → `view` (our own values) → `text` (what is
//! read). `commands` and `publish` (with `base`) join them; `credentials` and `progress` are
//! for transfers; `trace` says of which trace the calls are; `remote` is how nodes elsewhere are reached; `doctor`, `setup` and `profile` look at the machine itself (`host`) and at containerd's configuration; `man` is for packages.
//! Nothing here needs root by itself, enters a namespace or opens a database: capsuled does. `setup` and `profile` alone write a
//! file that is root's.

mod archive;
mod args;
mod base;
mod client;
mod commands;
mod credentials;
mod declaration;
mod doctor;
mod error;
mod host;
mod lock;
mod man;
mod profile;
mod progress;
mod publish;
mod remote;
mod request;
mod setup;
mod table;
mod text;
mod top;
mod trace;
mod view;

use std::io::Write;
use std::process::ExitCode;

use crate::error::Error;

fn main() -> ExitCode {
    let cli = match args::Cli::parse_line(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader went away (`capsulectl ps | head -1`): that is no failure of ours.
        Err(Error::Print(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            // Nothing is left to do when standard error is closed too.
            let _ = writeln!(std::io::stderr(), "capsulectl: {}", e.line());
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(cli: args::Cli) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let trace = match commands::asks_a_node(&cli.command) {
        true => trace::Trace::begin(&cli.name)?,
        false => trace::Trace::none(),
    };
    let outcome = runtime.block_on(commands::run(cli, &trace.caller()));
    trace.end(&outcome);
    // A thread may still wait for a tar on standard input that nobody wants any more.
    runtime.shutdown_background();
    outcome
}
