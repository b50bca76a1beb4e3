//! Rate limits for events that a client can provoke, or that would repeat with each request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::fields::{HEALTH, LEFT_OUT};
use super::rate::second;

/// Runs user code that chooses something for a unit of work; if it panics, the panic is caught and
/// the given fallback is used.
///
/// An event reports the panic, at most once a minute, because it may occur with each request.
pub(crate) fn caught<T>(what: &str, choose: impl FnOnce() -> T, instead: impl FnOnce() -> T) -> T {
    // Only state of the user can be left inconsistent by the panic, as with a reporter.
    catch_unwind(AssertUnwindSafe(choose)).unwrap_or_else(|_| {
        say_that_it_panicked(what);
        instead()
    })
}

#[cold]
fn say_that_it_panicked(what: &str) {
    static SAID: Seldom = Seldom::new();
    if let Some(left_out) = SAID.admit() {
        tracing::event!(
            target: HEALTH,
            tracing::Level::ERROR,
            { LEFT_OUT } = (left_out > 0).then_some(left_out),
            "{what} panicked; the default is used instead",
        );
    }
}

/// Admits one event a minute, and counts the others.
#[derive(Debug)]
pub(crate) struct Seldom {
    /// The second of the last event, plus one; 0 before the first.
    last: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    const PAUSE: u64 = 60;

    pub(crate) const fn new() -> Self {
        Self { last: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Decides whether the event may be emitted now; returns how many were dropped since the last
    /// one, or `None` if it is dropped.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(second().into())
    }

    fn admit_at(&self, second: u64) -> Option<u64> {
        let now = second.saturating_add(1);
        // The paused clock of another runtime may lag behind.
        let is_due = |last: u64| last == 0 || now.abs_diff(last) >= Self::PAUSE;
        if self.last.fetch_update(Relaxed, Relaxed, |last| is_due(last).then_some(now)).is_ok() {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_is_emitted_and_the_rest_is_counted() {
        let seldom = Seldom::new();
        let admitted = [0, 0, 59, 60, 61, 119, 200].map(|second| seldom.admit_at(second));
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, None, Some(2)]);
        assert_eq!(seldom.admit_at(100), Some(0), "of another clock");
    }
}
