//! Detects work that keeps more memory with each run.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytesize::ByteSize;
use serde::Serialize;
use tracing::{Level, event};

use super::fields::{GROWN, GROWTH, HEALTH, RUNS, WORK};
use super::{Report, Reporter};
use crate::memory;
use crate::violation::Violation;

/// Emits an event when the retained memory of a kind of work climbs run after run: a leak, or an
/// unbounded cache.
///
/// It is a [`Reporter`] that sums up, for each name of work, what its runs retain. Clones share
/// their sums: give one to everything that is to be watched, as a pair with another reporter if
/// there is one. It needs the [`CountingAllocator`](crate::alloc::CountingAllocator) and stays
/// silent without it.
///
/// # The rule
///
/// The first [ten](Self::warm_up) runs of a name are ignored, because they fill caches and pools.
/// From then on each run adds what it allocated and did not free. A run that frees more than it
/// allocates subtracts the difference, and when nothing is left the sum starts anew. Once the sum,
/// less the largest single addition, is above [8 MiB](Self::bytes), one event is emitted (WARN,
/// target [`GROWTH`](super::fields::GROWTH)), and another each time the sum has doubled, so that a
/// leak of any size is reported a few times and not with each run.
///
/// MongoDB's driver allocates sessions, cursors and cluster times in the work and frees them in
/// tasks of its own: about 2 KB for each command, which [`retained`](crate::Usage::retained)
/// contains. That is no leak. The sum of work that runs MongoDB commands is therefore bounded by
/// the memory that the threads involved hold more than before: those on which watched runs end, and
/// on which connections to MongoDB are checked out and in.
///
/// # What it can see, and what not
///
/// * Found: a job that pushes into a static list, or that adds an entry to a map in each run and
///   never removes it, even if only one run in a hundred does.
/// * Not found: a job that in each run also frees as much as it leaks of what **others** allocated,
///   such as rows from the worker thread of sqlx's SQLite driver, or arguments that the job runner
///   created.
/// * Not found: a response body that the server has taken, and what threads and tasks allocate that
///   were spawned without `in_current_budget`.
/// * Found late: a leak in work with MongoDB commands, while the threads also free memory that
///   other threads have allocated. It is found once they hold [so many bytes](Self::bytes) less
///   than before.
/// * Reported although nothing leaks: a cache that takes more runs to fill than are ignored, up to
///   its size; and memory that is freed outside of the work, as by the receiver of a channel, or by
///   the runtime when it frees a task that nobody awaits, which cannot be distinguished from memory
///   that is never freed. Raise the bounds for such work, or do not watch it.
///
/// # Performance
///
/// At the end of each run: one lock and one look-up in a map of at most 256 names. Nothing while
/// the work runs. Further names are not watched, which one event reports.
///
/// # Examples
///
/// ```
/// use request_budget::alloc::CountingAllocator;
/// use request_budget::report::Growth;
/// use request_budget::{Budget, BudgetExt};
///
/// #[global_allocator]
/// static ALLOC: CountingAllocator = CountingAllocator::system();
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
///
/// static TOLD: AtomicUsize = AtomicUsize::new(0);
/// let growth = Growth::new().bytes(64 << 10).with_listener(|climb| {
///     assert_eq!(climb.work, "import");
///     TOLD.fetch_add(1, Relaxed);
/// });
///
/// for _ in 0..100 {
///     let leak = async { std::mem::forget(std::hint::black_box(vec![0_u8; 4 << 10])) };
///     leak.budgeted("import", Budget::new()).with_reporter(growth.clone()).await.unwrap();
/// }
/// assert_eq!(TOLD.load(Relaxed), 3, "over 64, over 128 and over 256 KiB");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Growth {
    warm_up: u64,
    bytes: u64,
    listener: Option<Listener>,
    kinds: Arc<Mutex<HashMap<String, Kind>>>,
}

