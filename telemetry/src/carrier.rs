//! A context in the metadata of a call (W3C Trace Context, level 1).

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;

/// The key of the caller's span: `00-TRACE-SPAN-FLAGS`.
pub const PARENT: &str = "traceparent";
/// The key of what tracing systems say about themselves.
pub const STATE: &str = "tracestate";

/// The context that metadata carries, of which `get` gives values by key. What is malformed is none, as the specification demands.
pub fn carried_by<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Context {
    struct Got<'a>([(&'static str, Option<&'a str>); 2]);
    impl Extractor for Got<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.iter().find(|(name, _)| *name == key)?.1
        }

        fn keys(&self) -> Vec<&str> {
            self.0.iter().map(|(name, _)| *name).collect()
        }
    }
    let got = Got([PARENT, STATE].map(|key| (key, get(key))));
    TraceContextPropagator::new().extract_with_context(&Context::new(), &got)
}

/// Gives `set` the keys and values that carry `context`; nothing where it has no span.
pub fn carry(context: &Context, set: impl FnMut(&str, String)) {
    struct Set<F>(F);
    impl<F: FnMut(&str, String)> Injector for Set<F> {
        fn set(&mut self, key: &str, value: String) {
            // An empty state says nothing.
            if !value.is_empty() {
                (self.0)(key, value);
            }
        }
    }
    TraceContextPropagator::new().inject_context(context, &mut Set(set));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::has_parent;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn carried(parent: &'static str) -> Context {
        carried_by(|key| (key == PARENT).then_some(parent))
    }

    #[test]
    fn what_comes_in_goes_out() {
        let mut out = Vec::new();
        carry(&carried(CALLER), |key, value| out.push((key.to_owned(), value)));
        assert_eq!(out, [(PARENT.to_owned(), CALLER.to_owned())]);
    }

    #[test]
    fn what_is_malformed_is_none() {
        for parent in [
            "",
            "00",
            "x",
            "00-0-0-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            &CALLER[..20],
        ] {
            assert!(!has_parent(&carried(parent)), "{parent}");
        }
        let mut out = 0;
        carry(&Context::new(), |_, _| out += 1);
        assert_eq!(out, 0);
    }
}
