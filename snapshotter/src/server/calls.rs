//! One layer around all services, for what is told of each gRPC call: that it is under way, how it was answered, its span.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http_body::{Body, Frame, SizeHint};
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{Activity, Call};
use crate::{metrics::Meters, traces};

/// Who is told; puts [`Told`] around a service.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// Of each call until its answer has been sent, or its caller has left.
    pub activity: Activity,
    /// Of each call when its answer begins, and when it has ended. One whose caller goes away before it begins is not counted.
    pub meters: Meters,
}

impl<S> Layer<S> for Telling {
    type Service = Told<S>;

    fn layer(&self, inner: S) -> Told<S> {
        Told { inner, telling: self.clone() }
    }
}

/// A service whose calls are told of.
#[derive(Clone, Debug)]
pub(super) struct Told<S> {
    inner: S,
    telling: Telling,
}

impl<S, Q, A> Service<Request<Q>> for Told<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Send + 'static,
{
    type Response = Response<Answer<A>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (method, began) = (request.uri().path().trim_start_matches('/').to_owned(), Instant::now());
        let (call, meters) = (self.telling.activity.begin(), self.telling.meters.clone());
        let span = traces::of_call(&request);
        let answer = span.in_scope(|| self.inner.call(request));
        let told = async move {
            let answer = answer.await?;
            let code = code(answer.headers());
            traces::answered(code.unwrap_or(Code::Ok));
            // Names that nobody serves are the caller's, any number of them, and not counted.
            let is_served = code != Some(Code::Unimplemented);
            if is_served {
                meters.answered(&method, began);
            }
            let counting = is_served.then(|| Counting { meters, method, code });
            Ok(answer.map(|body| Answer { body, counting, _call: call }))
        };
        Box::pin(told.instrument(span))
    }
}

/// Only an answer that is nothing but an error has its status at its beginning (gRPC over HTTP/2, "Trailers-Only").
fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// Counts a call when its answer has ended.
#[derive(Debug)]
struct Counting {
    meters: Meters,
    method: String,
    /// None until it is known: whoever goes away before has cancelled it.
    code: Option<Code>,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.meters.ended(&self.method, self.code.unwrap_or(Code::Cancelled));
    }
}

/// What is answered, and the call.
#[derive(Debug)]
pub(super) struct Answer<B> {
    body: B,
    counting: Option<Counting>,
    _call: Call,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(counting)) = (&frame, &mut self.counting) {
            counting.code = frame.trailers_ref().and_then(code).or(counting.code);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
