//! Waits that are not statements: for a connection, and for the begin or end of a transaction.

use std::time::Duration;

use super::begun::Begun;
use crate::error::Cut;
use crate::meter::pools::PoolId;
use crate::meter::recording::{Kind, Recorded};
use crate::meter::waits::WaitFor;
use crate::meter::{Meter, Suspect};
use crate::resource::Resource;
use crate::scope;
use crate::time::Instant;

/// A wait for a connection of a pool, until ended or dropped.
pub(crate) struct ConnectionWait {
    begun: Begun,
    pool: PoolId,
}

impl ConnectionWait {
    pub(crate) fn start(pool: PoolId) -> Self {
        let begun = Begun::now();
        begun.note(WaitFor::Connection(pool));
        Self { begun, pool }
    }

    /// Ends the wait, and starts what the connection is needed for.
    pub(crate) fn end(mut self) -> Begun {
        let pool = self.pool;
        self.begun.next(|meter, since, time| Self::charge(meter, pool, since, time))
    }

    fn charge(meter: &Meter, pool: PoolId, since: Instant, time: Duration) {
        meter.each(|meter| {
            meter.end_other_wait(WaitFor::Connection(pool), since);
            meter.add_connection_wait(time, || pool);
        });
    }
}

impl Drop for ConnectionWait {
    fn drop(&mut self) {
        if let Some((meter, since, time)) = self.begun.take() {
            Self::charge(&meter, self.pool, since, time);
        }
    }
}

/// A wait for `BEGIN`, `COMMIT`, `ROLLBACK` or a savepoint, until dropped.
pub(crate) struct TransactionWait(Begun, Recorded);

impl TransactionWait {
    /// Counts a transaction that is about to begin, or a savepoint.
    pub(crate) fn begin() -> Result<Self, Cut> {
        let begun = Begun::now();
        let Some(meter) = begun.meter() else { return Ok(Self(begun, Recorded::default())) };
        let resource = Resource::Transactions;
        meter.take(resource, Suspect::Nobody)?;
        meter.each(|meter| meter.check_taken(resource, Suspect::Nobody));
        let recorded = meter.record(Kind::Transaction, Some("BEGIN"));
        begun.note(WaitFor::Transaction);
        Ok(Self(begun, recorded))
    }

    /// Whether the work that is waiting is being dropped or cut.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.meter().is_some_and(|meter| meter.is_abandoned())
    }

    /// Returns an error if anything was refused to the work.
    pub(crate) fn may_commit() -> Result<(), Cut> {
        let meter = scope::current();
        let refused = meter.iter().flat_map(|meter| meter.chain()).find(|meter| meter.is_refused());
        let cut = refused.as_deref().and_then(Meter::cut);
        cut.map_or(Ok(()), |cut| Err(cut.clone()))
    }

    /// Starts the wait for the end of a transaction, which was counted when it began.
    pub(crate) fn end() -> Self {
        let begun = Begun::now();
        begun.note(WaitFor::Transaction);
        Self(begun, Recorded::default())
    }
}

impl Drop for TransactionWait {
    fn drop(&mut self) {
        if let Some((meter, since, time)) = self.0.take() {
            meter.each(|meter| {
                meter.end_other_wait(WaitFor::Transaction, since);
                meter.add_statement_time(None, time);
            });
            self.1.add_time(time);
        }
    }
}
