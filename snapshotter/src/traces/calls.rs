//! A span for each gRPC call.

use capsule_telemetry::{TARGET, carried_by, has_parent};
use tonic::Code;
use tonic::codegen::http::Request;
use tracing::{Level, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The package whose calls begin a trace where the caller has none. containerd's own calls, which are many, do not.
const OWN: &str = "capsule.v1.";

/// The span of a call until its answer begins; none where nothing is exported.
pub(crate) fn of_call<Q>(request: &Request<Q>) -> Span {
    if !tracing::span_enabled!(target: TARGET, Level::INFO) {
        return Span::none();
    }
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

/// Tells the span that a call is in how it was answered.
pub(crate) fn answered(code: Code) {
    let span = Span::current();
    span.record("rpc.grpc.status_code", code as i32);
    if code != Code::Ok {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", code.description());
    }
}
