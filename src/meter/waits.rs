//! What a unit of work waits for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
#[cfg(any(feature = "mongodb", feature = "sqlx"))]
use std::time::Duration;

use super::Meter;
#[cfg(any(feature = "mongodb", feature = "sqlx"))]
use super::Suspect;
use super::pools::PoolId;
use super::table::Key;
use crate::resource::Resource;
use crate::time::{Instant, nanos};

/// Waits for something else than a statement or a call.
#[derive(Debug, Default)]
pub(super) struct OtherWaits {
    /// The wait that began last, until it ends.
    current: AtomicU64,
    /// Its pool, if it is for a connection.
    pool: AtomicU32,
    /// The pool of the longest wait for a connection that has ended.
    longest_pool: AtomicU32,
    longest: AtomicU64,
    /// Since when the server has not polled the body for its next frame; 0 if it has.
    unasked_since: AtomicU64,
    /// For how long it was not polled before that, in all.
    unasked: AtomicU64,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitFor {
    Connection(PoolId),
    /// `BEGIN`, `COMMIT`, `ROLLBACK` or a savepoint.
    Transaction,
}

impl OtherWaits {
    /// The lowest bits are what is waited for, the others since when.
    const BITS: u32 = 2;
    const CONNECTION: u64 = 1;
    const TRANSACTION: u64 = 2;

    #[cfg(debug_assertions)]
    #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
    pub(super) fn poisoned(number: u64) -> Self {
        Self {
            current: number.into(),
            pool: (number as u32).into(),
            longest_pool: (number as u32).into(),
            longest: number.into(),
            unasked_since: number.into(),
            unasked: number.into(),
        }
    }

    #[cfg(any(feature = "diesel", feature = "sqlx"))]
    fn code(what: WaitFor, since: u64) -> u64 {
        let what = match what {
            WaitFor::Connection(_) => Self::CONNECTION,
            WaitFor::Transaction => Self::TRANSACTION,
        };
        (since << Self::BITS) | what
    }

    /// What is waited for, and since when.
    pub(super) fn current(&self) -> Option<(WaitFor, u64)> {
        let code = self.current.load(Relaxed);
        let what = match code & 3 {
            Self::CONNECTION => WaitFor::Connection(PoolId::from_raw(self.pool.load(Relaxed))),
            Self::TRANSACTION => WaitFor::Transaction,
            _ => return None,
        };
        Some((what, code >> Self::BITS))
    }

    /// The longest wait for a connection that has ended.
    pub(super) fn longest(&self) -> (PoolId, u64) {
        let pool = PoolId::from_raw(self.longest_pool.load(Relaxed));
        (pool, self.longest.load(Relaxed))
    }

    /// For how long the server did not poll the body for its next frame, in all.
    pub(super) fn unasked(&self, now: u64) -> u64 {
        let before = self.unasked.load(Relaxed);
        match self.unasked_since.load(Relaxed) {
            0 => before,
            since => before.saturating_add(now.saturating_sub(since)),
        }
    }
}

/// For each wait it is noted how much the work allocates meanwhile. What it has allocated so far is
/// what was charged to it, plus `pending`: what the current poll has allocated.
impl Meter {
    /// Notes that the work waits for a statement that was counted.
    pub(crate) fn begin_statement_wait(&self, key: Key, since: Instant, pending: u64) {
        self.statements.begin_wait(key, self.offset(since), self.allocated(pending));
    }

    pub(crate) fn end_statement_wait(&self, key: Key, pending: u64) {
        self.statements.end_wait(key, self.allocated(pending));
    }

    /// Notes that a call to an external system, which was counted, is in flight.
    pub(crate) fn begin_call_wait(&self, key: Key, since: Instant, pending: u64) {
        let allocated = self.allocated(pending);
        self.rare().externals.begin_wait(key, self.offset(since), allocated);
    }

    pub(crate) fn end_call_wait(&self, key: Key, pending: u64) {
        self.rare().externals.end_wait(key, self.allocated(pending));
    }

    /// Notes that a call to a cache, which was counted, is in flight.
    #[cfg(feature = "redis")]
    pub(crate) fn begin_cache_wait(&self, key: Key, since: Instant, pending: u64) {
        if let Some(caches) = self.caches() {
            caches.begin_wait(key, self.offset(since), self.allocated(pending));
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn end_cache_wait(&self, key: Key, pending: u64) {
        if let Some(caches) = self.caches() {
            caches.end_wait(key, self.allocated(pending));
        }
    }

    fn allocated(&self, pending: u64) -> u64 {
        self.used(Resource::Allocated).saturating_add(pending)
    }

    /// Notes that the work waits for something else.
    #[cfg(any(feature = "diesel", feature = "sqlx"))]
    pub(crate) fn begin_other_wait(&self, what: WaitFor, since: Instant) {
        if let WaitFor::Connection(pool) = what {
            self.other_waits.pool.store(pool.raw(), Relaxed);
        }
        self.other_waits.current.store(OtherWaits::code(what, self.offset(since)), Relaxed);
    }

    /// Ends what was noted by [`begin_other_wait`](Self::begin_other_wait), unless another one has
    /// begun since.
    #[cfg(any(feature = "diesel", feature = "sqlx"))]
    pub(crate) fn end_other_wait(&self, what: WaitFor, since: Instant) {
        let code = OtherWaits::code(what, self.offset(since));
        // Fails if a later wait has replaced it.
        let _ = self.other_waits.current.compare_exchange(code, 0, Relaxed, Relaxed);
    }

    /// Charges a wait for a connection that has ended. `pool` is only called if it was the longest
    /// so far.
    #[cfg(any(feature = "mongodb", feature = "sqlx"))]
    pub(crate) fn add_connection_wait(&self, time: Duration, pool: impl FnOnce() -> PoolId) {
        let waited = nanos(time);
        if waited > self.other_waits.longest.load(Relaxed) {
            self.other_waits.longest.store(waited, Relaxed);
            self.other_waits.longest_pool.store(pool().raw(), Relaxed);
        }
        self.add(Resource::ConnectionWait, waited, Suspect::Connection);
    }

    /// Notes that the body has returned a frame and the server has yet to poll it for the next,
    /// until [`end_unasked`](Self::end_unasked). The clock is read only if the wall time is
    /// limited.
    #[cfg(feature = "http")]
    pub(crate) fn begin_unasked(&self) {
        if self.has_wall_time_limit() {
            // Never 0, which means that the body was polled.
            let now = self.offset(Instant::now()).max(1);
            self.other_waits.unasked_since.store(now, Relaxed);
        }
    }

    /// Notes that the body is polled for the next frame, or dropped.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn end_unasked(&self) {
        let since = self.other_waits.unasked_since.load(Relaxed);
        if since != 0 {
            self.other_waits.unasked_since.store(0, Relaxed);
            let now = self.offset(Instant::now());
            self.other_waits.unasked.fetch_add(now.saturating_sub(since), Relaxed);
        }
    }

    pub(super) fn offset(&self, moment: Instant) -> u64 {
        nanos(moment.saturating_duration_since(self.started))
    }
}
