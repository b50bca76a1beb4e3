//! Rate limiter for violation events.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::Name;
use super::fields::{HEALTH, LEFT_OUT};
use super::seldom::Seldom;
use crate::key::TextHash;
use crate::resource::Resource;
use crate::time::Instant;
use crate::violation::Severity;

/// Limits how many violation events are emitted in a second, for each name of work, resource and
/// severity. The limit holds for the whole process and is 10 unless set.
///
/// A service in trouble violates its budgets thousands of times a second, and would drown in its
/// own log. Events beyond the limit are dropped and counted: the next event of the same kind has
/// their number in its field [`left_out`](super::fields::LEFT_OUT). A [`Reporter`](super::Reporter)
/// still receives every violation, and every [`Report`](super::Report) and usage event counts it.
///
/// With `u32::MAX` all events are emitted, and with 0 none.
///
/// It belongs to the log, which all work of the process shares, and not to a budget or a layer. It
/// can be called at any time, the last call counts from then on, and nothing but the number of
/// events depends on it: not what is counted, cut, or given to reporters.
///
/// # Names without bound
///
/// About a thousand kinds of violation have a rate of their own at a time, and another thousand
/// whose work has a name that was created at run time, a `String`. So names that are unbounded,
/// such as one per job or path, never displace a route or a name that is part of the program, nor a
/// `String` that occurs repeatedly. The first violations of all others share one rate. Once a
/// minute, one event reports how many of these were dropped, at WARN with the target
/// [`HEALTH`](super::fields::HEALTH).
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

/// The rates of work whose name is part of the program; the number of such kinds is bounded.
static FIXED: Rates = Rates::new();
/// The rates of work whose name was created at run time; there may be one for each job or path.
static MADE: Rates = Rates::new();

/// Decides whether a violation may be emitted now; returns how many of its kind were dropped since
/// the last event, or `None` if it is dropped.
pub(super) fn admit(name: &Name, resource: Resource, severity: Severity) -> Option<u64> {
    let mut hash = TextHash::new();
    // Writing into a hasher cannot fail.
    let _ = write!(hash, "{name} {resource} {severity:?}");
    let rates = if name.is_made() { &MADE } else { &FIXED };
    let most = MOST.load(Relaxed);
    match rates.admit(hash.finish().max(1), second(), most) {
        Ok(left_out) => Some(left_out),
        Err(Untold::Known) => None,
        Err(Untold::Stranger) => {
            if most > 0 {
                rates.emit_strangers();
            }
            None
        }
    }
}

/// The current second by the runtime's clock; only used to check whether two violations fall into
/// the same second.
pub(super) fn second() -> u32 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let now = Instant::now();
    let origin = *ORIGIN.get_or_init(|| now);
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    match now.checked_duration_since(origin) {
        Some(since) => seconds(since),
        // The origin may come from another runtime, whose paused clock was advanced.
        None => u32::MAX.saturating_sub(seconds(origin.saturating_duration_since(now))),
    }
}

/// One rate for each kind of violation, in a table of fixed size.
///
/// A kind takes a free entry in its window of the table, or one that was not used for long. If
/// there is none, the kind is a stranger, and strangers share one rate. A stranger that occurs
/// again takes the entry of a kind that has occurred only once. So kinds that occur once never
/// displace kinds that occur repeatedly.
struct Rates {
    places: [Rate; Self::PLACES],
    strangers: Rate,
    /// Fingerprints of the most recent strangers.
    seen: [AtomicU32; Self::SEEN],
    /// Held while an entry is taken, so that no kind takes two.
    taking: Mutex<()>,
    emitted: Seldom,
}

struct Rate {
    /// The hash of the kind of violation; 0 while the entry is free.
    kind: AtomicU64,
    /// A second, and the number of events emitted in it, in one word.
    emitted: AtomicU64,
    left_out: AtomicU64,
    /// Whether the kind has occurred more than once.
    comes_again: AtomicBool,
}

/// Where a violation that is not emitted is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Untold {
    /// In the next event of its kind.
    Known,
    /// Among the strangers, since its kind has no entry.
    Stranger,
}

impl Rates {
    /// A power of two.
    const PLACES: usize = 1024;
    const PROBES: usize = 8;
    /// A power of two.
    const SEEN: usize = 4096;

    const fn new() -> Self {
        Self {
            places: [const { Rate::new() }; Self::PLACES],
            strangers: Rate::new(),
            seen: [const { AtomicU32::new(0) }; Self::SEEN],
            taking: Mutex::new(()),
            emitted: Seldom::new(),
        }
    }

