//! Telling the service manager where this process is in its life (sd_notify(3)).
//!
//! One datagram to the socket that `NOTIFY_SOCKET` names; nothing happens where there is none.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The socket answers.
    Ready,
    /// No new calls are taken, and the process ends.
    Stopping,
    /// Another process is the service from now on: it has taken over, and this one ends.
    MainPid(u32),
}

impl State {
    fn message(self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::MainPid(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Tells the service manager, if there is one.
///
/// # Errors
/// When the socket is named but cannot be written to.
pub fn notify(state: State) -> io::Result<()> {
    match env::var("NOTIFY_SOCKET") {
        Ok(name) if !name.is_empty() => send(&name, state),
        _ => Ok(()),
    }
}

fn send(name: &str, state: State) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.message().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_it_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let abstract_name = format!("capsuled-test-{}", std::process::id());
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap(),
                format!("@{abstract_name}"),
            ),
        ];
        for (socket, name) in sockets {
            send(&name, State::Ready).unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
            send(&name, State::MainPid(7)).unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"MAINPID=7");
        }
    }
}
