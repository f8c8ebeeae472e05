//! Connections that are not cut off: the server's side of their end.
//!
//! A client may have sent a request just before it reads that the connection ends (GOAWAY). If the socket is closed with
//! that request unread, the kernel throws away what the client has not read yet (unix(7): `ECONNRESET`), the GOAWAY with
//! it, and the client cannot know that its request was never seen. So the end is as RFC 9112 section 9.6 has it for
//! HTTP/1: this side says that it has ended, reads on, and closes when the client has.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::UnixStream,
    sync::watch,
    time::timeout,
};
use tonic::transport::server::Connected;

/// How long a client may take to close its end. One that answers at all does so at once.
const LINGER: Duration = Duration::from_millis(500);

/// Counts the connections that have not ended.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<watch::Sender<usize>>);

impl Connections {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Takes a connection in.
    pub(super) fn accept(&self, stream: UnixStream) -> Connection {
        self.0.send_modify(|count| *count += 1);
        Connection { inner: Some((stream, Open(self.0.clone()))) }
    }

    /// Waits until every client has closed its end or has had its time to.
    pub(super) async fn ended(&self) {
        let mut count = self.0.subscribe();
        // The sender lives as long as `self`.
        _ = timeout(LINGER * 2, count.wait_for(|count| *count == 0)).await;
    }
}

/// One that has not ended.
#[derive(Debug)]
struct Open(Arc<watch::Sender<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A client's connection. When it is dropped, its end is seen to in the background.
#[derive(Debug)]
pub(super) struct Connection {
    /// There until this is dropped.
    inner: Option<(UnixStream, Open)>,
}

impl Connection {
    fn poll_with<T>(
        self: Pin<&mut Self>,
        poll: impl FnOnce(Pin<&mut UnixStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.get_mut().inner {
            Some((stream, _)) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::try_current();
        if let (Some((stream, open)), Ok(runtime)) = (self.inner.take(), runtime) {
            runtime.spawn(end(stream, open));
        }
    }
}

async fn end(mut stream: UnixStream, open: Open) {
    let close = async {
        let mut unread = [0; 4096];
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    _ = timeout(LINGER, close).await; // a client that has gone is what was waited for
    drop(open);
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_with(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(|(stream, _)| stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(|stream| stream.poll_shutdown(context))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client reads after the server has said `last` and dropped its end while a request was on its way.
    async fn last_words(linger: bool) -> io::Result<String> {
        let (mut client, server) = UnixStream::pair().unwrap();
        let connections = Connections::new();
        let mut server = connections.accept(server);
        server.write_all(b"last").await.unwrap();
        client.write_all(b"request").await.unwrap();
        if linger {
            drop(server);
        } else {
            drop(server.inner.take());
        }
        tokio::task::yield_now().await;
        let mut said = String::new();
        client.read_to_string(&mut said).await?;
        drop(client);
        connections.ended().await;
        assert_eq!(*connections.0.borrow(), 0);
        Ok(said)
    }

    #[tokio::test]
    async fn a_client_that_has_just_sent_a_request_hears_the_last_words() {
        assert_eq!(last_words(true).await.unwrap(), "last");
        // What the kernel does otherwise, and why all this is here.
        assert_eq!(last_words(false).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_client_that_does_not_close_is_not_waited_for_long() {
        let (_client, server) = UnixStream::pair().unwrap();
        let connections = Connections::new();
        drop(connections.accept(server));
        connections.ended().await;
        assert_eq!(*connections.0.borrow(), 0);
    }
}
