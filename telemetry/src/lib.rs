//! What programs tell of themselves: traces, and over [`http`] metrics and their health.
//!
//! Traces: how they go from program to program, and where they are exported to.
//!
//! A call's context travels as W3C Trace Context (`traceparent`, `tracestate`) in the metadata of gRPC and ttrpc. Spans are exported by OTLP over gRPC
//! (OpenTelemetry Protocol 1.x), to the endpoint that a program is given. Without one there is no thread and no memory for any of
//! this: spans of [`TARGET`] are then not even made.

mod carrier;
mod endpoint;
mod export;
pub mod http;

pub use carrier::{PARENT, STATE, carried_by, carry};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use export::{Exporter, ExporterError, Service};

/// The target of all spans (`tracing::info_span!(target: TARGET, ...)`): what tells them from those that are for logs.
pub const TARGET: &str = "capsule::trace";

/// A context without a span: whatever begins in it begins a trace.
#[must_use]
pub fn no_parent() -> opentelemetry::Context {
    opentelemetry::Context::new()
}

/// Whether `context` has a caller's span in it.
#[must_use]
pub fn has_parent(context: &opentelemetry::Context) -> bool {
    use opentelemetry::trace::TraceContextExt as _;
    context.span().span_context().is_valid()
}
