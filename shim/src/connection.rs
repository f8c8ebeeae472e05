//! Connections to the daemons, made without blocking the shim's one thread: a daemon that is stopped may have a full queue, in
//! which connect(2) waits for ever, and `ttrpc::r#async::Client::connect` with it.

use tokio::net::UnixStream;
use ttrpc::{
    Error,
    asynchronous::{Client, transport::Socket},
};

/// Connects to a socket's path, which may be written as a URL.
///
/// # Errors
/// [`Error::Socket`], also when the queue is full (`EAGAIN`, unix(7)): try again.
pub async fn connect(address: &str) -> Result<Client, Error> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    let stream = UnixStream::connect(path).await;
    stream
        .map(|stream| Client::new(Socket::from(stream)))
        .map_err(|e| Error::Socket(format!("connect to {path}: {e}")))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_is_an_error_and_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = format!("unix://{}", path.display());
        let connecting = async { [connect(&address).await, connect(&address).await] };
        let [first, second] = timeout(Duration::from_secs(10), connecting).await.expect("it waits");
        assert!(first.is_ok());
        assert!(matches!(second, Err(Error::Socket(text)) if text.contains("unavailable")));
        assert!(connect(dir.path().join("none").to_str().unwrap()).await.is_err());
    }
}
