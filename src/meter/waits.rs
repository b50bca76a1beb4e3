//! What a unit of work waits for, and so what has taken its time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Meter;
use super::table::{Key, Table};
use crate::resource::Resource;
use crate::time::{Instant, nanos};
use crate::violation::Cause;

/// A wait that is no statement, and no call: the last one that began, until it ends.
#[derive(Debug, Default)]
pub(super) struct OtherWait(AtomicU64);

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitFor {
    Connection = 1,
    /// `BEGIN`, `COMMIT`, `ROLLBACK` or a savepoint.
    Transaction = 2,
}

impl OtherWait {
    /// The lowest bits say what is waited for, the others since when.
    const BITS: u32 = 2;

    #[cfg(feature = "sqlx")]
    fn code(what: WaitFor, since: u64) -> u64 {
        (since << Self::BITS) | what as u64
    }

    fn get(&self) -> Option<(WaitFor, u64)> {
        let code = self.0.load(Relaxed);
        let what = match code & 3 {
            1 => WaitFor::Connection,
            2 => WaitFor::Transaction,
            _ => return None,
        };
        Some((what, code >> Self::BITS))
    }
}

impl Meter {
    /// Notes that a statement, which was counted, is waited for.
    pub(crate) fn begin_statement_wait(&self, key: Key, since: Instant) {
        self.statements.begin_wait(key, self.offset(since));
    }

    pub(crate) fn end_statement_wait(&self, key: Key) {
        self.statements.end_wait(key);
    }

    /// Notes that a call to an external system, which was counted, is in flight.
    pub(crate) fn begin_call_wait(&self, key: Key, since: Instant) {
        self.rare().externals.begin_wait(key, self.offset(since));
    }

    pub(crate) fn end_call_wait(&self, key: Key) {
        self.rare().externals.end_wait(key);
    }

    /// Notes that a call to a cache, which was counted, is in flight.
    #[cfg(feature = "redis")]
    pub(crate) fn begin_cache_wait(&self, key: Key, since: Instant) {
        if let Some(caches) = self.caches() {
            caches.begin_wait(key, self.offset(since));
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn end_cache_wait(&self, key: Key) {
        if let Some(caches) = self.caches() {
            caches.end_wait(key);
        }
    }

    /// Notes that something else is waited for.
    #[cfg(feature = "sqlx")]
    pub(crate) fn begin_other_wait(&self, what: WaitFor, since: Instant) {
        self.other_wait.0.store(OtherWait::code(what, self.offset(since)), Relaxed);
    }

    #[cfg(feature = "sqlx")]
    /// Ends what was noted by [`begin_other_wait`](Self::begin_other_wait), unless another one has begun since.
    pub(crate) fn end_other_wait(&self, what: WaitFor, since: Instant) {
        let code = OtherWait::code(what, self.offset(since));
        // Not noted any more: one that began later is.
        let _ = self.other_wait.0.compare_exchange(code, 0, Relaxed, Relaxed);
    }

    fn offset(&self, moment: Instant) -> u64 {
        nanos(moment.saturating_duration_since(self.started))
    }

    /// What has taken most of the time of the work, what is in flight included.
    pub(super) fn cause_of_time(&self) -> Cause {
        let now = self.offset(Instant::now());
        let waiting = |nanos: Option<u64>| nanos.map(Duration::from_nanos);
        let statement = |table: &Table| {
            table.slowest(now).map(|(counted, since)| {
                let (time, waiting) = (Duration::from_nanos(counted.nanos), waiting(since));
                let (text, executions) = (counted.text.into_owned(), counted.count);
                (time, Cause::Statement { text, executions, time, waiting })
            })
        };
        #[cfg(feature = "redis")]
        let cache = self.caches().and_then(statement);
        #[cfg(not(feature = "redis"))]
        let cache = None;
        let statement = statement(&self.statements);
        let call = self.externals().and_then(|all| all.slowest(now)).map(|(counted, since)| {
            let time = Duration::from_nanos(counted.nanos);
            let name = counted.text.into_owned();
            (time, Cause::External { name, calls: counted.count, time, waiting: waiting(since) })
        });
        let all = [
            statement,
            cache,
            call,
            self.connection_waits(now),
            self.transaction_wait(now),
            self.command(now),
        ];
        let slowest = all.into_iter().flatten().max_by_key(|(time, _)| *time);
        // Less than a tenth explains nothing.
        let least = Duration::from_nanos(now.div_ceil(10).max(1));
        match slowest {
            Some((time, cause)) if time >= least => cause,
            _ => Cause::OwnCode { longest_poll: self.longest_poll() },
        }
    }

    fn connection_waits(&self, now: u64) -> Option<(Duration, Cause)> {
        let before = self.used(Resource::ConnectionWait);
        let current = match self.other_wait.get() {
            Some((WaitFor::Connection, since)) => Some(now.saturating_sub(since)),
            _ => None,
        };
        let time = Duration::from_nanos(before.saturating_add(current.unwrap_or_default()));
        let waiting = current.map(Duration::from_nanos);
        (!time.is_zero()).then_some((time, Cause::Connection { time, waiting }))
    }

    fn transaction_wait(&self, now: u64) -> Option<(Duration, Cause)> {
        let (what, since) = self.other_wait.get()?;
        let waiting = Duration::from_nanos(now.saturating_sub(since));
        (what == WaitFor::Transaction).then_some((waiting, Cause::Transaction { waiting }))
    }

    /// The command of MongoDB that has been in flight for longest.
    #[cfg(feature = "mongodb")]
    fn command(&self, now: u64) -> Option<(Duration, Cause)> {
        let (key, since) = self.commands()?.oldest()?;
        let current = Duration::from_nanos(now.saturating_sub(self.offset(since)));
        let counted = key.and_then(|key| self.statements.counted(key));
        let (text, executions, before) = match counted {
            Some(counted) => (counted.text.into_owned(), counted.count, counted.nanos),
            None => ("a command of MongoDB".to_owned(), 1, 0),
        };
        let time = Duration::from_nanos(before).saturating_add(current);
        Some((time, Cause::Statement { text, executions, time, waiting: Some(current) }))
    }

    #[cfg(not(feature = "mongodb"))]
    #[expect(clippy::unused_self, reason = "as with MongoDB")]
    fn command(&self, _: u64) -> Option<(Duration, Cause)> {
        None
    }

    fn longest_poll(&self) -> Option<Duration> {
        let is_timed = self.limits().names(Resource::PollTime);
        is_timed.then(|| Duration::from_nanos(self.used(Resource::PollTime)))
    }
}
