//! One call: whether it may be made, what is written of it, and passing it on.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Frame, Incoming, SizeHint},
    header::{self, HeaderName, HeaderValue},
};
use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, metadata::MetadataMap, service::Routes};
use tower::ServiceExt as _;

use crate::{
    audit::{Entry, Peer},
    clients::Held,
    message::Peeked,
    rules::{self, Rule},
    upstream::{Upstream, UpstreamError},
};

/// How long the first message of a call may take.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// What is passed on of a call beside its path and its messages: what gRPC itself means by it.
const HEADERS: [HeaderName; 2] = [header::CONTENT_TYPE, header::TE];
const MORE_HEADERS: [&str; 5] =
    ["grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "traceparent", "tracestate"];

/// The calls of one connection.
#[derive(Debug)]
pub struct Calls {
    peer: Arc<Peer>,
    held: Held,
    upstream: Upstream<Peeked<Incoming>>,
    reflection: Routes,
}

impl Calls {
    /// Of a client whose connection is counted.
    pub fn new(
        peer: Arc<Peer>,
        held: Held,
        upstream: Upstream<Peeked<Incoming>>,
        reflection: Routes,
    ) -> Self {
        Self { peer, held, upstream, reflection }
    }

    /// Answers a call.
    ///
    /// # Errors
    /// None: a refusal is an answer.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        if !is_grpc(&request) {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Ok(answer);
        }
        let mut entry = Entry::new(self.peer.clone(), request.uri().path());
        Ok(match self.judge(request, &mut entry).await {
            Ok((rule, request)) => self.pass(rule, request, entry).await,
            Err(status) => {
                entry.refused(status.code(), status.message());
                status.into_http()
            }
        })
    }

    /// Whether the call may be made. The order is from what costs nothing to what costs most.
    async fn judge(
        &self,
        request: Request<Incoming>,
        entry: &mut Entry,
    ) -> Result<(&'static Rule, Request<Peeked<Incoming>>), Status> {
        let client = &self.peer.client;
        if client.not_after < SystemTime::now() {
            return Err(Status::unauthenticated("your certificate has ended meanwhile: get a new one"));
        }
        self.held.call(Instant::now()).map_err(|wait| self.too_many(wait))?;
        let rule = rules::rule(request.uri().path())
            .ok_or_else(|| Status::unimplemented("there is no such call for clients elsewhere"))?;
        let (parts, body) = request.into_parts();
        let (message, body) = match rule.object {
            None => (None, Peeked::unseen(body)),
            Some(object) => {
                let first = timeout(FIRST_MESSAGE, Peeked::first_of(body)).await;
                let first = first.map_err(|_| Status::deadline_exceeded("the call has sent no message"))?;
                let (message, body) = first.map_err(|error| Status::cancelled(error.to_string()))?;
                entry.about(message.as_deref().and_then(object).unwrap_or_default());
                (message, body)
            }
        };
        let least = rule.least(message.as_deref());
        if client.role < least {
            return Err(Status::permission_denied(format!(
                "{} is {}, and this call needs {least}: ask for a certificate with that role",
                client.name, client.role
            )));
        }
        if least > capsule_certificates::Role::Viewer || rule.follows {
            entry.begun();
        }
        Ok((rule, Request::from_parts(parts, body)))
    }

    /// A refusal that says when to come again, as gRPC's clients read it (google.rpc.RetryInfo).
    fn too_many(&self, wait: Duration) -> Status {
        let limits = self.held.limits();
        let wait = wait.max(Duration::from_millis(1));
        let message = format!(
            "more than {} calls a second, after {} at once: try again in {} ms",
            limits.per_second,
            limits.burst,
            wait.as_millis()
        );
        let status = capsule_proto::google::rpc::Status {
            code: Code::ResourceExhausted.into(),
            message: message.clone(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: RetryInfo { retry_delay: prost_types::Duration::try_from(wait).ok() }.encode_to_vec(),
            }],
        };
        let details = status.encode_to_vec();
        let mut metadata = HeaderMap::new();
        if let Ok(pushback) = HeaderValue::try_from(wait.as_millis().to_string()) {
            metadata.insert("grpc-retry-pushback-ms", pushback);
        }
        let metadata = MetadataMap::from_headers(metadata);
        Status::with_details_and_metadata(Code::ResourceExhausted, message, details.into(), metadata)
    }

    async fn pass(&self, rule: &Rule, request: Request<Peeked<Incoming>>, entry: Entry) -> Response<Body> {
        if rule.method == rules::REFLECTION {
            return match self.reflection.clone().oneshot(request).await {
                Ok(answer) => watched(answer, entry),
                Err(never) => match never {},
            };
        }
        match self.upstream.call(forwarded(rule.method, request)).await {
            Ok(answer) => watched(answer, entry),
            Err(error) => {
                let status = Status::unavailable(unavailable(&error));
                entry.refused(status.code(), status.message());
                status.into_http()
            }
        }
    }
}

fn unavailable(error: &UpstreamError) -> String {
    format!("capsuled does not answer on its node: {error}; see `systemctl status capsuled` there")
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.method() == Method::POST && kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The call as capsuled is asked: nothing that the client says beside it goes along.
fn forwarded<B>(method: &'static str, request: Request<B>) -> Request<B> {
    let (parts, body) = request.into_parts();
    let mut call = Request::new(body);
    *call.method_mut() = Method::POST;
    // Only paths that are written down are called: each is a URI.
    *call.uri_mut() = Uri::try_from(format!("http://capsuled{method}")).unwrap_or_default();
    let more = MORE_HEADERS.map(HeaderName::from_static);
    for name in HEADERS.iter().chain(&more) {
        if let Some(value) = parts.headers.get(name) {
            call.headers_mut().insert(name.clone(), value.clone());
        }
    }
    call
}

/// google.rpc.RetryInfo.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// An answer whose end is written down.
fn watched<B>(answer: Response<B>, entry: Entry) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let (parts, body) = answer.into_parts();
    // An answer that is nothing but an error has its status at its beginning (gRPC over HTTP/2, "Trailers-Only").
    let entry = match status(&parts.headers) {
        Some(code) => {
            entry.ended(code);
            None
        }
        None => Some(entry),
    };
    Response::from_parts(parts, Body::new(Watched { body: Some(body), entry }))
}

fn status(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// The messages of an answer, until its status.
struct Watched<B> {
    /// Gone after an error.
    body: Option<B>,
    entry: Option<Entry>,
}

impl<B> hyper::body::Body for Watched<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = match std::task::ready!(Pin::new(body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            // What breaks off has a status, too.
            Some(Err(error)) => {
                self.body = None;
                let lost = format!("capsuled went away during the call: {error}");
                let mut trailers = HeaderMap::new();
                _ = Status::unavailable(lost).add_header(&mut trailers); // text is always a header when it is escaped
                Frame::trailers(trailers)
            }
        };
        if let Some(trailers) = frame.trailers_ref()
            && let Some(entry) = self.entry.take()
        {
            entry.ended(status(trailers).unwrap_or(Code::Unknown));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}
