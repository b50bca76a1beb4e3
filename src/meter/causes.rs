//! The cause of a violation: derived when a limit is crossed, from what was noted until then.

use std::iter;
use std::time::Duration;

use super::Meter;
use super::pools::PoolId;
#[cfg(any(feature = "http", feature = "mongodb"))]
use super::table::Key;
use super::table::{Entry, Table};
use super::waits::WaitFor;
use crate::resource::Resource;
use crate::time::Instant;
use crate::violation::Cause;

/// Something in flight, and since when, in nanoseconds after the start of the work.
#[cfg(feature = "http")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct InFlightSince {
    what: What,
    since: u64,
}

#[cfg(feature = "http")]
#[derive(Debug, Clone, Copy)]
enum What {
    Statement(Key),
    #[cfg(feature = "redis")]
    Cache(Key),
    Call(Key),
    Other(WaitFor),
    #[cfg(feature = "mongodb")]
    Command(Option<Key>),
}

impl Meter {
    /// What has taken most of the time of the work, what is in flight included.
    pub(super) fn cause_of_time(&self) -> Cause {
        let now = self.offset(Instant::now());
        let statement = |table: &Table| {
            table.slowest(now).map(|(entry, time)| {
                let time = Duration::from_nanos(time);
                (time, statement(entry, time, waiting(entry, now)))
            })
        };
        #[cfg(feature = "redis")]
        let cache = self.caches().and_then(statement);
        #[cfg(not(feature = "redis"))]
        let cache = None;
        let call = self.externals().and_then(|all| all.slowest(now)).map(|(entry, time)| {
            let time = Duration::from_nanos(time);
            (time, call(entry, time, waiting(entry, now)))
        });
        let all = [
            statement(&self.statements),
            cache,
            call,
            self.connection_waits(now),
            self.transaction_wait(now),
            self.command(now),
            self.slow_client(now),
        ];
        let slowest = all.into_iter().flatten().max_by_key(|(time, _)| *time);
        // Less than a tenth of the time does not explain the crossing.
        let least = Duration::from_nanos(now.div_ceil(10).max(1));
        match slowest {
            Some((time, cause)) if time >= least => cause,
            _ => Cause::OwnCode { longest_poll: self.longest_poll(), allocated: None },
        }
    }

    /// What has allocated most, of `total` bytes.
    pub(super) fn cause_of_memory(&self, total: u64) -> Cause {
        let now = self.offset(Instant::now());
        let mut in_waits = 0_u64;
        let mut most: Option<(u64, &Entry, bool)> = None;
        let calls = self.externals().map(|table| (table, true));
        #[cfg(feature = "redis")]
        let calls = calls.into_iter().chain(self.caches().map(|table| (table, false)));
        for (table, is_of_calls) in iter::once((&self.statements, false)).chain(calls) {
            for (entry, allocated) in table.allocations(total) {
                in_waits = in_waits.saturating_add(allocated);
                if most.is_none_or(|(most, ..)| allocated > most) {
                    most = Some((allocated, entry, is_of_calls));
                }
            }
        }
        let by_itself = total.saturating_sub(in_waits);
        match most {
            Some((bytes, entry, is_of_calls)) if bytes > 0 && bytes >= by_itself => {
                let (time, waiting) = (Duration::from_nanos(entry.nanos()), waiting(entry, now));
                let mut cause = match is_of_calls {
                    true => call(entry, time, waiting),
                    false => statement(entry, time, waiting),
                };
                if let Cause::Statement { allocated, .. } | Cause::External { allocated, .. } =
                    &mut cause
                {
                    *allocated = Some(bytes);
                }
                cause
            }
            _ => Cause::OwnCode {
                longest_poll: self.longest_poll(),
                allocated: Some(self.largest_poll()),
            },
        }
    }

    /// What a body without a frame is waiting for: of all waits the one that has lasted longest.
    #[cfg(feature = "http")]
    pub(crate) fn longest_in_flight(&self) -> Option<InFlightSince> {
        let keyed = |table: &Table, what: fn(Key) -> What| {
            let (key, since) = table.longest_in_flight()?;
            Some(InFlightSince { what: what(key), since })
        };
        #[cfg(feature = "redis")]
        let cache = self.caches().and_then(|all| keyed(all, What::Cache));
        #[cfg(not(feature = "redis"))]
        let cache = None;
        #[cfg(feature = "mongodb")]
        let command = self.commands().and_then(|commands| commands.oldest()).map(|(key, since)| {
            InFlightSince { what: What::Command(key), since: self.offset(since) }
        });
        #[cfg(not(feature = "mongodb"))]
        let command = None;
        let other = self.other_waits.current();
        let all = [
            keyed(&self.statements, What::Statement),
            cache,
            self.externals().and_then(|all| keyed(all, What::Call)),
            other.map(|(what, since)| InFlightSince { what: What::Other(what), since }),
            command,
        ];
        all.into_iter().flatten().min_by_key(|in_flight| in_flight.since)
    }

