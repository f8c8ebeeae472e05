//! Exporting spans: a thread with a connection, and a provider of spans for each program whose they are.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint as Grpc, Uri};

use crate::Endpoint;

/// How long a collector may take for one batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of a program may wait for its last spans.
const ENDING: Duration = Duration::from_secs(2);
/// What fails again within it is not told again.
const SILENCE: Duration = Duration::from_secs(60);

/// A program whose spans are exported.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// `service.name`.
    pub name: &'static str,
    /// `service.version`.
    pub version: &'static str,
}

/// Why spans cannot be exported. That nobody listens is no reason: a collector may come later.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Without a thread.
    #[error("start a thread for traces")]
    Thread(#[source] io::Error),
    /// Without an exporter.
    #[error("export traces")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// What exports. Spans that have ended when [`Exporter::end`] is called are exported, within two seconds.
#[derive(Debug)]
pub struct Exporter {
    channel: Channel,
    tell: Tell,
    node: String,
    providers: Vec<SdkTracerProvider>,
    thread: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Exporter {
    /// To `endpoint`. What cannot be exported is lost, and `tell` is told why, once a minute at most.
    ///
    /// # Errors
    /// [`ExporterError::Thread`].
    pub fn start(
        endpoint: &Endpoint,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self, ExporterError> {
        // A connection of tonic's lives on a runtime; the one of the program may be gone before the last span is.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ExporterError::Thread)?;
        let (ended, end) = oneshot::channel();
        let (made, channel): (SyncSender<Channel>, _) = mpsc::sync_channel(1);
        let to = endpoint.clone();
        let serve = move || {
            runtime.block_on(async {
                _ = made.send(connect(&to)); // who asked waits for it
                _ = end.await; // an exporter that is dropped ends it too
            });
        };
        let thread = std::thread::Builder::new().name("traces".to_owned()).spawn(serve);
        let thread = thread.map_err(ExporterError::Thread)?;
        let channel = channel.recv().map_err(|_| ExporterError::Thread(io::Error::other("it ended")))?;
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let tell = Tell { to: Arc::new(tell), last: Arc::default() };
        Ok(Self { channel, tell, node, providers: Vec::new(), thread: Some((ended, thread)) })
    }

    /// A provider of spans of `service`. Of the traces that begin there, `share` (0 to 1) are exported; those that a caller began, as
    /// the caller decided.
    ///
    /// # Errors
    /// [`ExporterError::Build`].
    pub fn provider(&mut self, service: Service, share: f64) -> Result<SdkTracerProvider, ExporterError> {
        let otlp = Otlp::builder().with_tonic().with_channel(self.channel.clone()).with_timeout(PATIENCE);
        let exporter = Told { inner: otlp.build()?, tell: self.tell.clone() };
        let resource = Resource::builder().with_service_name(service.name).with_attributes([
            KeyValue::new("service.version", service.version),
            KeyValue::new("host.name", self.node.clone()),
        ]);
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource.build())
            .build();
        self.providers.push(provider.clone());
        Ok(provider)
    }

    /// Makes `provider` the one whose spans all of the program are.
    pub fn set_global(provider: &SdkTracerProvider) {
        global::set_tracer_provider(provider.clone());
    }

    /// Exports what has ended, and ends.
    pub fn end(mut self) {
        for provider in self.providers.drain(..) {
            // What fails has been told by the exporter.
            _ = provider.shutdown_with_timeout(ENDING);
        }
        if let Some((ended, thread)) = self.thread.take() {
            drop(ended);
            _ = thread.join(); // it has no result
        }
    }
}

/// When the first span is exported.
fn connect(to: &Endpoint) -> Channel {
    match to {
        Endpoint::Http(uri) => Grpc::from(uri.clone()).connect_timeout(PATIENCE).connect_lazy(),
        Endpoint::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
            });
            Grpc::from_static("http://collector").connect_with_connector_lazy(connector)
        }
    }
}

#[derive(Clone)]
struct Tell {
    to: Arc<dyn Fn(&str) + Send + Sync>,
    last: Arc<Mutex<Option<Instant>>>,
}

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tell")
    }
}

impl Tell {
    fn tell(&self, what: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= SILENCE) {
            *last = Some(Instant::now());
            (self.to)(what);
        }
    }
}

/// An exporter whose failures are told.
#[derive(Debug)]
struct Told {
    inner: Otlp,
    tell: Tell,
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let done = self.inner.export(batch).await;
        if let Err(error) = &done {
            self.tell.tell(&format!("{spans} spans are lost: {error}"));
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
