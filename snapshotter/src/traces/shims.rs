//! What a call takes along to a shim, and the spans that come back: a shim has no connection to a collector, and no memory for one.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use capsule_proto::hotplug::Span as Told;
use capsule_telemetry::{PARENT, carry};
use opentelemetry::{
    Context,
    trace::{Span as _, SpanBuilder, SpanKind, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

static SHIM: OnceLock<SdkTracer> = OnceLock::new();

/// Shims' spans are `tracer`'s from now on: once in a process.
pub(super) fn relay_by(tracer: SdkTracer) {
    _ = SHIM.set(tracer); // a second one exports to the same collector
}

/// The context of a call to a shim that may take `limit`, with the span that is current.
pub(crate) fn context(limit: Duration) -> ttrpc::context::Context {
    let mut context = ttrpc::context::with_duration(limit);
    if SHIM.get().is_some() {
        carry(&Span::current().context(), |key, value| {
            // A shim asks whether it is to measure; what tracing systems say about themselves is not for it.
            if key == PARENT {
                context.set(key.to_owned(), vec![value]);
            }
        });
    }
    context
}

/// Exports what a shim has measured of a call: the first is the call itself, the others are its parts.
pub(crate) fn relay(told: &[Told]) {
    if let (Some(tracer), Some((call, parts))) = (SHIM.get(), told.split_first()) {
        relay_in(tracer, &Span::current().context(), call, parts);
    }
}

fn relay_in(tracer: &SdkTracer, parent: &Context, call: &Told, parts: &[Told]) {
    let span = build(tracer, call, SpanKind::Server, parent);
    let within = parent.with_span(span);
    for part in parts {
        build(tracer, part, SpanKind::Internal, &within).end_with_timestamp(at(part.ended));
    }
    within.span().end_with_timestamp(at(call.ended));
}

fn build(
    tracer: &SdkTracer,
    told: &Told,
    kind: SpanKind,
    parent: &Context,
) -> opentelemetry_sdk::trace::Span {
    let builder = SpanBuilder::from_name(told.name.clone()).with_kind(kind).with_start_time(at(told.began));
    tracer.build_with_context(builder, parent)
}

fn at(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use capsule_telemetry::carried_by;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn told(name: &str, began: u64, ended: u64) -> Told {
        Told { name: name.to_owned(), began, ended, ..Told::default() }
    }

    #[test]
    fn parts_are_the_calls_and_the_call_is_the_callers() {
        let kept = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let parent = carried_by(|key| (key == PARENT).then_some(CALLER));
        let parts = [told("build", 11, 15), told("mount", 15, 19)];
        relay_in(
            &provider.tracer("shim"),
            &parent,
            &told("capsule.hotplug.v1.Hotplug/Attach", 10, 20),
            &parts,
        );
        let spans = kept.get_finished_spans().unwrap();
        let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let call = find("capsule.hotplug.v1.Hotplug/Attach");
        assert_eq!(call.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!((call.start_time, call.end_time), (at(10), at(20)));
        for (name, ended) in [("build", 15), ("mount", 19)] {
            let part = find(name);
            assert_eq!(part.parent_span_id, call.span_context.span_id());
            assert_eq!(part.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(part.end_time, at(ended));
        }
        assert_eq!(spans.len(), 3);
    }
}
