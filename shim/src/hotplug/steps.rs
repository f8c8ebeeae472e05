//! How long the parts of a call took, for the traces that capsuled exports.
//!
//! A call runs on one thread from its beginning to its end, so what is measured lies beside that thread. Nothing is measured unless it is asked for.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use capsule_proto::hotplug::Span;

/// Most parts of one call that are told: a set of many mounts has more.
const MOST: usize = 64;

thread_local! {
    static PARTS: RefCell<Option<Vec<Span>>> = const { RefCell::new(None) };
}

/// Whether the value of a `traceparent` says that the trace is sampled: the lowest bit of its last field (W3C Trace Context, 3.2.2.5).
#[must_use]
pub fn is_sampled(parent: &str) -> bool {
    let flags = parent.rsplit('-').next().and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & 1 == 1)
}

/// Runs `call`, and returns with its result how long it and its parts took, itself first.
pub fn measured<T>(name: &str, call: impl FnOnce() -> T) -> (T, Vec<Span>) {
    PARTS.with_borrow_mut(|parts| *parts = Some(Vec::new()));
    let began = now();
    let done = call();
    let whole = Span { name: name.to_owned(), began, ended: now(), ..Span::default() };
    let parts = PARTS.take().unwrap_or_default();
    (done, std::iter::once(whole).chain(parts).collect())
}

/// Runs a part of a call.
pub fn step<T>(name: &'static str, what: impl FnOnce() -> T) -> T {
    if PARTS.with_borrow(Option::is_none) {
        return what();
    }
    let began = now();
    let done = what();
    let ended = now();
    PARTS.with_borrow_mut(|parts| {
        if let Some(parts) = parts.as_mut().filter(|parts| parts.len() < MOST) {
            parts.push(Span { name: name.to_owned(), began, ended, ..Span::default() });
        }
    });
    done
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_what_is_measured_and_of_nothing_else() {
        assert_eq!(step("before", || 1), 1);
        let (done, spans) = measured("call", || step("one", || 1) + step("two", || 2));
        step("after", || ());
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!((done, names), (3, vec!["call", "one", "two"]));
        assert!(spans[1].ended <= spans[2].began && spans[2].ended <= spans[0].ended);
        let (_, spans) = measured("call", || (0..100).for_each(|_| step("many", || ())));
        assert_eq!(spans.len(), MOST + 1);
    }

    #[test]
    fn only_what_is_sampled() {
        assert!(is_sampled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for parent in ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "", "01", "-", "x-zz"] {
            assert_eq!(is_sampled(parent), parent == "01", "{parent}");
        }
    }
}
