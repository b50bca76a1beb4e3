//! How many violations are said: a storm of them must not become a flood of events.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Name;
use crate::key::TextHash;
use crate::resource::Resource;
use crate::time::Instant;
use crate::violation::Severity;

/// Limits how many violation events are emitted in a second, for each name of work, resource and severity;
/// 10 unless set, for the whole process.
///
/// A service in trouble violates its budgets thousands of times a second, and would drown in its own log.
/// What goes beyond the limit is left out, and counted: the next event of its kind says how many, as
/// [`left_out`](super::fields::LEFT_OUT). A [`Reporter`](super::Reporter) is told of every violation, and
/// every [`Report`](super::Report) and usage event counts it.
///
/// With `u32::MAX` all are said. With 0 none is.
///
/// # Examples
///
/// ```
/// request_budget::report::limit_events(1);
/// ```
pub fn limit_events(per_second: u32) {
    MOST.store(per_second, Relaxed);
}

static MOST: AtomicU32 = AtomicU32::new(10);

/// Whether a violation may be said now, and how many of its kind were not said since the last one that was.
pub(super) fn admit(name: &Name, resource: Resource, severity: Severity) -> Option<u64> {
    let mut hash = TextHash::new();
    // Writing to a hasher cannot fail.
    let _ = write!(hash, "{name} {resource} {severity:?}");
    RATES.admit(hash.finish().max(1), second(), MOST.load(Relaxed))
}

/// The current second, by the clock of the runtime; all that counts is whether it is the same one.
pub(super) fn second() -> u32 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let now = Instant::now();
    let origin = *ORIGIN.get_or_init(|| now);
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    match now.checked_duration_since(origin) {
        Some(since) => seconds(since),
        // The origin was taken in another runtime, whose paused clock was moved.
        None => u32::MAX.saturating_sub(seconds(origin.saturating_duration_since(now))),
    }
}

static RATES: Rates = Rates::new();

/// One rate a kind of violation, in a table of a fixed size.
///
/// Kinds that find no place of their own share one with others, and are said less often for it.
struct Rates {
    places: [Rate; Self::PLACES],
}

struct Rate {
    /// The kind of violation; 0 while the place is free.
    kind: AtomicU64,
    /// In one word a second, and how many were said in it.
    said: AtomicU64,
    left_out: AtomicU64,
}

impl Rates {
    /// A power of two.
    const PLACES: usize = 512;
    const PROBES: usize = 8;

    const fn new() -> Self {
        Self { places: [const { Rate::new() }; Self::PLACES] }
    }

    fn admit(&self, kind: u64, second: u32, most: u32) -> Option<u64> {
        let rate = self.rate(kind);
        let one_more = |said: u64| {
            let so_far =
                if said >> 32 == u64::from(second) { said & u64::from(u32::MAX) } else { 0 };
            let may_be_said = so_far < u64::from(most);
            may_be_said.then(|| u64::from(second) << 32 | so_far.saturating_add(1))
        };
        if rate.said.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
            return Some(rate.left_out.swap(0, Relaxed));
        }
        rate.left_out.fetch_add(1, Relaxed);
        None
    }

    /// The place of this kind, taken now if need be.
    fn rate(&self, kind: u64) -> &Rate {
        let mask = Self::PLACES.wrapping_sub(1) as u64;
        let first = usize::try_from(kind & mask).unwrap_or(0);
        let mut places = self.places.iter().cycle().skip(first).take(Self::PROBES);
        let is_its_own = |place: &&Rate| {
            let taken = place.kind.compare_exchange(0, kind, Relaxed, Relaxed);
            taken.is_ok() || taken == Err(kind)
        };
        places.find(is_its_own).unwrap_or(&self.places[first])
    }
}

impl Rate {
    const fn new() -> Self {
        Self { kind: AtomicU64::new(0), said: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_with_the_next_that_is_said() {
        let rates = Rates::new();
        let admit = |second| rates.admit(7, second, 2);
        assert_eq!([admit(5), admit(5), admit(5), admit(5)], [Some(0), Some(0), None, None]);
        assert_eq!([admit(6), admit(6), admit(6)], [Some(2), Some(0), None]);
        // A paused clock of another runtime may be behind.
        assert_eq!(admit(4), Some(1));
        assert_eq!(rates.admit(7, 9, 0), None);
    }

    #[test]
    fn each_kind_has_its_own_rate() {
        let rates = Rates::new();
        assert_eq!([rates.admit(1, 0, 1), rates.admit(1, 0, 1)], [Some(0), None]);
        let same_place = 1 + Rates::PLACES as u64;
        assert_eq!(rates.admit(same_place, 0, 1), Some(0));
    }

    #[test]
    fn more_kinds_than_places_are_bounded_and_lose_nothing() {
        let rates = Rates::new();
        let kinds = 1..=10_000_u64;
        let all = kinds.clone().filter(|kind| rates.admit(*kind, 1, 1).is_some()).count();
        assert_eq!(all, Rates::PLACES);
        let left_out: u64 = kinds.filter_map(|kind| rates.admit(kind, 2, 1)).sum();
        assert!(left_out > 0 && left_out <= 10_000);
        let still: u64 = rates.places.iter().map(|place| place.left_out.load(Relaxed)).sum();
        // Those of the first round, and of the second.
        assert_eq!(left_out + still, 2 * (10_000 - Rates::PLACES as u64));
    }
}
