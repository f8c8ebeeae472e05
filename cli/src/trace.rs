//! A span for the command itself, and its context for the calls that it makes.
//!
//! | variable | means |
//! | --- | --- |
//! | `TRACEPARENT` | the trace that the command is a part of, as W3C Trace Context has it; what is malformed is none |
//! | `CAPSULE_TRACES` | the collector to which the command's own span goes (OTLP over gRPC): `http://HOST:PORT` or `unix:/PATH` |
//!
//! Without either, nothing is made and nothing sent. A collector that does not answer fails no command.

use std::env;
use std::ffi::OsString;

use capsule_telemetry::{Exporter, PARENT, Service, carried_by, carry};
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;

use crate::error::Error;

const COLLECTOR: &str = "CAPSULE_TRACES";
const CALLER: &str = "TRACEPARENT";

/// The command's trace.
pub struct Trace {
    context: Context,
    exporter: Option<Exporter>,
}

impl Trace {
    /// Begins it for the command of this name.
    ///
    /// # Errors
    /// [`Error::Usage`] for a collector that is none; [`Error::Traces`].
    pub fn begin(command: &str) -> Result<Self, Error> {
        let caller = text_of(env::var_os(CALLER));
        let parent = carried_by(|key| caller.as_deref().filter(|_| key == PARENT));
        let Some(collector) = text_of(env::var_os(COLLECTOR)) else {
            return Ok(Self { context: parent, exporter: None });
        };
        let endpoint = collector.parse().map_err(|error| Error::Usage(format!("{COLLECTOR}: {error}")))?;
        let mut exporter = Exporter::start(&endpoint, |_: &str| {}).map_err(Error::Traces)?;
        let service = Service { name: "capsulectl", version: env!("CARGO_PKG_VERSION") };
        let provider = exporter.provider(service, 1.0).map_err(Error::Traces)?;
        let span = SpanBuilder::from_name(format!("capsulectl {command}")).with_kind(SpanKind::Client);
        let span = provider.tracer("capsulectl").build_with_context(span, &parent);
        Ok(Self { context: parent.with_span(span), exporter: Some(exporter) })
    }

    /// Of a command that calls nobody.
    pub fn none() -> Self {
        Self { context: Context::new(), exporter: None }
    }

    /// What calls take along.
    pub fn caller(&self) -> Caller {
        let mut caller = Caller::default();
        carry(&self.context, |key, value| {
            if key == PARENT {
                caller.0 = value.parse().ok();
            }
        });
        caller
    }

    /// Ends it as the command has ended.
    pub fn end(self, outcome: &Result<(), Error>) {
        let Some(exporter) = self.exporter else { return };
        let span = self.context.span();
        if let Err(error) = outcome {
            span.set_attribute(KeyValue::new("process.exit.code", i64::from(error.exit_code())));
            span.set_status(Status::error(error.line()));
        }
        span.end();
        exporter.end();
    }
}

/// Not empty, and UTF-8.
fn text_of(value: Option<OsString>) -> Option<String> {
    value?.into_string().ok().filter(|text| !text.is_empty())
}

/// Puts the trace into each call's metadata.
#[derive(Debug, Clone, Default)]
pub struct Caller(Option<MetadataValue<Ascii>>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(parent) = &self.0 {
            request.metadata_mut().insert(PARENT, parent.clone());
        }
        Ok(request)
    }
}
