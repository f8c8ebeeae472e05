//! What is counted as it happens.

use std::{fmt, sync::Arc, time::Instant};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tonic::Code;

use super::present::Present;

/// Upper bounds of the classes of durations: from half a millisecond to 16 seconds, each twice the one before.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfStep {
    step: Step,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTransfer {
    transfer: Transfer,
}

/// How versions get from node to node.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Transfer {
    /// From a registry.
    Pull,
    /// To a registry.
    Push,
    /// To an archive.
    Save,
    /// From an archive.
    Load,
}

impl EncodeLabelValue for Transfer {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Save => "save",
            Self::Load => "load",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// A step of a call that changes attachments.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Step {
    /// Which versions, and where they go.
    Plan,
    /// Their directories are held, and their devices and limits looked up.
    Prepare,
    /// What is to be done is written down.
    Intend,
    /// The shim does it.
    Shim,
    /// The shim takes it away.
    Unmount,
    /// It is made durable, beside the shim's work.
    Keep,
    /// That it is done is written down.
    Record,
}

impl Step {
    /// As in the metrics and the traces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Intend => "intend",
            Self::Shim => "shim",
            Self::Unmount => "unmount",
            Self::Keep => "keep",
            Self::Record => "record",
        }
    }
}

impl EncodeLabelValue for Step {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// The meters: cheap to clone, shared.
#[derive(Clone)]
pub struct Meters {
    registry: Arc<Registry>,
    calls: Family<Call, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    steps: Family<OfStep, Histogram, fn() -> Histogram>,
    moved: Family<OfTransfer, Counter>,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Default for Meters {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("capsuled");
        let calls = Family::default();
        let seconds = Family::new_with_constructor(durations as fn() -> Histogram);
        let steps = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register("calls", "gRPC calls that have ended, by method and status", calls.clone());
        let help = "How long gRPC calls took until their answer began";
        registry.register("call_duration_seconds", help, seconds.clone());
        let help = "How long steps of attach, upgrade, rollback and detach took";
        registry.register("attach_step_duration_seconds", help, steps.clone());
        let moved = Family::default();
        let help = "What came from, and went to, registries and archives";
        registry.register_with_unit("transfer", help, Unit::Bytes, moved.clone());
        Self { registry: Arc::new(registry), calls, seconds, steps, moved }
    }
}

/// Measures a step until it is dropped.
#[derive(Debug)]
pub struct Timer {
    began: Instant,
    histogram: Histogram,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histogram.observe(self.began.elapsed().as_secs_f64());
    }
}

impl Meters {
    /// Measures a step.
    pub fn step(&self, step: Step) -> Timer {
        Timer { began: Instant::now(), histogram: self.steps.get_or_create(&OfStep { step }).clone() }
    }

    /// What counts a transfer's bytes.
    pub fn moved(&self, transfer: Transfer) -> Counter {
        self.moved.get_or_create(&OfTransfer { transfer }).clone()
    }

    /// Measures a call that began then, and whose answer begins now.
    pub(crate) fn answered(&self, method: &str, began: Instant) {
        let seconds = self.seconds.get_or_create(&Method { method: method.to_owned() });
        seconds.observe(began.elapsed().as_secs_f64());
    }

    /// Counts a call whose answer has ended.
    pub(crate) fn ended(&self, method: &str, code: Code) {
        let code = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
        self.calls.get_or_create(&Call { method: method.to_owned(), code }).inc();
    }

    /// All of it, with how things are now, as OpenMetrics 1.0.
    ///
    /// # Errors
    /// None that a `String` has.
    pub fn text(&self, present: Present) -> Result<String, fmt::Error> {
        let mut now = Registry::default();
        now.register_collector(Box::new(present));
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &now)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let meters = Meters::default();
        for code in [Code::Ok, Code::NotFound] {
            meters.answered("capsule.v1.Attachments/Attach", Instant::now());
            meters.ended("capsule.v1.Attachments/Attach", code);
        }
        meters.moved(Transfer::Pull).inc_by(7);
        drop(meters.step(Step::Shim));
        let text = meters.text(Present::default()).unwrap();
        for line in [
            "capsuled_calls_total{method=\"capsule.v1.Attachments/Attach\",code=\"NotFound\"} 1",
            "capsuled_call_duration_seconds_count{method=\"capsule.v1.Attachments/Attach\"} 2",
            "capsuled_attach_step_duration_seconds_bucket{le=\"0.0005\",step=\"shim\"} 1",
            "capsuled_transfer_bytes_total{transfer=\"pull\"} 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
    }
}