    /// What a body was waiting for that had no frame for `idle` nanoseconds; `last` was in flight
    /// at its last poll.
    #[cfg(feature = "http")]
    pub(super) fn cause_of_idling(&self, last: Option<InFlightSince>, idle: u64) -> Cause {
        let now = self.offset(Instant::now());
        let cause = last.and_then(|InFlightSince { what, since }| {
            // What began late does not explain the crossing.
            let waiting = now.saturating_sub(since);
            let waiting = (waiting >= idle / 2).then(|| Duration::from_nanos(waiting))?;
            let of_entry =
                |table: &Table, key, make: fn(&Entry, Duration, Option<Duration>) -> Cause| {
                    let entry = table.get(key)?;
                    let before = Duration::from_nanos(entry.nanos());
                    Some(make(entry, before.max(waiting), Some(waiting)))
                };
            match what {
                What::Statement(key) => of_entry(&self.statements, key, statement),
                #[cfg(feature = "redis")]
                What::Cache(key) => of_entry(self.caches()?, key, statement),
                What::Call(key) => of_entry(self.externals()?, key, call),
                What::Other(WaitFor::Connection(pool)) => {
                    let pool = pool.name();
                    Some(Cause::Connection { pool, time: waiting, waiting: Some(waiting) })
                }
                What::Other(WaitFor::Transaction) => Some(Cause::Transaction { waiting }),
                #[cfg(feature = "mongodb")]
                What::Command(key) => Some(self.cause_of_command(key, waiting).1),
            }
        });
        cause.unwrap_or(Cause::OwnCode { longest_poll: self.longest_poll(), allocated: None })
    }

    /// The waits for connections, once all of them have ended.
    pub(super) fn cause_of_connection_wait(&self) -> Cause {
        let time = Duration::from_nanos(self.used(Resource::ConnectionWait));
        Cause::Connection { pool: self.other_waits.longest().0.name(), time, waiting: None }
    }

    fn connection_waits(&self, now: u64) -> Option<(Duration, Cause)> {
        let before = self.used(Resource::ConnectionWait);
        let current = match self.other_waits.current() {
            Some((WaitFor::Connection(pool), since)) => Some((pool, now.saturating_sub(since))),
            _ => None,
        };
        let waiting = current.map(|(_, waiting)| waiting);
        let time = Duration::from_nanos(before.saturating_add(waiting.unwrap_or_default()));
        let both = iter::once(self.other_waits.longest()).chain(current);
        let (pool, _) = both.max_by_key(|(_, waited)| *waited).unwrap_or((PoolId::UNKNOWN, 0));
        let waiting = waiting.map(Duration::from_nanos);
        let cause = || Cause::Connection { pool: pool.name(), time, waiting };
        (!time.is_zero()).then(|| (time, cause()))
    }

    fn transaction_wait(&self, now: u64) -> Option<(Duration, Cause)> {
        let (what, since) = self.other_waits.current()?;
        let waiting = Duration::from_nanos(now.saturating_sub(since));
        (what == WaitFor::Transaction).then_some((waiting, Cause::Transaction { waiting }))
    }

    fn slow_client(&self, now: u64) -> Option<(Duration, Cause)> {
        let time = Duration::from_nanos(self.other_waits.unasked(now));
        (!time.is_zero()).then_some((time, Cause::SlowClient { time }))
    }

    /// The command of MongoDB that has been in flight for longest.
    #[cfg(feature = "mongodb")]
    fn command(&self, now: u64) -> Option<(Duration, Cause)> {
        let (key, since) = self.commands()?.oldest()?;
        let waiting = Duration::from_nanos(now.saturating_sub(self.offset(since)));
        Some(self.cause_of_command(key, waiting))
    }

    /// A command that is in flight, and how long all commands of its kind have taken.
    #[cfg(feature = "mongodb")]
    fn cause_of_command(&self, key: Option<Key>, in_flight: Duration) -> (Duration, Cause) {
        let waiting = Some(in_flight);
        match key.and_then(|key| self.statements.get(key)) {
            Some(entry) => {
                let time = Duration::from_nanos(entry.nanos()).saturating_add(in_flight);
                (time, statement(entry, time, waiting))
            }
            None => {
                let text = "a command of MongoDB".to_owned();
                let (executions, time, allocated) = (1, in_flight, None);
                (time, Cause::Statement { text, executions, time, waiting, allocated })
            }
        }
    }

    #[cfg(not(feature = "mongodb"))]
    #[expect(clippy::unused_self, reason = "as with MongoDB")]
    fn command(&self, _: u64) -> Option<(Duration, Cause)> {
        None
    }

    pub(super) fn longest_poll(&self) -> Option<Duration> {
        let is_timed = self.limits().names(Resource::PollTime);
        is_timed.then(|| Duration::from_nanos(self.used(Resource::PollTime)))
    }
}

fn waiting(entry: &Entry, now: u64) -> Option<Duration> {
    entry.waiting(now).map(Duration::from_nanos)
}

fn statement(entry: &Entry, time: Duration, waiting: Option<Duration>) -> Cause {
    let (text, executions) = (entry.text().to_owned(), entry.count());
    Cause::Statement { text, executions, time, waiting, allocated: None }
}

fn call(entry: &Entry, time: Duration, waiting: Option<Duration>) -> Cause {
    let (name, calls) = (entry.text().to_owned(), entry.count());
    Cause::External { name, calls, time, waiting, allocated: None }
}
