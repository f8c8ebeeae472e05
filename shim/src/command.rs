//! Commands that are run to their end for a caller: the OCI runtime's, and those that mount file systems of programs.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Signal, pidfd_send_signal};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe::Receiver,
    sync::oneshot::error::RecvError,
    time::{sleep, timeout},
};

use crate::{
    caller,
    engine::state::Exit,
    reaper::{Claim, Reaper},
};

/// How long output is read after a command has ended: what it left behind, a hook or a daemon, may hold its pipe open.
const TAIL: Duration = Duration::from_millis(200);
/// How long a command may go on when the client has left for which it works: half of its work is worse than none, but
/// one that hangs would hold its container for ever.
const OVERDUE: Duration = Duration::from_secs(1);
/// How much of a command's output is kept.
const OUTPUT: u64 = 16 << 20;

/// Output and end of a command.
pub struct Done {
    /// Its exit status, 128 and more for a signal.
    pub status: u32,
    /// What it wrote to its standard output, if that was read.
    pub stdout: Vec<u8>,
    /// The same of its errors.
    pub stderr: Vec<u8>,
}

/// Why nothing is known of a command's end.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The program cannot be executed.
    #[error("cannot run it")]
    Spawn(#[source] io::Error),
    /// The reaper is gone.
    #[error("the reaper ended before the command did")]
    Reaper,
}

/// Runs a command to its end, with the reading ends of its pipes. It is dropped before they are read, so that the writing
/// ends are the children's alone. When the step's caller has left, it has a second more and is killed; see
/// [`caller::left`] for steps without one.
///
/// # Errors
/// [`CommandError`]; its exit status is none.
pub async fn run(
    reaper: &Reaper,
    mut command: Command,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
) -> Result<Done, CommandError> {
    let program = PathBuf::from(command.get_program());
    let claim = reaper.spawn(&mut command);
    drop(command);
    let claim = claim.map_err(CommandError::Spawn)?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = {
        let reading = async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) };
        let ending = end_of(&program, claim);
        tokio::pin!(reading, ending);
        tokio::select! {
            biased;
            exit = &mut ending => {
                let _ = timeout(TAIL, reading).await;
                exit
            }
            _ = &mut reading => ending.await,
        }
    };
    let status = exit.map_err(|_| CommandError::Reaper)?.status;
    Ok(Done { status, stdout: out, stderr: err })
}

/// Waits for the end of a command, and brings it about when nobody waits any more for what it was to do.
async fn end_of(program: &Path, claim: Claim) -> Result<Exit, RecvError> {
    let Claim { mut exited, pidfd } = claim;
    let overdue = async {
        caller::left().await;
        sleep(OVERDUE).await;
    };
    tokio::select! {
        biased;
        exit = &mut exited => return exit,
        () = overdue => {}
    }
    log::warn!("{} is killed: it hangs, and nobody waits for it any more", program.display());
    if let Some(command) = pidfd {
        let _ = pidfd_send_signal(command, Signal::KILL); // it may end by itself at this moment
    }
    exited.await
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    if let Some(pipe) = pipe {
        // What was read before an error is still worth showing.
        let _ = pipe.take(OUTPUT).read_to_end(into).await;
    }
}