#[derive(Clone)]
struct Listener(Arc<dyn Fn(&Climb) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// What the runs of one name have retained.
#[derive(Debug, Default)]
struct Kind {
    /// How many runs have been ignored so far, up to the number of warm-up runs.
    passed: u64,
    runs: u64,
    sum: u64,
    largest: u64,
    /// The sum of the last event, which has to double before the next one.
    reported: u64,
    /// Whether any run has run MongoDB commands, a part of whose memory the driver frees in tasks
    /// of its own.
    runs_commands: bool,
    /// How many bytes all threads held when the sum was last zero.
    held_before: Option<i64>,
}

/// One run: the bytes that it has retained, and the bytes that all threads hold at its end.
#[derive(Clone, Copy)]
struct Run {
    net: i64,
    held: i64,
    runs_commands: bool,
}

/// What a [`Growth`] reports: how much memory a kind of work has retained, and over how many runs.
///
/// Its `Display` is one line: "import: 64.0 KiB kept over 17 runs".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Climb {
    /// The name of the work, as its `Display` prints it.
    pub work: String,
    /// The bytes that its runs have allocated, less those that they have freed.
    pub bytes: u64,
    /// The number of these runs.
    pub runs: u64,
}

impl fmt::Display for Climb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} kept over {} runs", self.work, ByteSize::b(self.bytes), self.runs)
    }
}

impl Growth {
    const MOST_KINDS: usize = 256;

    /// Ignores the first ten runs of each name, and reports more than 8 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self { warm_up: 10, bytes: 8 << 20, listener: None, kinds: Arc::default() }
    }

    /// Sets how many runs of each name are ignored, because they fill caches and pools.
    #[must_use]
    pub fn warm_up(mut self, runs: u64) -> Self {
        self.warm_up = runs;
        self
    }

    /// Sets how many bytes the runs of one name may retain in total.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Calls this closure in addition to the event. It must be quick and must not block.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&Climb) + Send + Sync + 'static) -> Self {
        self.listener = Some(Listener(Arc::new(listener)));
        self
    }

    /// Adds what a run has retained; returns what is to be reported, if anything is.
    fn add(&self, work: &str, run: Run) -> Option<Climb> {
        // No access panics midway, so a poisoned map is consistent.
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if !kinds.contains_key(work) {
            if kinds.len() == Self::MOST_KINDS {
                drop(kinds);
                say_full();
                return None;
            }
            kinds.insert(work.to_owned(), Kind::default());
        }
        let (bytes, runs) = kinds.get_mut(work)?.add(run, self.warm_up, self.bytes)?;
        Some(Climb { work: work.to_owned(), bytes, runs })
    }
}

impl Default for Growth {
    fn default() -> Self {
        Self::new()
    }
}

impl Reporter for Growth {
    fn violation(&self, _: &Violation) {}

    fn finished(&self, report: &Report<'_>) {
        let Some(net) = report.net_memory() else { return };
        let (held, runs_commands) = (memory::add_to_total(), report.has_run_commands());
        let run = Run { net, held, runs_commands };
        let Some(climb) = self.add(&report.work().to_string(), run) else { return };
        event!(
            target: GROWTH,
            Level::WARN,
            { WORK } = climb.work.as_str(),
            { GROWN } = climb.bytes,
            { RUNS } = climb.runs,
            "{climb}",
        );
        if let Some(Listener(listener)) = &self.listener {
            listener(&climb);
        }
    }
}

impl Kind {
    /// Adds what a run has retained; returns the sum and the number of runs if they are to be
    /// reported.
    fn add(&mut self, run: Run, warm_up: u64, bound: u64) -> Option<(u64, u64)> {
        let Run { net, held, runs_commands } = run;
        self.runs_commands |= runs_commands;
        if self.passed < warm_up {
            self.passed = self.passed.saturating_add(1);
            self.held_before = Some(held);
            return None;
        }
        // Without warm-up, what the threads hold includes the first run already.
        let before = *self.held_before.get_or_insert(held.wrapping_sub(net));
        self.runs = self.runs.saturating_add(1);
        self.sum = self.sum.saturating_add_signed(net);
        if self.sum == 0 {
            let (passed, runs_commands) = (self.passed, self.runs_commands);
            *self = Self { passed, runs_commands, held_before: Some(held), ..Self::default() };
            return None;
        }
        self.largest = self.largest.max(u64::try_from(net).unwrap_or(0));
        let retained = match self.runs_commands {
            true => bounded_by_growth(self.sum, held.wrapping_sub(before), bound),
            false => self.sum,
        };
        // A single run that retains much is no climb, and when a list grows, its last doubling is
        // as large as everything before.
        let steps = retained.saturating_sub(self.largest);
        if steps <= bound.max(self.reported.saturating_mul(2)) {
            return None;
        }
        self.reported = steps;
        Some((retained, self.runs))
    }
}

