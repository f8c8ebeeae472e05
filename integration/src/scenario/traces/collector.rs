//! A collector of traces: what it is sent, it keeps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as Told, status::StatusCode};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// A span, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of whose it is.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Hexadecimal.
    pub trace: String,
    /// Hexadecimal.
    pub id: String,
    /// Hexadecimal; empty for none.
    pub parent: String,
    /// Nanoseconds since 1970.
    pub time: (u64, u64),
    /// Its status says so, with what.
    pub failed: Option<String>,
}

/// A collector that listens on a Unix socket until it is dropped.
pub struct Collector {
    spans: Spans,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

type Spans = Arc<Mutex<Vec<Span>>>;

impl Collector {
    /// Listens on `path`.
    pub fn start(path: &Path) -> Result<Self> {
        if path.exists() {
            fs::remove_file(path).context("remove the socket of before")?;
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?
        };
        let spans = Spans::default();
        let service = TraceServiceServer::new(Keeper(Arc::clone(&spans)));
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let server = tonic::transport::Server::builder().add_service(service);
            let until = async move { _ = ended.await };
            let served = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until);
            // Who waits for spans finds that none come.
            _ = runtime.block_on(served);
        });
        Ok(Self { spans, thread: Some((end, thread)) })
    }

    /// All spans of this trace, by `service: name`. Of several of one name, the last.
    pub fn of(&self, trace: &str) -> BTreeMap<String, Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let of = spans.iter().filter(|span| span.trace == trace);
        of.map(|span| (format!("{}: {}", span.service, span.name), span.clone())).collect()
    }

    /// How many there are of all traces.
    pub fn count(&self) -> usize {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends it, and waits until nobody listens.
    pub fn end(mut self) -> Result<()> {
        let (end, thread) = self.thread.take().context("it has ended")?;
        ensure!(end.send(()).is_ok(), "it has ended by itself");
        thread.join().map_err(|_| anyhow!("its thread"))
    }
}

struct Keeper(Spans);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(request.into_inner().resource_spans.into_iter().flat_map(spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn spans(told: ResourceSpans) -> Vec<Span> {
    let attributes = told.resource.map(|resource| resource.attributes).unwrap_or_default();
    let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
    let service = match name.and_then(|name| name.value).and_then(|value| value.value) {
        Some(Value::StringValue(service)) => service,
        _ => String::new(),
    };
    let all = told.scope_spans.into_iter().flat_map(|scope| scope.spans);
    all.map(|told| span(&service, told)).collect()
}

fn span(service: &str, told: Told) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let failed = told.status.filter(|status| status.code == StatusCode::Error as i32);
    Span {
        service: service.to_owned(),
        trace: hex(&told.trace_id),
        id: hex(&told.span_id),
        parent: hex(&told.parent_span_id),
        time: (told.start_time_unix_nano, told.end_time_unix_nano),
        failed: failed.map(|status| status.message),
        name: told.name,
    }
}
