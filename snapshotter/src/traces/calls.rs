//! A span for each gRPC call: a layer around all services.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use capsule_telemetry::{TARGET, carried_by, has_parent};
use tonic::Code;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The package whose calls begin a trace where the caller has none. containerd's own calls, which are many, do not.
const OWN: &str = "capsule.v1.";

/// Puts [`Traced`] around a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracedLayer;

impl<S> Layer<S> for TracedLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// Has a span around each call until its answer begins.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
}

impl<S, Q, A> Service<Request<Q>> for Traced<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let span = span(&request);
        let answer = span.in_scope(|| self.inner.call(request));
        let traced = async move {
            let answer = answer.await?;
            // As in the metrics: an answer that is nothing but an error has its status at its beginning.
            let status = answer.headers().get("grpc-status");
            let code = status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
            let span = Span::current();
            span.record("rpc.grpc.status_code", code as i32);
            if code != Code::Ok {
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", code.description());
            }
            Ok(answer)
        };
        Box::pin(traced.instrument(span))
    }
}

/// None where nothing is exported.
fn span<Q>(request: &Request<Q>) -> Span {
    let path = request.uri().path().trim_start_matches('/');
    let parent = carried_by(|key| request.headers().get(key)?.to_str().ok());
    if !path.starts_with(OWN) && !has_parent(&parent) {
        return Span::none();
    }
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = path,
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
    );
    // It fails where nothing is exported, and there it does not matter.
    _ = span.set_parent(parent);
    span
}