    fn admit(&self, kind: u64, second: u32, most: u32) -> Result<u64, Untold> {
        match self.rate(kind, second) {
            Some(rate) if rate.admit(second, most) => Ok(rate.left_out.swap(0, Relaxed)),
            Some(rate) => {
                rate.left_out.fetch_add(1, Relaxed);
                Err(Untold::Known)
            }
            // What was left out is of other kinds than this one.
            None if self.strangers.admit(second, most) => Ok(0),
            None => {
                self.strangers.left_out.fetch_add(1, Relaxed);
                Err(Untold::Stranger)
            }
        }
    }

    /// The rate of this kind, for which an entry is taken if necessary; `None` for a stranger.
    fn rate(&self, kind: u64, second: u32) -> Option<&Rate> {
        if let Some(own) = self.find(kind) {
            // It is nearly always set already, and a load is cheaper than a store.
            if !own.comes_again.load(Relaxed) {
                own.comes_again.store(true, Relaxed);
            }
            return Some(own);
        }
        let comes_again = self.note_seen(kind);
        let yields = |place: &&Rate| place.yields(second, comes_again);
        // In a flood of new names there is hardly ever a free entry, so no thread waits for the
        // lock only to learn that.
        self.window(kind).find(yields)?;
        // No access panics midway, so a poisoned lock does not matter.
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken_meanwhile) = self.find(kind) {
            return Some(taken_meanwhile);
        }
        let place = self.window(kind).filter(yields).max_by_key(|place| place.age(second))?;
        let left_out = place.left_out.swap(0, Relaxed);
        self.strangers.left_out.fetch_add(left_out, Relaxed);
        // A thread that still counts here for the previous kind makes the number wrong by a few,
        // once.
        place.emitted.store(u64::from(second) << 32, Relaxed);
        place.comes_again.store(comes_again, Relaxed);
        let before = place.kind.swap(kind, Relaxed);
        if before != 0 {
            self.note_seen(before);
        }
        Some(place)
    }

    fn find(&self, kind: u64) -> Option<&Rate> {
        self.window(kind).find(|place| place.kind.load(Relaxed) == kind)
    }

    fn window(&self, kind: u64) -> impl Iterator<Item = &Rate> {
        let mask = Self::PLACES.wrapping_sub(1) as u64;
        // Truncation is harmless: the mask is smaller than any `usize`.
        let at = move |step: u64| (kind.wrapping_add(step) & mask) as usize;
        (0..Self::PROBES as u64).map(move |step| &self.places[at(step)])
    }

    /// Notes a stranger; returns whether it is one of the most recent.
    fn note_seen(&self, kind: u64) -> bool {
        let mask = Self::SEEN.wrapping_sub(1) as u64;
        // The slot is chosen by all bits of the hash, not only by those that choose the window.
        let (slot, fingerprint) = ((kind >> 20) & mask, (kind >> 32) as u32 | 1);
        self.seen[slot as usize].swap(fingerprint, Relaxed) == fingerprint
    }

    /// Emits an event, at most once a minute, with the number of dropped violations of strangers.
    #[cold]
    fn emit_strangers(&self) {
        if self.emitted.admit().is_some() {
            let left_out = self.strangers.left_out.swap(0, Relaxed);
            tracing::event!(
                target: HEALTH,
                tracing::Level::WARN,
                { LEFT_OUT } = left_out,
                "more names of work violate their budgets than are told apart, so violations of \
                 some are left out: name work by its kind or its route, not by a path or an id",
            );
        }
    }
}

impl Rate {
    const fn new() -> Self {
        Self {
            kind: AtomicU64::new(0),
            emitted: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            comes_again: AtomicBool::new(false),
        }
    }

