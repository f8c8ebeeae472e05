//! capsuled, as a client of its socket.

use std::{io, path::PathBuf, sync::Arc};

use hyper::{
    Request, Response,
    body::{Body, Bytes, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, sync::Mutex};

/// Why capsuled did not answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens.
    #[error("reach capsuled at its socket: {0}")]
    Connect(#[from] io::Error),
    /// It went away.
    #[error("ask capsuled: {0}")]
    Ask(#[from] hyper::Error),
}

/// One connection to capsuled, made when it is needed and again when it has ended. Each client has its own: what one does
/// not read holds up nobody else.
#[derive(Debug)]
pub struct Upstream<B> {
    socket: Arc<PathBuf>,
    sender: Mutex<Option<SendRequest<B>>>,
}

impl<B> Upstream<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Not connected yet.
    pub fn new(socket: Arc<PathBuf>) -> Self {
        Self { socket, sender: Mutex::new(None) }
    }

    /// Passes a call on. One that capsuled has not seen because it ended just then is made again, once.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn call(&self, request: Request<B>) -> Result<Response<Incoming>, UpstreamError> {
        match self.sender().await?.try_send_request(request).await {
            Ok(answer) => Ok(answer),
            Err(mut error) => match error.take_message() {
                Some(unsent) => Ok(self.sender().await?.send_request(unsent).await?),
                None => Err(error.into_error().into()),
            },
        }
    }

    async fn sender(&self) -> Result<SendRequest<B>, UpstreamError> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_mut()
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(UnixStream::connect(self.socket.as_path()).await?);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection); // ends with the last sender, or with capsuled
        sender.ready().await?;
        *kept = Some(sender.clone());
        Ok(sender)
    }
}
