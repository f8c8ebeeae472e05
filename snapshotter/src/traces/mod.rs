//! Traces: a span for each call and each of its steps, and those of the shims, which export none themselves.
//!
//! | span | of | parent |
//! | --- | --- | --- |
//! | `capsule.v1.Attachments/Attach`, ... | capsuled, kind `server` | the caller's, if it sends a `traceparent` |
//! | `plan`, `prepare`, `intend`, `shim`, `keep`, `record` | capsuled | the call |
//! | `capsule.hotplug.v1.Hotplug/Attach`, ... | the shim, kind `server` | `shim` |
//! | `look`, `limits`, `devices`, `build`, `journal`, `mount`, `unmount`, `users` | the shim | its call |

mod calls;
mod shims;

use capsule_telemetry::{Exporter, ExporterError, Service, TARGET};
use opentelemetry::trace::TracerProvider as _;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

pub(crate) use calls::{answered, of_call};
pub(crate) use shims::{context, relay};

use crate::config;

/// Starts exporting, where the configuration names a collector; nothing else happens where it names none.
///
/// # Errors
/// [`ExporterError`]. That the collector does not answer is no error: it is logged when spans are lost.
pub fn start(config: &config::Traces) -> Result<Option<Exporter>, ExporterError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let lost = |what: &str| tracing::warn!("traces: {what}");
    Exporter::start(endpoint, lost).map(Some)
}

/// What makes spans of [`TARGET`] ones of `exporter`.
///
/// # Errors
/// [`ExporterError::Build`].
pub fn layer<S>(
    exporter: &mut Exporter,
    config: &config::Traces,
) -> Result<impl Layer<S> + use<S>, ExporterError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let share = f64::from(config.percent) / 100.0;
    let version = env!("CARGO_PKG_VERSION");
    let own = exporter.provider(Service { name: "capsuled", version }, share)?;
    // They are always a part of a call of capsuled's, and exported as that is.
    let shim = exporter.provider(Service { name: "containerd-shim-capsule-v1", version }, share)?;
    shims::relay_by(shim.tracer("containerd-shim-capsule-v1"));
    let layer = tracing_opentelemetry::layer().with_tracer(own.tracer("capsuled"));
    // The code's own file and line, thread and target say nothing to who reads a trace.
    let layer =
        layer.with_location(false).with_threads(false).with_target(false).with_tracked_inactivity(false);
    Ok(layer.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO)))
}