    /// Takes one event of this second's share; returns whether there was one left.
    fn admit(&self, second: u32, most: u32) -> bool {
        let one_more = |emitted: u64| {
            let is_same = emitted >> 32 == u64::from(second);
            let so_far = if is_same { emitted & u64::from(u32::MAX) } else { 0 };
            let is_allowed = so_far < u64::from(most);
            is_allowed.then(|| u64::from(second) << 32 | so_far.saturating_add(1))
        };
        self.emitted.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// Whether a new name may take this entry; `again`: it has occurred before.
    fn yields(&self, second: u32, to_one_that_comes_again: bool) -> bool {
        const MINUTE: u32 = 60;
        let patience = match (to_one_that_comes_again, self.comes_again.load(Relaxed)) {
            (true, false) => 0,
            (true, true) | (false, false) => MINUTE,
            (false, true) => 10 * MINUTE,
        };
        self.age(second) >= patience
    }

    /// For how many seconds no event of its kind was emitted; the highest value for a free entry.
    fn age(&self, second: u32) -> u32 {
        if self.kind.load(Relaxed) == 0 {
            return u32::MAX;
        }
        // The paused clock of another runtime may lag behind.
        let last = self.emitted.load(Relaxed) >> 32;
        second.abs_diff(u32::try_from(last).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::Untold::{Known, Stranger};
    use super::*;
    use crate::key::Key;

    const PLACES: u64 = Rates::PLACES as u64;

    /// A kind, which is a hash.
    fn kind(n: u64) -> u64 {
        Key::of(&n.to_string()).raw()
    }

    /// How many of these kinds are emitted in a second, with a limit of one event for each.
    fn emitted(rates: &Rates, second: u32, kinds: impl IntoIterator<Item = u64>) -> u64 {
        let emitted = |n: &u64| rates.admit(kind(*n), second, 1).is_ok();
        kinds.into_iter().filter(emitted).count() as u64
    }

    #[test]
    fn what_is_left_out_is_counted_with_the_next_that_is_emitted() {
        let rates = Rates::new();
        let admit = |second| rates.admit(7, second, 2);
        assert_eq!(
            [admit(5), admit(5), admit(5), admit(5)],
            [Ok(0), Ok(0), Err(Known), Err(Known)]
        );
        assert_eq!([admit(6), admit(6), admit(6)], [Ok(2), Ok(0), Err(Known)]);
        // The paused clock of another runtime may lag behind.
        assert_eq!(admit(4), Ok(1));
        assert_eq!(rates.admit(7, 9, 0), Err(Known));
    }

    #[test]
    fn each_kind_has_its_own_rate() {
        let rates = Rates::new();
        assert_eq!([rates.admit(1, 0, 1), rates.admit(1, 0, 1)], [Ok(0), Err(Known)]);
        let same_place = 1 + PLACES;
        assert_eq!(rates.admit(same_place, 0, 1), Ok(0));
    }

    #[test]
    fn more_kinds_than_places_are_bounded_and_lose_nothing() {
        let rates = Rates::new();
        let (mut emitted, mut left_out) = (0, 0);
        for second in [1, 2, 3, 100, 1_000] {
            for n in 1..=10_000 {
                if let Ok(before) = rates.admit(kind(n), second, 1) {
                    (emitted, left_out) = (emitted + 1, left_out + before);
                }
            }
        }
        let places = rates.places.iter().chain([&rates.strangers]);
        let still: u64 = places.map(|place| place.left_out.load(Relaxed)).sum();
        assert_eq!(emitted + left_out + still, 5 * 10_000);
        assert!(emitted <= 5 * (2 * PLACES + 1), "{emitted}");
    }

    #[test]
    fn ever_new_kinds_are_bounded_and_cost_no_known_one_its_place() {
        let rates = Rates::new();
        // So few that each has an entry, although each occurs only once a minute.
        let known = || 0..PLACES / 4;
        assert_eq!(emitted(&rates, 1, known()), PLACES / 4);
        let strangers = |of: u64| of * 1_000_000..of * 1_000_000 + 100_000;
        assert!(emitted(&rates, 1, strangers(1)) <= PLACES);
        for minute in 1..=5_u32 {
            let second = minute * 59;
            assert_eq!(emitted(&rates, second, known()), PLACES / 4, "{second}");
            let new = emitted(&rates, second, strangers(1 + u64::from(minute)));
            assert!(new <= PLACES, "{new}");
            assert_eq!(emitted(&rates, second, known()), 0, "each has its own rate");
        }
        for n in known() {
            assert_eq!(rates.admit(kind(n), 300, 1), Ok(1), "what was left out at 295");
        }
    }

    #[test]
    fn a_stranger_that_comes_again_has_a_place() {
        let rates = Rates::new();
        emitted(&rates, 1, 1..100_000);
        let late = kind(0);
        assert_eq!([rates.admit(late, 1, 1), rates.admit(late, 1, 1)], [Err(Stranger), Ok(0)]);
        emitted(&rates, 1, 100_000..200_000);
        assert_eq!([rates.admit(late, 1, 1), rates.admit(late, 2, 1)], [Err(Known), Ok(1)]);
    }

    #[test]
    fn kinds_that_come_twice_and_never_again_are_bounded_as_well() {
        let rates = Rates::new();
        let twice = |from: u64| (from..from + 100_000).flat_map(|n| [n, n]);
        let known = || 0..PLACES / 4;
        emitted(&rates, 1, known().chain(known()));
        // An entry for each kind, whether it occurs once or repeatedly.
        let most = 2 * PLACES + 1;
        let first = emitted(&rates, 1, twice(1_000));
        assert!(first <= most, "{first}");
        let second = emitted(&rates, 2, known().chain(twice(200_000)));
        assert!(second <= PLACES / 4 + 1, "{second}");
        assert_eq!(emitted(&rates, 3, known()), PLACES / 4);
    }
}