/// How much of the sum is still allocated, judged by how many bytes the threads hold more than
/// before.
fn bounded_by_growth(sum: u64, growth: i64, bound: u64) -> u64 {
    let is_all_of_it = growth >= (sum / 4).saturating_mul(3).cast_signed();
    // The threads have freed much that others allocated, so their growth shows nothing.
    let is_no_measure = growth < bound.cast_signed().saturating_neg();
    if is_all_of_it || is_no_measure { sum } else { u64::try_from(growth).unwrap_or(0) }
}

#[cold]
fn say_full() {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        event!(
            target: HEALTH,
            Level::WARN,
            "more than {} names of work: the growth of the others is not watched",
            Growth::MOST_KINDS,
        );
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "in a test an overflow may panic")]
mod tests {
    use super::*;

    /// The runs, counted from one, after which an event is emitted.
    fn reported(bound: u64, runs: impl IntoIterator<Item = i64>) -> Vec<usize> {
        reported_where(100, bound, runs)
    }

    /// As above, with only this percentage of what the runs retain staying allocated.
    fn reported_where(percent: i64, bound: u64, runs: impl IntoIterator<Item = i64>) -> Vec<usize> {
        let growth = Growth::new().warm_up(2).bytes(bound);
        let mut held = -7_000;
        let emits = |(at, net)| {
            held += net * percent / 100;
            growth.add("job", Run { net, held, runs_commands: true }).map(|_| at)
        };
        (1..).zip(runs).filter_map(emits).collect()
    }

    #[test]
    fn what_is_freed_elsewhere_is_not_reported_and_a_leak_beside_it_is() {
        assert!(reported_where(0, 1_000, [100; 10_000]).is_empty());
        // Ten bytes of each run stay allocated; the largest addition of a single run does not
        // count.
        assert_eq!(reported_where(10, 1_000, [100; 300]).first(), Some(&113));
        // The threads free what others have allocated, so that their growth shows nothing.
        assert_eq!(reported_where(-200, 1_000, [100; 60]).first(), Some(&14));
    }

    #[test]
    fn what_each_run_leaves_is_reported_when_it_is_over_the_bound_and_when_it_has_doubled() {
        // Two runs are ignored, and of the next twelve the largest addition does not count.
        assert_eq!(reported(100, [10; 60]), [14, 26, 50]);
    }

    #[test]
    fn a_leak_in_one_run_of_ten_is_reported() {
        let runs = (0..300).map(|run| if run % 10 == 0 { 10 } else { 0 });
        assert_eq!(reported(100, runs).first(), Some(&121));
    }

    #[test]
    fn a_list_that_doubles_is_reported() {
        let runs = (1..2_000_i64).map(|run| if run.count_ones() == 1 { run * 8 } else { 0 });
        assert!(!reported(1_000, runs).is_empty());
    }

    #[test]
    fn what_fills_while_runs_pass_or_at_once_is_not_reported() {
        assert!(reported(100, [1_000, 1_000].into_iter().chain([0; 100])).is_empty());
        assert!(reported(100, [0, 0, 0, 1_000].into_iter().chain([0; 100])).is_empty());
    }

    #[test]
    fn what_is_filled_and_emptied_in_turn_is_not_reported() {
        let runs = (0..200).map(|run| if run % 2 == 0 { 90 } else { -90 });
        assert!(reported(100, runs).is_empty());
    }

    #[test]
    fn names_are_bounded_and_apart() {
        let growth = Growth::new().warm_up(0).bytes(100);
        let run = || Run { net: 101, held: 0, runs_commands: false };
        for name in 0..1_000 {
            assert_eq!(growth.add(&name.to_string(), run()), None);
        }
        assert_eq!(growth.kinds.lock().map(|kinds| kinds.len()).ok(), Some(Growth::MOST_KINDS));
        let climb = growth.add("7", run()).expect("a second step");
        assert_eq!(climb.to_string(), "7: 202 B kept over 2 runs");
        assert_eq!(growth.add("700", run()), None);
    }
}
