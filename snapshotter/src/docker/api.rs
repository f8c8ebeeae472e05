//! The one question that dockerd is asked: `GET /containers/json` (Docker's Engine API).

use std::{io, path::Path, pin::pin};

use futures::future::{Either, select};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::Names;

/// Of all containers, stopped ones too. The version is one that Docker 25 (January 2024) and all later ones know; without one, the
/// API is deprecated.
const QUESTION: &str = "/v1.44/containers/json?all=1";
/// More than ten thousand containers take.
const ANSWER_MAX: usize = 64 << 20;
/// How much of a refusal is told.
const REFUSAL_MAX: usize = 4 << 10;

/// Why dockerd gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("{0}")]
    Connect(#[source] io::Error),
    /// The connection, or what came over it, is not what HTTP makes of it.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// What came is too long, or ended early.
    #[error("its answer cannot be read: {0}")]
    Body(String),
    /// It refused.
    #[error("it answers {status}: {message}")]
    Refused {
        /// HTTP's status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// The answer is none to the question.
    #[error("its answer is none: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A container as dockerd lists it, without what nobody needs here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    /// Each with a `/` before it; those with another one are what linked containers call it.
    names: Option<Vec<String>>,
}

/// What it says of an error.
#[derive(Debug, Deserialize)]
struct Refusal {
    message: String,
}

/// What the dockerd that listens on a socket calls its containers.
///
/// # Errors
/// When it does not answer, or with something else. It has all the time that it wants: the caller has to end this.
pub async fn names(socket: &Path) -> Result<Names, ApiError> {
    let stream = UnixStream::connect(socket).await.map_err(ApiError::Connect)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = match select(pin!(ask(sender)), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // It has all there is by then, or says that there is none.
        Either::Right((_, asking)) => asking.await,
    };
    parse(&asked?)
}

async fn ask(mut sender: SendRequest<Empty<Bytes>>) -> Result<Bytes, ApiError> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = hyper::Uri::from_static(QUESTION);
    request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("docker"));
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    if status == StatusCode::OK {
        return read(answer.into_body(), ANSWER_MAX).await;
    }
    let said = read(answer.into_body(), REFUSAL_MAX).await.unwrap_or_default();
    let message = serde_json::from_slice(&said).map_or_else(
        |_| String::from_utf8_lossy(&said).trim().to_owned(),
        |refusal: Refusal| refusal.message.trim().to_owned(),
    );
    Err(ApiError::Refused { status, message })
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, ApiError> {
    let read = Limited::new(body, limit).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| ApiError::Body(error.to_string()))
}

/// The names by the ids. What is no name of Docker's is none.
pub(super) fn parse(answer: &[u8]) -> Result<Names, ApiError> {
    let all: Vec<Listed> = serde_json::from_slice(answer)?;
    let named = |listed: Listed| {
        let own = |name: &String| name.strip_prefix('/').filter(|name| is_name(name)).map(str::to_owned);
        let name = listed.names?.iter().find_map(own)?;
        Some((listed.id, name))
    };
    Ok(all.into_iter().filter_map(named).collect())
}

/// Docker's rule (`daemon/names/names.go`): a letter or digit, then such, `_`, `.` or `-`.
fn is_name(name: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && name.bytes().all(rest)
}
